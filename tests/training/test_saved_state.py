"""What a run is resumed from is whole and of this very run, or it is refused; states of version 0.1 are still read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import memtok
from memtok.data import DataSource, open_data
from memtok.errors import MemtokError
from memtok.training import train_together
from memtok.training.state import RunFolder
from tests.flips import flip
from tests.tiny import bytes_of
from tests.training.helpers import Recorder, new_task, quick

RUN: dict[str, Any] = {"steps": 4, "log_every": 2, "validate_every": 2, "save_every": 1, "validation_images": 8}
FLIPS = 48


def some_bits(size: int, seed: int) -> list[int]:
    """Bits of a file of so many bytes: a third of them in its header."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.cat(
        [
            torch.randint(0, 8 * min(size, 4096), (FLIPS // 3,), generator=generator),
            torch.randint(0, 8 * size, (FLIPS - FLIPS // 3,), generator=generator),
        ]
    )
    return [int(place) for place in places]


def refusal(function: Callable[[], object]) -> str:
    """What a MemtokError says, "" where there is none."""
    try:
        function()
    except MemtokError as error:
        return str(error)
    return ""


@pytest.mark.twice
def test_one_flipped_bit_is_refused_or_harmless(
    backbone: memtok.Backbone, data: DataSource, out: Path, print_seed: Callable[[int | None], int]
) -> None:
    task = new_task(backbone, data, "head")
    quick(task, data, **RUN)
    expected = bytes_of(task)
    with pytest.raises(KeyboardInterrupt):
        quick(new_task(backbone, data, "head"), data, out=out, progress=Recorder(4), **RUN)
    folder = RunFolder(out)
    kept = out.parent / "kept.run"
    shutil.copytree(folder.path, kept)
    whole = folder.state.read_bytes()
    refused = 0
    for bit in some_bits(len(whole), print_seed(None)):
        shutil.rmtree(folder.path)
        shutil.copytree(kept, folder.path)
        folder.state.write_bytes(flip(whole, bit))
        task = new_task(backbone, data, "head", seed=1)
        message = refusal(lambda: quick(task, data, out=out, resume=True, **RUN))  # noqa: B023
        assert "\n" not in message
        assert str(folder.state) in message or (message == "" and bytes_of(task) == expected), f"bit {bit}"
        refused += message != ""
    assert refused > FLIPS / 2


@pytest.mark.twice
def test_one_flipped_bit_of_tasks_that_train_together(
    backbone: memtok.Backbone, data: DataSource, tmp_path: Path, print_seed: Callable[[int | None], int]
) -> None:
    state = tmp_path / "state.safetensors"
    arguments: dict[str, Any] = {"steps": 3, "batch_size": 8, "augment": "none", "device": "cpu", "state": state}

    def end(**more: Any) -> list[dict[str, bytes]]:
        tasks = [new_task(backbone, data, "head", name=name) for name in ("one", "two")]
        train_together(tasks, data, **(arguments | more))
        return [bytes_of(task) for task in tasks]

    expected = end(state=None)
    end(until=2)
    whole = state.read_bytes()
    refused = 0
    for bit in some_bits(len(whole), print_seed(None))[::3]:
        state.write_bytes(flip(whole, bit))
        ends: list[Any] = []
        message = refusal(lambda: ends.extend(end()))  # noqa: B023
        assert "\n" not in message
        assert message or ends == expected, f"bit {bit}"
        refused += message != ""
    assert refused > FLIPS / 6


@pytest.fixture
def old_run(root: Path, out: Path) -> Path:
    """The task file of a run that version 0.1 began: stopped after step 5 of 6, with the state of step 4."""
    sample = root / "tests" / "format" / "v1" / "run"
    RunFolder(out).path.mkdir()
    shutil.copy(sample / "state.safetensors", RunFolder(out).state)
    return out


OLD_RUN: dict[str, Any] = {"steps": 6, "batch_size": 8, "augment": "crop", "validate_every": 3, "validation_images": 16}


@pytest.mark.twice
def test_a_state_of_version_0_1_goes_on(root: Path, data: DataSource, old_run: Path) -> None:
    backbone = memtok.load_backbone("small")
    task = new_task(backbone, data, memory=1, seed=5)
    result = quick(task, data, out=old_run, resume=True, **OLD_RUN)
    assert (result.steps, [row["step"] for row in result.history]) == (6, [2, 3, 4, 6, 6])
    finished = load_file(root / "tests" / "format" / "v1" / "run" / "finished.safetensors")
    for name, value in load_file(old_run).items():
        torch.testing.assert_close(value, finished[name], rtol=1e-4, atol=1e-5)  # perhaps on another machine


def test_a_state_of_version_0_1_is_still_held_to_its_data(old_run: Path, backbone: memtok.Backbone) -> None:
    source = open_data("digits", seed=1).only(["0", "1"])
    task = new_task(memtok.load_backbone("small"), source, memory=1)
    with pytest.raises(MemtokError, match=r"found split .* where that run has split"):
        quick(task, source, out=old_run, resume=True, **OLD_RUN)
