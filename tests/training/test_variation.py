"""One's own augmentation: a callable in the place of memtok's, as reproducible as that, live and kept."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

import memtok
from memtok.backbone import Backbone
from memtok.data import DataSource
from tests.tiny import bytes_of
from tests.training.helpers import Recorder, new_task, quick

TURNED = v2.Compose([v2.RandomRotation(30), v2.RandomHorizontalFlip()])
OWN: dict[str, Any] = {"augment": None}  # `quick` asks for none


def noisy(image: Image.Image) -> torch.Tensor:
    """Draws from numpy's global generator; gives a float tensor larger than the input."""
    noise = np.random.rand(3, 40, 40)
    return torch.from_numpy(0.5 * np.asarray(image.resize((40, 40))).transpose(2, 0, 1) / 255 + 0.5 * noise)


def fails_on_some(image: Image.Image) -> Image.Image:
    raise ZeroDivisionError("by\nzero")


def gives_no_picture(image: Image.Image) -> str:
    return "a picture"


@pytest.mark.twice
@pytest.mark.parametrize("more", [{}, {"keep_traces": "ram", "views": 3}], ids=["live", "kept"])
@pytest.mark.parametrize("transform", [TURNED, noisy], ids=["torchvision", "function"])
def test_it_follows_from_the_seed(
    backbone: Backbone, data: DataSource, out: Path, transform: Any, more: dict[str, Any]
) -> None:
    own = data.varied(transform)
    whole, plain, again, stopped, resumed = (new_task(backbone, data, "head") for _ in range(5))
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
    result = quick(whole, own, **OWN, **more)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index,union-attr]
    quick(plain, data, **more | {"views": 1} if more else {})
    assert bytes_of(whole) != bytes_of(plain)
    torch.rand(3)
    quick(again, own, **OWN, **more, workers=2)
    assert bytes_of(again) == bytes_of(whole)
    with pytest.raises(KeyboardInterrupt):
        quick(stopped, own, out=out, save_every=1, progress=Recorder(stop=6), **OWN, **more)
    with pytest.raises(memtok.MemtokError, match="transform"):
        quick(plain, data.varied(transform, name="another"), out=out, resume=True, **OWN, **more)
    quick(resumed, own, out=out, resume=True, **OWN, **more)
    assert bytes_of(resumed) == bytes_of(whole)
    name = f"{noisy.__module__}.noisy" if transform is noisy else " ".join(repr(TURNED).split())
    assert result.record["hyperparameters"]["augment"] == f"transform {name}"


def test_kept_views_are_those_of_the_epochs(backbone: Backbone, data: DataSource) -> None:
    own, found = data.varied(noisy), []
    for more in ({}, {"keep_traces": "ram", "views": 2}):
        found.append(new_task(backbone, data, "head"))
        quick(found[-1], own, steps=34, **OWN, **more)  # two epochs
    for live, kept in zip(*(task.parameters() for task in found), strict=True):
        torch.testing.assert_close(live, kept, rtol=0, atol=2e-2)


def test_only_training_images_are_varied(backbone: Backbone, data: DataSource) -> None:
    """One call for each image of each step, none in validation."""
    sizes: list[tuple[int, int]] = []

    def blank(image: Image.Image) -> Image.Image:
        sizes.append(image.size)
        return Image.new("RGB", (32, 32), (7, 7, 7))

    task = new_task(backbone, data, "head")
    own = data.varied(blank, name="blank")
    trained = quick(task, own, **OWN, steps=3, batch_size=10, compare_head=False)
    assert sizes == [(8, 8)] * 30
    assert trained.record["hyperparameters"]["augment"] == "transform blank"
    assert not trained.record["hyperparameters"]["flip"]


def test_kept_traces_of_another_transform_are_refused(backbone: Backbone, data: DataSource, tmp_path: Path) -> None:
    kept: dict[str, Any] = OWN | {"keep_traces": "disk", "trace_dir": tmp_path / "traces", "views": 1}
    quick(new_task(backbone, data, "head"), data.varied(noisy), **kept)
    again = quick(new_task(backbone, data, "head"), data.varied(noisy), **kept)
    assert again.record["traces"]["reused"] == again.record["traces"]["records"] > 0
    for other, name in ((TURNED, None), (TURNED, f"{noisy.__module__}.noisy")):  # or whatever it is called
        with pytest.raises(memtok.MemtokError, match=r"augment|other pixels"):
            quick(new_task(backbone, data, "head"), data.varied(other, name=name), **kept)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("transform", [fails_on_some, gives_no_picture])
def test_an_error_in_it_names_image_and_transform(
    backbone: Backbone, data: DataSource, transform: Any, workers: int
) -> None:
    with pytest.raises(memtok.MemtokError) as caught:
        quick(new_task(backbone, data), data.varied(transform), **OWN, workers=workers)
    text = str(caught.value)
    assert "\n" not in text
    assert transform.__name__ in text
    assert any(name in text for name in data.train.identities)
    assert ("ZeroDivisionError: by zero" if transform is fails_on_some else "found str") in text
    assert caught.value.argument == "transform"


@pytest.mark.parametrize(
    "transform", [lambda image: image, v2.Lambda(lambda image: image), object(), print.__call__, "crop"]
)
def test_what_no_name_tells_from_others_needs_one(data: DataSource, transform: Any) -> None:
    with pytest.raises(memtok.MemtokError) as caught:
        data.varied(transform)
    assert caught.value.argument == "transform"
    with pytest.raises(memtok.MemtokError):
        memtok.open_data("digits", transform=transform)
    if callable(transform):
        assert data.varied(transform, name="mine").variation.name == "mine"  # type: ignore[union-attr]
        with pytest.raises(memtok.MemtokError):
            data.varied(transform, name=" ")


@pytest.mark.parametrize("setting", [{"augment": "crop"}, {"augment": "none"}, {"augment": None, "flip": False}])
def test_it_is_instead_of_memtoks_own(backbone: Backbone, data: DataSource, setting: dict[str, Any]) -> None:
    with pytest.raises(memtok.MemtokError) as caught:
        quick(new_task(backbone, data), data.varied(noisy), **setting)
    assert caught.value.argument in setting


def test_what_cannot_be_sent_to_workers_is_told(
    backbone: Backbone, data: DataSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "spawn")
    with pytest.raises(memtok.MemtokError, match="pickled") as caught:
        quick(new_task(backbone, data), data.varied(lambda image: image, name="same"), **OWN, workers=1)
    assert caught.value.argument == "transform"


def test_open_data_takes_it() -> None:
    variation = memtok.open_data("digits", transform=noisy).variation
    assert variation is not None
    assert (variation.transform, variation.name) == (noisy, f"{noisy.__module__}.noisy")
