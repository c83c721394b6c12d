"""The command as a process: quick help, pipes, interrupts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import memtok
from memtok.cli import COMMANDS
from tests.cli.conftest import Run

MEMTOK = [sys.executable, "-m", "memtok"]
HEAVY = ("torch", "timm", "torchvision", "accelerate", "matplotlib", "numpy")


def start(*words: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*MEMTOK, *words], capture_output=True, text=True, **more)  # type: ignore[call-overload,no-any-return]


def test_help_lists_every_command_and_version_says_it() -> None:
    found = start("--help")
    assert found.returncode == 0
    assert found.stderr == ""
    for command, text in COMMANDS.items():
        assert f"  {command} " in found.stdout
        assert text in found.stdout
    assert start("--version").stdout == f"memtok {memtok.__version__}\n"


def test_help_answers_in_under_a_second() -> None:
    """Processor time, which does not depend on what else the machine does; the best of three."""
    for words in (["--help"], ["train", "--help"], ["--version"]):
        taken = []
        for _ in range(3):
            before = os.times()
            subprocess.run([*MEMTOK, *words], capture_output=True, check=True)
            after = os.times()
            taken.append(after.children_user + after.children_system - before.children_user - before.children_system)
        assert min(taken) < 1.0, (words, taken)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from memtok.cli import COMMANDS, main\n"
        "for command in COMMANDS:\n"
        "    assert main([command, '--help']) == 0\n"
        f"heavy = [name for name in {HEAVY} if name in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def test_inspect_needs_no_torch(original: Path) -> None:
    code = (
        "import sys\n"
        "from memtok.cli import main\n"
        "assert main(['inspect', 'pets.safetensors', 'tiny.safetensors']) == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=original)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, run: Run) -> None:
    for words in ((command, "--help"), ("help", command)):
        found = run(*words)
        assert (found.code, found.err) == (0, "")
        assert found.out.startswith(f"usage: memtok {command} ")
        assert f"examples:\n  memtok {command}" in found.out
        assert "<" not in found.out.replace("<built", "<")  # no object is printed as Python shows it
    if command != "serve":  # it answers until it is stopped, and reports nothing in the end
        assert "--json FILE" in run(command, "--help").out


def test_exit_code_and_one_line_of_a_process() -> None:
    found = start("frobnicate")
    assert found.returncode == 2
    assert found.stdout == ""
    assert found.stderr.count("\n") == 1
    assert found.stderr.startswith("memtok: error: expected a command (quickstart, train, evaluate")


def test_a_closed_pipe_is_no_traceback(original: Path) -> None:
    # Buffered, as output to a pipe is unless somebody says otherwise: then the pipe is missed when Python ends.
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    unbuffered = {**buffered, "PYTHONUNBUFFERED": "1"}
    for environment in (buffered, unbuffered):
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(writer, "w") as closed:
            process = subprocess.run(
                [*MEMTOK, "inspect", "pets.safetensors"],
                stdout=closed,
                stderr=subprocess.PIPE,
                text=True,
                cwd=original,
                env=environment,
            )
        assert process.stderr == ""
        assert process.returncode == 1


def test_what_is_piped_has_neither_colours_nor_bars(workspace: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    found = run("predict", "pets.safetensors", "--backbone", "tiny.safetensors", "--images", "photos")
    assert found.code == 0
    assert found.err == ""
    assert "\x1b" not in found.out
    assert "\r" not in found.out
    assert len(found.out.splitlines()) == 13  # no row is broken, however narrow the terminal is said to be


def test_a_terminal_without_accents(workspace: Path) -> None:
    task = memtok.load_task("head.safetensors", memtok.load_backbone("tiny.safetensors"))
    task.classes = ("chat", "chien", "étoile")
    task.save("french.safetensors")
    found = start("inspect", "french.safetensors", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert found.returncode == 0, found.stderr
    assert "chien, \\xe9toile" in found.stdout


@pytest.mark.slow
def test_an_interrupted_training_goes_on(original: Path, tmp_path: Path) -> None:
    out = tmp_path / "new.safetensors"
    words = ["train", "--backbone", str(original / "tiny.safetensors"), "--data", "digits", "--device", "cpu"]
    words += ["--regime", "memory", "--steps", "100000", "--out", str(out)]
    environment = {**os.environ, "MEMTOK_DATA": str(tmp_path / "data")}
    with subprocess.Popen(
        [*MEMTOK, *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        # A shell that runs the tests in the background lets them ignore this signal, and so would their processes.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        metrics = out.with_suffix(".run") / "metrics.jsonl"
        while not (metrics.exists() and metrics.stat().st_size) and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("memtok train: interrupted")
    assert printed == ""


@pytest.mark.parametrize(
    "words",
    [
        "sweep --learning-rates 0",
        "sweep --memory 5 5",
        "sweep --search random",
        "sweep --trials 3",
        "sweep --views 2",
        "sweep --out pictures/out --data folder:pictures",
        "sweep --keep-traces ram --views 100000000",
        "train --steps 3 --epochs 1",
        "train --trace-dir traces",
        "reproduce table2 --steps 3 --epochs 1",
    ],
)
def test_arguments_that_are_wrong_by_themselves_are_refused_without_torch(words: str, tmp_path: Path) -> None:
    command, *rest = words.split()
    given = [command, *rest, *(() if command == "reproduce" else ("--backbone", "small"))]
    given += [] if "--data" in rest else ["--data", "digits"]
    given += [] if "--out" in rest else ["--out", "out.safetensors"]
    code = f"import sys\nfrom memtok.cli import main\nassert main({given!r}) == 2\nassert 'torch' not in sys.modules\n"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert found.stderr.startswith(f"memtok {command}: error: expected ")
    assert not list(tmp_path.iterdir())
