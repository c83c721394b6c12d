"""What is installed: start without torch, the files of the wheel, sizes, version, and the set-up script's errors."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import memtok
from memtok.cli import COMMANDS

MEGABYTE = 1_000_000
PACKAGES = ("src/memtok", "experiments/memtok_experiments", "benchmarks/memtok_benchmarks")


def loaded_modules(code: str) -> set[str]:
    """Names of the top-level modules that are loaded after `code` ran in a fresh interpreter."""
    script = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint('LOADED', *sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("LOADED ")]
    return {name.split(".")[0] for name in line.split()[1:]}


@pytest.mark.parametrize(
    "code",
    [
        "import memtok",
        "from memtok.cli import main; main(['--help'])",
        *(f"from memtok.cli import main; main(['{command}', '--help'])" for command in COMMANDS),
    ],
)
def test_starts_without_torch(code: str) -> None:
    slow = {"torch", "torchvision", "timm", "accelerate", "matplotlib", "jinja2"}
    assert loaded_modules(code) & slow == set()


@pytest.mark.slow
def test_loaded_modules_sees_torch() -> None:
    """The test above can fail: a public name that needs torch loads it."""
    assert "torch" in loaded_modules("import memtok; memtok.Task")


def test_help_as_installed() -> None:
    """The command beside this interpreter answers, and so does `python -m memtok`."""
    beside = Path(sys.executable).parent / "memtok"
    if not beside.exists():
        pytest.skip("memtok is not installed beside this interpreter")
    for command in ([str(beside)], [sys.executable, "-m", "memtok"]):
        result = subprocess.run([*command, "--help"], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert all(name in result.stdout for name in COMMANDS)


def test_version_is_the_same_everywhere(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert memtok.__version__ == project["version"] == importlib.metadata.version("memtok")


def test_every_module_and_asset_is_in_the_wheel(root: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for package in PACKAGES:
        shutil.copytree(root / package, source / package, ignore=shutil.ignore_patterns("*.pyc"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    result = subprocess.run(
        [*command, "--wheel-dir", str(tmp_path), str(source)], capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (entry_points,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        assert "memtok = memtok.cli:main" in archive.read(entry_points).decode()
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
    here = {
        path.relative_to((root / package).parent).as_posix()
        for package in PACKAGES
        for path in files_under(root / package)
    }
    assert names == here
    assert {"memtok/py.typed", "memtok/templates/page.html", "memtok/assets/small-vit/model.safetensors"} <= names


def files_under(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix not in {".pyc", ".part"}]


def test_assets_are_small(root: Path) -> None:
    assert sum(path.stat().st_size for path in files_under(root / "src" / "memtok" / "assets")) < 5 * MEGABYTE


def test_nothing_large_is_tracked(root: Path) -> None:
    """Nor would be by `git add .`: no file over 6 MB."""
    if not (root / ".git").exists() or shutil.which("git") is None:
        pytest.skip("needs a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    paths = [root / name for name in listed.stdout.split("\0") if name]
    assert paths
    assert [path for path in paths if path.is_file() and path.stat().st_size > 6 * MEGABYTE] == []


def run_setup(root: Path, folder: Path, path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """scripts/setup.sh in a folder of its own, with `path` before the system's own commands."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    (folder / "scripts").mkdir(parents=True)
    shutil.copy(root / "scripts" / "setup.sh", folder / "scripts" / "setup.sh")
    shutil.copy(root / "pyproject.toml", folder / "pyproject.toml")
    for name in ("bash", "cksum", "dirname", "grep", "head", "rm", "mv"):
        (path / name).symlink_to(shutil.which(name) or f"/bin/{name}")
    environment = {"PATH": str(path), "HOME": os.environ.get("HOME", "/"), **variables}
    command = [bash, str(folder / "scripts" / "setup.sh")]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def stand_in(path: Path, body: str) -> None:
    path.write_text(f"#!{shutil.which('bash')}\n{body}\n", encoding="utf-8")
    path.chmod(0o755)


OLD_PYTHON = 'case "$*" in *version_info*) exit 1;; esac; exit 0'
NO_VENV = 'case "$*" in *ensurepip*) exit 1;; esac; exit 0'


@pytest.mark.parametrize(
    ("pythons", "variables", "message"),
    [
        ({}, {}, r"expected Python 3\.11 or newer, found none on the PATH"),
        ({"python3.12": "exit 127", "python3": OLD_PYTHON}, {}, r"found none on the PATH"),
        ({"python3": "exit 0"}, {"PYTHON": "python9"}, r"found PYTHON=python9, which is older or does not run"),
        ({"python3.12": NO_VENV}, {}, r"expected a Python with venv, found python3\.12 without it"),
    ],
)
def test_setup_without_a_python_that_will_do(
    root: Path, tmp_path: Path, pythons: dict[str, str], variables: dict[str, str], message: str
) -> None:
    """One line that says what to do, and nothing is left behind."""
    path = tmp_path / "bin"
    path.mkdir()
    for name, body in pythons.items():
        stand_in(path / name, body)
    result = run_setup(root, tmp_path / "checkout", path, **variables)
    assert result.returncode == 1
    assert re.fullmatch(rf"setup: [^\n]*{message}[^\n]*\n", result.stderr)
    assert not (tmp_path / "checkout" / ".venv").exists()


def test_setup_takes_the_first_python_that_works(root: Path, tmp_path: Path) -> None:
    """A name on the PATH that does not run is passed over; a .venv that does not work is made anew."""
    path = tmp_path / "bin"
    path.mkdir()
    calls = tmp_path / "calls"
    stand_in(path / "python3.13", "exit 127")
    # It "makes" no environment, so the set-up must then fail, not go on with what was there before.
    stand_in(path / "python3.11", f'echo "$*" >> {calls}; case "$*" in "-m venv"*) exit 3;; esac; exit 0')
    broken = tmp_path / "checkout" / ".venv" / "bin"
    broken.mkdir(parents=True)
    (broken / "python").symlink_to(tmp_path / "gone")
    result = run_setup(root, tmp_path / "checkout", path)
    assert result.returncode == 3
    assert "does not work; it is made anew" in result.stdout
    assert calls.read_text(encoding="utf-8").splitlines()[-1] == "-m venv --clear .venv"
    assert not (tmp_path / "checkout" / ".venv" / "memtok-setup").exists()
