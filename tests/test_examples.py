"""The examples run as their README says, and do what they say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import memtok

STEPS = 4


def run(command: list[str | Path], root: Path) -> str:
    """What a command prints on standard output, run in the checkout with this interpreter's folder first."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(root / "src")}
    words = [str(word) for word in command]
    result = subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def check_files(out: Path) -> None:
    """Both examples leave the same files."""
    backbone = memtok.load_backbone("small")
    tasks = memtok.load_tasks(out / "both.safetensors", backbone)
    assert {task.name: task.classes for task in tasks} == {"digits": tuple("0123456789"), "parity": ("even", "odd")}
    for task in tasks:
        alone = memtok.load_task(out / f"{task.name}.safetensors", backbone)
        assert alone.fingerprint == task.fingerprint
        assert task.record["steps"] == STEPS
        assert task.record["hyperparameters"]["augment"] == "none"
    assert len(list((out / "unseen").rglob("*.png"))) == 5


@pytest.mark.slow
def test_python(root: Path, tmp_path: Path) -> None:
    script = root / "examples" / "fine_tune_and_compose.py"
    printed = run([sys.executable, script, "--steps", str(STEPS), "--out", tmp_path], root)
    assert "verified: True" in printed
    assert re.search(r"digits/top1: 0\.\d+", printed)
    assert len(re.findall(r"\.png: (digits|parity|base) says ", printed)) == 5 * 3
    check_files(tmp_path)


@pytest.mark.slow
def test_command_line(root: Path, tmp_path: Path) -> None:
    if not (Path(sys.executable).parent / "memtok").exists():
        pytest.skip("memtok is not installed beside this interpreter")
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    printed = run([bash, root / "examples" / "fine_tune_and_compose.sh", tmp_path, str(STEPS)], root)
    assert "verified" in printed.splitlines()
    assert len(re.findall(r"unseen/(?:even|odd)/\S+\.png +(?:digits|parity|base) ", printed)) == 5 * 3
    check_files(tmp_path)
