"""One run at a time works on a task file: another one, in whatever process or thread, is told who does."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import memtok
from memtok.data import DataSource
from memtok.errors import MemtokError
from memtok.folders import locked
from memtok.training import Progress, train_together
from memtok.training.state import RunFolder
from tests.tiny import bytes_of
from tests.training.helpers import Recorder, new_task, quick

CHILD = """
import sys
from pathlib import Path
from memtok.folders import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def refusals(function: Callable[[], object]) -> list[str]:
    """What a MemtokError says that `function` raises in another thread."""
    found = []

    def work() -> None:
        try:
            function()
        except MemtokError as error:
            found.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return found


class Meanwhile(Progress):
    """Calls a function in another thread after the second step."""

    def __init__(self, function: Callable[[], object]) -> None:
        self.function = function
        self.refused: list[str] = []

    def step(self, step: int) -> None:
        if step == 2:
            self.refused += refusals(self.function)


def by_this_process(message: str) -> bool:
    return f"found another process (process {os.getpid()} on {socket.gethostname()})" in message


@pytest.mark.parametrize("more", [{}, {"resume": True}, {"overwrite": True}], ids=str)
def test_two_runs_to_one_file(backbone: memtok.Backbone, data: DataSource, out: Path, more: dict[str, Any]) -> None:
    alone = new_task(backbone, data)
    quick(alone, data)
    listener = Meanwhile(lambda: quick(new_task(backbone, data, seed=1), data, out=out, **more))
    task = new_task(backbone, data)
    quick(task, data, out=out, progress=listener)
    (message,) = listener.refused
    assert "\n" not in message
    assert by_this_process(message)
    assert bytes_of(memtok.load_task(out, backbone)) == bytes_of(task) == bytes_of(alone)


def test_two_runs_of_tasks_together(backbone: memtok.Backbone, data: DataSource, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"steps": 3, "batch_size": 8, "augment": "none", "device": "cpu"}

    def run(name: str, **more: Any) -> None:
        train_together([new_task(backbone, data)], data, state=tmp_path / name, **(arguments | more))

    listener = Meanwhile(lambda: run("state"))
    run("state", progress=listener)
    (message,) = listener.refused
    assert by_this_process(message)
    listener = Meanwhile(lambda: run("other"))  # beside it there is room
    run("third", progress=listener)
    assert listener.refused == []


@pytest.fixture
def other(root: Path, out: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the run folder of `out`."""
    command = [sys.executable, "-c", CHILD, str(RunFolder(out).path)]
    with subprocess.Popen(command, cwd=root, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout
        assert child.stdout.readline() == "locked\n"
        yield child
        child.kill()


def test_another_process_is_named_and_a_killed_one_forgotten(
    backbone: memtok.Backbone, data: DataSource, out: Path, other: subprocess.Popen[str]
) -> None:
    holder = f"process {other.pid} on {socket.gethostname()}"
    for more in ({}, {"resume": True}, {"overwrite": True}):
        listener = Recorder()
        with pytest.raises(MemtokError, match=rf"nobody else at work in .*\({re.escape(holder)}\)"):
            quick(new_task(backbone, data), data, out=out, progress=listener, **more)
        assert listener.said("start") == []
    assert not RunFolder(out).state.exists()
    other.kill()
    other.wait()
    quick(new_task(backbone, data), data, out=out, resume=True)
    assert out.exists()


def test_a_lock_is_free_again_when_its_block_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    with locked(tmp_path):
        assert refusals(lambda: locked(tmp_path).__enter__())
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock"]
