"""Variables of a launcher that were left in the environment stop a command before it works."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Run


@pytest.mark.parametrize("left", [{"RANK": "1"}, {"WORLD_SIZE": "2"}])
@pytest.mark.parametrize("command", ["train", "sweep"])
def test_commands_refuse_before_they_work(
    command: str,
    left: dict[str, str],
    workspace: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    out = "new.safetensors" if command == "train" else "new"
    found = run(command, "--backbone", "tiny.safetensors", "--data", "folder:photos", "--steps", "1", "--out", out)
    assert (found.code, found.out) == (1, "")
    assert all(f"{name}={value}" in found.error for name, value in left.items())
    assert not list(workspace.glob("new*"))


def test_several_processes_say_that_they_choose_no_form(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29599"}
    for name, value in launch.items():
        monkeypatch.setenv(name, value)
    words = ("--backbone", "tiny.safetensors", "--data", "folder:absent", "--out", "new.safetensors")
    assert "--regime memory" in run("train", *words).err
    assert "--regime memory" not in run("train", *words, "--regime", "head").err
    monkeypatch.setenv("RANK", "1")
    assert "--regime memory" not in run("train", *words).err
