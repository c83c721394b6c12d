"""Images as people have them: paths, PIL images, arrays, tensors and lists of them give the same input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import memtok
from memtok.errors import MemtokError
from tests.tiny import tiny_backbone, tiny_images, tiny_task


@pytest.fixture(scope="module")
def model() -> memtok.MemoryViT:
    backbone = tiny_backbone()
    tasks = [tiny_task(backbone, "pets", seed=1), tiny_task(backbone, "cars", seed=2, classes=7)]
    return memtok.MemoryViT(backbone, tasks)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (40, 36, 3), dtype=np.uint8)


def forms(pixels: Any, folder: Path) -> dict[str, Any]:
    """One picture in all its forms."""
    Image.fromarray(pixels).save(folder / "picture.png")
    opened = Image.open(folder / "picture.png")
    alpha = np.concatenate([pixels, np.full((40, 36, 1), 255, dtype=np.uint8)], axis=2)
    return {
        "path": folder / "picture.png",
        "text": str(folder / "picture.png"),
        "PIL": Image.fromarray(pixels),
        "PIL that is not read yet": opened,
        "array": pixels,
        "array that is not contiguous": np.asfortranarray(pixels),
        "array with transparency": alpha,
        "tensor of pixels": torch.from_numpy(pixels).permute(2, 0, 1),
        "list of arrays": [pixels],
        "array of several": pixels[None],
        "generator": (one for one in [pixels]),
    }


def test_all_forms_are_prepared_alike(model: memtok.MemoryViT, pixels: Any, tmp_path: Path) -> None:
    expected = memtok.evaluation_transform(model.preprocessing)(Image.fromarray(pixels))[None]
    for name, form in forms(pixels, tmp_path).items():
        found = model.prepare(form)
        assert found.dtype == torch.float32
        assert torch.equal(found, expected), name
    found = model(model.prepare(pixels))
    assert torch.equal(found["pets"], model(expected)["pets"])


def test_normalised_tensors_stay_as_they_are_and_mix(model: memtok.MemoryViT, pixels: Any) -> None:
    images = tiny_images(2)
    assert torch.equal(model.prepare(images), images)
    assert torch.equal(model.prepare(images[0]), images[:1])
    mixed = model.prepare([images[0], pixels, images])
    assert torch.equal(mixed, torch.stack([images[0], model.prepare(pixels)[0], *images]))


def test_grey_pictures(model: memtok.MemoryViT, pixels: Any) -> None:
    grey = pixels[:, :, 0]
    expected = model.prepare(np.stack([grey] * 3, axis=2))
    for form in (grey, grey[:, :, None], Image.fromarray(grey)):
        assert torch.equal(model.prepare(form), expected)


def test_an_opened_file_is_turned_as_its_path_is(model: memtok.MemoryViT, pixels: Any, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    for ending in ("png", "jpg", "tiff"):
        path = tmp_path / f"turned.{ending}"
        Image.fromarray(pixels).save(path, exif=exif)
        with Image.open(path) as opened:
            assert torch.equal(model.prepare(opened), model.prepare(path)), ending
        assert not torch.equal(model.prepare(path), model.prepare(pixels))


def test_predict_takes_all_forms_mixed(model: memtok.MemoryViT, pixels: Any, tmp_path: Path) -> None:
    other = 255 - pixels
    Image.fromarray(other).save(tmp_path / "other.png")
    expected = memtok.predict(model, tmp_path, top=7).rows
    prepared = model.prepare(other)
    given = [Image.fromarray(other), tmp_path, other, prepared[0], str(tmp_path / "other.png"), prepared]
    found = memtok.predict(model, given, top=7, batch_size=4).rows
    names = ["images[0]", str(tmp_path / "other.png"), "images[2]", "images[3]", "images[5]"]
    assert [row.path for row in found] == [name for name in names for _ in model.names]
    for row in found:
        same = expected[model.names.index(row.task)]
        assert [name for name, _ in row.ranking] == [name for name, _ in same.ranking]
        assert [value for _, value in row.ranking] == pytest.approx([value for _, value in same.ranking], abs=1e-6)


def test_one_lazy_picture_given_many_times(model: memtok.MemoryViT, tmp_path: Path) -> None:
    large = np.random.default_rng(1).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    Image.fromarray(large).save(tmp_path / "large.jpg")
    with Image.open(tmp_path / "large.jpg") as opened:
        found = memtok.predict(model, [opened] * 40)
    first, *others = [dict(row.ranking) for row in found.rows if row.task == "pets"]
    assert len(others) == 39
    assert all(other == pytest.approx(first, abs=1e-5) for other in others)  # batches of other sizes round differently


def test_a_broken_pil_image_is_left_out_by_name(model: memtok.MemoryViT, pixels: Any, tmp_path: Path) -> None:
    Image.fromarray(pixels).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:1000])
    with Image.open(tmp_path / "cut.png") as broken:
        found = memtok.predict(model, [pixels, broken, broken])
        assert [row.path for row in found.rows] == ["images[0]"] * 2
        assert found.skipped == ("images[1]", "images[2]")
        with pytest.raises(MemtokError, match=r"cut\.png"):
            model.prepare(broken)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (np.zeros((40, 36, 3)), "uint8"),
        (np.zeros((40, 36, 3), dtype=np.float32), "uint8"),
        (np.zeros((40, 36), dtype=np.uint16), "uint8"),
        (np.zeros((3, 40, 36), dtype=np.uint8), r"\(height, width, 3\)"),
        (np.zeros((36,), dtype=np.uint8), r"\(height, width, 3\)"),
        (np.zeros((0, 36, 3), dtype=np.uint8), r"\(height, width, 3\)"),
        (torch.zeros(40, 36, 3, dtype=torch.uint8), r"\(3, height, width\)"),
        (torch.zeros(3, 31, 32), r"\(3, 32, 32\)"),
        (torch.zeros(1, 32, 32), r"\(3, 32, 32\)"),
        (torch.zeros(3, 32, 32, dtype=torch.int64), "uint8"),
        (7, "int"),
        ([None], "NoneType"),
        (b"bytes", "int"),
    ],
)
def test_what_is_no_picture_is_one_line(model: memtok.MemoryViT, wrong: Any, said: str) -> None:
    for call in (model.prepare, lambda images: memtok.predict(model, images)):
        with pytest.raises(MemtokError, match=said) as caught:
            call(wrong)
        assert "\n" not in str(caught.value)


def test_no_pictures(model: memtok.MemoryViT) -> None:
    for call in (model.prepare, lambda images: memtok.predict(model, images)):
        with pytest.raises(MemtokError) as error:
            call([])
        assert error.value.argument == "images"


def test_forward_takes_tensors_and_names_what_makes_them(model: memtok.MemoryViT, pixels: Any) -> None:
    for wrong in (
        Image.fromarray(pixels),
        pixels,
        [pixels],
        torch.from_numpy(pixels).permute(2, 0, 1)[None, :, :32, :32],
    ):
        with pytest.raises(MemtokError, match=r"model\.prepare"):
            model(wrong)
