"""What an export tells while it works: to a listener, on a terminal, and where there is none."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import memtok
from memtok.exports.progress import ExportListener, RichExportListener
from tests.tiny import tiny_backbone, tiny_images, tiny_task

WIDTHS = [40, 80, 120]


class Recorder(ExportListener):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    def reading(self, done: int, total: int) -> None:
        self.told.append(("reading", done, total))

    def stage(self, name: str, number: int, count: int) -> None:
        self.told.append((name, number, count))

    def comparing(self, done: int, total: int) -> None:
        self.told.append(("comparing", done, total))

    def close(self) -> None:
        self.told.append(("close",))


@pytest.fixture(scope="module")
def model() -> memtok.MemoryViT:
    backbone = tiny_backbone(depth=1)
    return memtok.MemoryViT(backbone, [tiny_task(backbone, regime="head")])


def test_a_listener_hears_every_stage_and_how_many_images_are_compared(model: memtok.MemoryViT, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    generator = np.random.default_rng(0)
    for number in range(4):
        place = tmp_path / "photos" / f"class {number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(place / f"{number}.png")
    listener = Recorder()
    parity = f"folder:{tmp_path / 'photos'}"
    result = memtok.export(model, tmp_path / "model.onnx", weights="int8", parity=parity, progress=listener)
    images = result.parity.images
    first = next(index for index, told in enumerate(listener.told) if told[0] == "tracing")
    assert {told[0] for told in listener.told[:first]} == {"reading"}
    assert listener.told[first:] == [
        ("tracing", 1, 5),
        ("converting to ONNX", 2, 5),
        ("quantising", 3, 5),
        ("writing", 4, 5),
        ("comparing with PyTorch", 5, 5),
        ("comparing", 0, images),
        ("comparing", images, images),
        ("close",),
    ]


def test_a_listener_is_closed_where_the_export_fails(model: memtok.MemoryViT, tmp_path: Path) -> None:
    listener = Recorder()
    with pytest.raises(memtok.MemtokError, match="expected answers within 0 of PyTorch's"):
        memtok.export(
            model,
            tmp_path / "model.pt2",
            format="torch",
            parity=tiny_images(20) * float("nan"),
            tolerance=0,
            progress=listener,
        )
    assert listener.told == [
        ("tracing", 1, 3),
        ("writing", 2, 3),
        ("comparing with PyTorch", 3, 3),
        ("comparing", 0, 20),
        ("comparing", 16, 20),
        ("comparing", 20, 20),
        ("close",),
    ]


@pytest.mark.parametrize("width", WIDTHS)
def test_a_terminal_has_one_line_that_fits_and_goes_away(width: int, model: memtok.MemoryViT, tmp_path: Path) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=True, color_system=None)
    memtok.export(
        model, tmp_path / "model.pt2", format="torch", parity=tiny_images(20), progress=RichExportListener(console)
    )
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", plain) if line.strip()]
    assert max(map(len, lines)) <= width
    assert [line for line in lines if line.startswith("tracing ") and line.endswith("stage 1 of 3")]
    (compared,) = {line for line in lines if "20/20" in line}
    assert compared.startswith("comparing with PyTorch ")
    assert stream.getvalue().endswith("\x1b[2K")  # the line is erased


def test_elsewhere_there_is_a_line_per_stage_on_standard_error(
    model: memtok.MemoryViT, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.pt2"
    memtok.export(model, path, format="torch", parity=tiny_images(2))
    assert capsys.readouterr() == ("", "")
    memtok.export(model, path, format="torch", parity=tiny_images(2), progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "stage 1 of 3: tracing",
        "stage 2 of 3: writing",
        "stage 3 of 3: comparing with PyTorch",
    ]
