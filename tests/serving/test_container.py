"""The commands of the Containerfile, without containers: wheel, environment, and the server as its user meets it.

Paths of the image lie in a folder here. What the image installs from the network is taken from the environment of the
tests. The server runs as a user without rights, and can write to its volumes and to /tmp only.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import memtok
from tests.serving.attack_tools import RAW, bearer, task_file
from tests.serving.processes import PATIENCE, InFlight, serving
from tests.serving.test_v1 import library, same

pytestmark = pytest.mark.slow

PATHS = ("/source", "/wheels", "/opt/memtok", "/keys", "/tasks", "/tmp")
WRITABLE = ("/keys", "/tasks", "/tmp")
NOBODY = "65534"


@dataclass(frozen=True)
class Instruction:
    """A line of a Containerfile, with its stage."""

    stage: str
    name: str
    rest: str


def instructions(path: Path) -> list[Instruction]:
    """The instructions of a Containerfile, in order."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    found, stage = [], ""
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        name, _, rest = line.strip().partition(" ")
        if name == "FROM":
            stage = rest.partition(" AS ")[2] or "final"
        if name:
            found.append(Instruction(stage, name, rest))
    return found


def only(found: list[Instruction], stage: str, name: str, containing: str = "") -> str:
    """What the only such instruction says."""
    [rest] = [one.rest for one in found if (one.stage, one.name) == (stage, name) and containing in one.rest]
    return rest


@dataclass
class Box:
    """The folder that stands for the image's root."""

    root: Path

    def inside(self, text: str) -> str:
        """A text with the paths of the image as they are here."""
        return re.sub(rf"(?<![\w.])({'|'.join(PATHS)})(?![\w-])", lambda found: f"{self.root}{found[1]}", text)

    def shell(self, command: str) -> None:
        """Runs a command of the image."""
        environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INDEX": "1"}
        environment.pop("PYTHONPATH", None)
        done = subprocess.run(
            ["sh", "-ec", self.inside(command)], capture_output=True, text=True, env=environment, cwd=self.root
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def containerfile(root: Path) -> list[Instruction]:
    return instructions(root / "Containerfile")


@pytest.fixture(scope="module")
def box(root: Path, containerfile: list[Instruction]) -> Iterator[Box]:
    # Not in pytest's own folder, which is closed to other users.
    box = Box(Path(tempfile.mkdtemp(prefix="memtok-box-")).resolve())
    try:
        box.root.chmod(0o755)
        for path in PATHS:
            Path(box.inside(path)).mkdir(parents=True)
        for one in containerfile:
            if (one.stage, one.name) == ("wheel", "COPY"):
                *sources, target = one.rest.split()
                for source in sources:
                    copy(root / source, Path(box.inside("/source")) / target / ("" if target == "./" else "."))
        # No network: what builds the wheel is here, and so is what memtok needs.
        box.shell(only(containerfile, "wheel", "RUN").replace("python", sys.executable, 1) + " --no-build-isolation")
        box.shell(only(containerfile, "environment", "RUN", "-m venv").replace("python", sys.executable, 1))
        box.shell(only(containerfile, "environment", "RUN", "memtok-*.whl") + " --no-deps")
        here = [entry for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))]
        [packages] = Path(box.inside("/opt/memtok")).glob("lib/python*/site-packages")
        (packages / "outside.pth").write_text("\n".join(here) + "\n", encoding="utf-8")
        for path in WRITABLE:
            Path(box.inside(path)).chmod(0o777)
        yield box
    finally:
        subprocess.run(["chmod", "-R", "u+w", str(box.root)], check=False)
        shutil.rmtree(box.root)


def copy(source: Path, target: Path) -> None:
    """As COPY does."""
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "*.part", "results"))
    else:
        shutil.copy(source, target)


@pytest.fixture(scope="module")
def confined(box: Box, containerfile: list[Instruction]) -> list[str]:
    """What stands before a command, so that it runs as a user without rights and finds the file system read-only."""
    writable = " ".join(shlex.quote(box.inside(path)) for path in WRITABLE)
    place = shlex.quote(str(box.root))
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    read_only = (
        f"mount --make-rprivate / && mount --bind {place} {place} && "
        f"for one in {writable}; do mount --bind $one $one; done && "
        f"mount -o remount,ro,bind {place} && mount -o remount,ro,bind / && "
    )
    # What nobody may write, even where nothing can be mounted.
    subprocess.run(["chmod", "-R", "a-w", *(box.inside(path) for path in PATHS if path not in WRITABLE)], check=True)
    box.root.chmod(0o555)
    ways = {
        "another user, and a file system that is mounted read-only": [
            "unshare", "--mount", "sh", "-ec", f'{read_only} exec {shlex.join(user)} "$@"', "sh",
        ],
        "another user": user,
        "another user of a namespace": ["unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}"],
    }  # fmt: skip
    attempt = (
        "import os, sys, memtok\n"
        f"assert os.getuid() != 0 and memtok.__file__.startswith({box.inside('/opt/memtok')!r})\n"
        f"open({box.inside('/tmp/written')!r}, 'w').close()\n"
        f"try: open({box.inside('/opt/memtok/written')!r}, 'w')\n"
        "except OSError: sys.exit(0)\n"
        "sys.exit('the environment can be written')\n"
    )
    reasons = []
    for name, prefix in ways.items() if os.geteuid() == 0 else {"this user": []}.items():
        command = [*prefix, box.inside("/opt/memtok/bin/python"), "-c", attempt]
        try:
            done = subprocess.run(command, capture_output=True, text=True, cwd=box.inside("/tmp"), env=environment(box))
        except FileNotFoundError as error:
            reasons.append(str(error))
            continue
        if done.returncode == 0:
            print(f"as {name}")
            return prefix
        reasons.append(f"{name}: {done.stderr.strip()[-300:]}")
    pytest.skip("; ".join(reasons))


def environment(box: Box) -> dict[str, str]:
    """The variables of the image, and those that keep tests apart from the network."""
    found = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return found | {"HOME": box.inside("/tmp"), "TMPDIR": box.inside("/tmp"), "PYTHONDONTWRITEBYTECODE": "1"}


def words(box: Box, containerfile: list[Instruction], name: str) -> list[str]:
    """ENTRYPOINT or CMD, with paths as they are here and a port that is free."""
    found = [box.inside(word) for word in json.loads(only(containerfile, "final", name))]
    if name == "ENTRYPOINT":
        assert found[0] == "memtok"
        found[0] = box.inside("/opt/memtok/bin/memtok")
        found[found.index("--port") + 1] = "0"
    return found


def test_the_commands_of_the_image(
    box: Box, containerfile: list[Instruction], confined: list[str], tmp_path: Path
) -> None:
    entry, default = (words(box, containerfile, name) for name in ("ENTRYPOINT", "CMD"))
    # Files that the server must not touch, and that a read-only file system would keep.
    before = seen(box)

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        command, place = [*confined, *entry, *more], box.inside("/tmp")
        return subprocess.run(
            command, capture_output=True, text=True, cwd=place, env=environment(box), timeout=PATIENCE
        )

    without_keys = run(*default)
    assert without_keys.returncode == 1, without_keys.stderr
    assert "--new-key" in without_keys.stderr.splitlines()[-1]  # it says how to make the keys that it asks for
    made = run("--new-key", "me", "--key-admin")
    assert made.returncode == 0, made.stderr
    key = bearer(made.stdout.strip())

    small = memtok.load_backbone("small")
    task = memtok.Task.create(small, name="marks", classes=["plus", "minus", "times"], memory=2, seed=1)
    digits = np.load(Path(memtok.__file__).parent / "assets" / "digits.npz")
    image = Image.fromarray(digits["images"][0]).convert("RGB").resize((64, 64))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    expected = library(memtok.MemoryViT(small, [task]), stream.getvalue(), top=3)["marks"]

    place = Path(box.inside("/tmp"))
    with serving([*confined, *entry, *default], cwd=place, environment=environment(box)) as server:
        uid = int(re.search(r"Uid:\s+(\d+)", Path(f"/proc/{server.process.pid}/status").read_text())[1])  # type: ignore[index]
        assert uid != 0 or "--user" in confined
        check = only(containerfile, "final", "HEALTHCHECK").partition("CMD ")[2]
        command = [word.replace(":8000/", f":{server.port}/") for word in json.loads(check)]
        command[0] = box.inside("/opt/memtok/bin/python")
        subprocess.run(command, check=True, env=environment(box))
        assert server.ask("POST", "/v1/predict", stream.getvalue(), RAW)[0] == 401
        status, _ = server.ask("PUT", "/v1/tasks/marks", task_file(task, tmp_path), key | RAW)
        assert status == 201
        first = server.ask("POST", "/v1/tasks/marks/predict", stream.getvalue(), key | RAW)
        same({"marks": json.loads(first[1])}, {"marks": expected})
        server.signal(signal.SIGTERM)
        assert server.wait() == 0, server.output

    with serving([*confined, *entry, *default], cwd=place, environment=environment(box)) as server:
        assert server.ask("POST", "/v1/tasks/marks/predict", stream.getvalue(), key | RAW) == first
        with InFlight(server.port, "/v1/tasks/marks/predict", stream.getvalue(), key | RAW) as taken:
            server.signal(signal.SIGTERM)
            server.refuses()
            assert taken.finish() == first
        assert server.wait() == 0, server.output
    assert seen(box) == before


def seen(box: Box) -> dict[str, tuple[int, int]]:
    """Sizes and times of all files outside of what may be written."""
    folders = [Path(box.inside(path)) for path in PATHS if path not in WRITABLE]
    paths = [path for folder in folders for path in folder.rglob("*")]
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in paths}
