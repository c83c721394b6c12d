"""Errors say which argument they are about, wherever they come from and wherever they are carried."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import memtok
from memtok.data import batches, evaluation_transform
from memtok.data.images import UnreadableImageError
from memtok.errors import Argument, DivergedError, MemtokError, spelled
from tests.tiny import tiny_backbone

OPTIONS = {name: "--" + name.replace("_", "-") for name in ("steps", "trace_dir", "keep_traces", "resume")}


def test_a_message_names_arguments_as_python_does() -> None:
    error = MemtokError(
        f"expected {Argument('trace_dir')}, found {Argument('keep_traces', 'ram')}; see {Argument('x', 3)}"
    )
    assert str(error) == "expected trace_dir, found keep_traces='ram'; see x=3"
    assert error.argument == "trace_dir"
    assert MemtokError(f"expected {Argument('steps')}", argument="data").argument == "data"
    assert MemtokError("expected a, found b").argument is None


@pytest.mark.parametrize(
    ("argument", "typed"),
    [
        (Argument("trace_dir"), "--trace-dir"),
        (Argument("steps", 3), "--steps 3"),
        (Argument("keep_traces", "disk"), "--keep-traces disk"),
        (Argument("keep_traces", None), "no --keep-traces"),
        (Argument("resume", True), "--resume"),
        (Argument("extends"), "extends"),  # a command without this option
        (Argument("extends", None), "extends=None"),
    ],
)
def test_a_command_line_names_its_options(argument: Argument, typed: str) -> None:
    assert (
        spelled(MemtokError(f"expected {argument}, found steps").message, OPTIONS) == f"expected {typed}, found steps"
    )


@pytest.mark.parametrize(
    "error",
    [
        MemtokError(f"expected {Argument('steps', 3)}, found {{}} and %s"),
        MemtokError("expected a, found b", argument="steps"),
        DivergedError(f"expected a finite loss; try {Argument('steps', 3)}"),
        UnreadableImageError("a.png", "it is no image"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("carry", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
def test_errors_are_carried_whole(error: MemtokError, carry: Callable[[MemtokError], MemtokError]) -> None:
    carried = carry(error)
    assert type(carried) is type(error)
    assert (str(carried), carried.message, carried.argument) == (str(error), error.message, error.argument)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_a_worker_is_the_same_one(tmp_path: Path, workers: int) -> None:
    for name in ("cats", "dogs"):
        (tmp_path / name).mkdir()
        for index in range(4):
            Image.new("RGB", (40, 40)).save(tmp_path / name / f"{index}.png")
    source = memtok.open_data(f"folder:{tmp_path}")
    for path in tmp_path.glob("*/*.png"):
        path.write_bytes(b"no image any more")
    with pytest.raises(UnreadableImageError) as caught:
        next(batches(source.train, evaluation_transform(tiny_backbone().preprocessing), batch_size=2, workers=workers))
    assert caught.value.argument == "on_bad_image"
