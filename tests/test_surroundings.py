"""What a caller has set in torch makes no difference: default dtype and device, inference mode, no_grad."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

import memtok
from memtok.data import DataSource, open_data
from memtok.training import train_together
from tests.tiny import tiny_images, tiny_vit

VIT = tiny_vit()


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


AROUND: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
    "float64": lambda: default_dtype(torch.float64),
    "inference mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "device": lambda: torch.device("meta"),
    "default device": default_device,
}


@pytest.fixture(params=sorted(AROUND))
def around(request: pytest.FixtureRequest) -> Callable[[], AbstractContextManager[object]]:
    return AROUND[request.param]


@pytest.fixture
def photos(tmp_path: Path) -> DataSource:
    for index in range(24):
        place = tmp_path / "photos" / f"class {index % 2}" / f"{index}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 36), (10 * index, 255 - 10 * index, 90)).save(place)
    return open_data(f"folder:{tmp_path / 'photos'}", data_dir=tmp_path / "data")


def two_tasks(backbone: memtok.Backbone) -> list[memtok.Task]:
    first = memtok.Task.create(backbone, name="a", classes=["class 0", "class 1"], memory=2, adapter_rank=1, seed=1)
    more = {"memory": 1, "queries": 2, "placement": "after-norm", "extends": [first]}
    return [first, memtok.Task.create(backbone, name="b", classes=["class 0", "class 1"], seed=2, **more)]


def values(task: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in task.named_parameters()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype, name
        assert tensor.device == expected[name].device, name
        assert torch.equal(tensor, expected[name]), name


def test_tasks_are_made_saved_loaded_and_answered_as_ever(
    around: Callable[[], AbstractContextManager[object]], tmp_path: Path
) -> None:
    usual = memtok.load_backbone(VIT)
    expected = memtok.MemoryViT(usual, two_tasks(usual))(tiny_images())
    images = tiny_images()
    with around():
        backbone = memtok.load_backbone(VIT)
        tasks = two_tasks(backbone)
        memtok.save_tasks(tasks, tmp_path / "tasks.safetensors")
        loaded = memtok.load_tasks(tmp_path / "tasks.safetensors", backbone)
        model = memtok.MemoryViT(backbone, loaded)
        inside = model(images)
        with model.folded(), torch.no_grad():
            folded = model(images)
    assert backbone.fingerprint == usual.fingerprint
    assert_same(values(backbone), values(usual))
    for made, read, old in zip(tasks, loaded, two_tasks(usual), strict=True):
        assert_same(values(made), values(old))
        assert_same(values(read), values(old))
        assert {tensor.dtype for tensor in values(made).values()} == {torch.float32}
    outside = memtok.MemoryViT(backbone, loaded)(images)
    for out in (inside, folded, outside):
        assert_same(dict(out.logits) | {"base": out.base}, dict(expected.logits) | {"base": expected.base})
    outside["b"].sum().backward()
    assert not any(parameter.is_inference() for parameter in (*backbone.parameters(), *model.parameters()))
    trained = [name for name, parameter in loaded[1].named_parameters() if parameter.grad is not None]
    assert trained == [name for name, _ in loaded[1].named_parameters()]


def test_a_task_is_saved_in_float32_whatever_it_is_in(tmp_path: Path) -> None:
    backbone = memtok.load_backbone(VIT)
    first, second = two_tasks(backbone)
    expected = values(first), first.fingerprint
    for dtype in (torch.float64, torch.float32):
        first.to(dtype).save(tmp_path / "a.safetensors")
        read = memtok.load_task(tmp_path / "a.safetensors", backbone)
        assert_same(values(read), expected[0])
        assert read.fingerprint == first.fingerprint == expected[1]
    assert second.extends == (first,)


def test_a_backbone_is_loaded_as_ever(around: Callable[[], AbstractContextManager[object]], tmp_path: Path) -> None:
    memtok.FullModel.create(memtok.load_backbone(VIT), name="whole", classes=["a", "b"], seed=0).save(
        tmp_path / "whole.safetensors"
    )
    for source in ("small", tmp_path / "whole.safetensors"):
        expected = memtok.load_backbone(source)
        with around():
            found = memtok.load_backbone(source)
        assert found.fingerprint == expected.fingerprint
        assert_same(values(found), values(expected))
        assert not any(parameter.is_inference() for parameter in found.parameters())
    with around():
        again = memtok.load_backbone(source, image_size=64)  # positions are resized
    assert_same(values(again), values(memtok.load_backbone(source, image_size=64)))


def trained(how: str, data: DataSource) -> list[dict[str, Tensor]]:
    """The tensors of a short run and what validation said of it, the run made anew from the backbone on."""
    backbone = memtok.load_backbone(VIT)
    settings = {"steps": 2, "batch_size": 4, "device": "cpu", "workers": 0, "learning_rate": 0.05}
    if how == "full":
        whole = memtok.FullModel.create(backbone, name="whole", classes=data.classes, seed=0)
        results = [memtok.train(whole, data, **settings)]
    elif how == "together":
        own = [memtok.Task.create(backbone, name=name, classes=data.classes, seed=3) for name in "xy"]
        results = train_together(own, data, **{k: v for k, v in settings.items() if k != "learning_rate"})
    else:
        kept = {"keep_traces": "ram"} if how == "kept traces" else {}
        regime = {"regime": "memory-shared"} if how == "variant" else {}
        task = memtok.Task.create(backbone, name="x", classes=data.classes, seed=3, **regime)
        results = [memtok.train(task, data, **settings, **kept)]
    scores = [
        torch.tensor(
            [result.final_accuracy, *(row.get("loss", 0.0) for row in result.history)],
            dtype=torch.float64,
            device="cpu",
        )
        for result in results
    ]
    return [values(result.model) | {"scores": score} for result, score in zip(results, scores, strict=True)]


@pytest.mark.twice
@pytest.mark.parametrize("how", ["memory", "kept traces", "together", "variant", "full"])
def test_training_is_bitwise_as_ever(
    around: Callable[[], AbstractContextManager[object]], how: str, photos: DataSource
) -> None:
    expected = trained(how, photos)
    with around():
        found = trained(how, photos)
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_device()
    with around():
        assert modes == (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_device())
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)


def test_evaluation_and_prediction_are_as_ever(
    around: Callable[[], AbstractContextManager[object]], photos: DataSource, tmp_path: Path
) -> None:
    def measured() -> list[object]:
        model = memtok.MemoryViT(memtok.load_backbone(VIT), two_tasks(memtok.load_backbone(VIT)))
        table = memtok.evaluate(model, {"a": photos, "b": photos}, alone=True, batch_size=5)
        return [table.to_json(), memtok.predict(model, [tmp_path / "photos"], batch_size=5).to_json()]

    expected = measured()
    with around():
        assert measured() == expected
        opened = open_data(f"folder:{tmp_path / 'photos'}", data_dir=tmp_path / "data")
    assert opened.split_digest == photos.split_digest


def test_verification_is_as_ever(around: Callable[[], AbstractContextManager[object]]) -> None:
    backbone = memtok.load_backbone(VIT)
    tasks = [
        memtok.Task.create(backbone, name="pets", classes=["cat", "dog"], memory=2, seed=0),
        memtok.Task.create(backbone, name="birds", classes=["owl", "wren", "tit"], regime="head", seed=1),
    ]
    expected = memtok.verify(backbone, tasks, source=VIT, images=4)
    with around():
        found = memtok.verify(backbone, tasks, source=VIT, images=4)
    assert found.ok
    assert found == expected


def test_transforms_are_as_ever(around: Callable[[], AbstractContextManager[object]]) -> None:
    imagenet = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}  # numbers that half precision rounds
    preprocessing = dataclasses.replace(memtok.load_backbone(VIT).preprocessing, **imagenet)
    picture = Image.linear_gradient("L").convert("RGB").resize((50, 40))

    def transformed() -> list[Tensor]:
        torch.default_generator.manual_seed(0)
        return [
            memtok.evaluation_transform(preprocessing)(picture),
            memtok.training_transform(preprocessing, "none")(picture),
        ]

    expected = transformed()
    with around():
        found = transformed()
    for one, other in zip(found, expected, strict=True):
        assert_same({"": one}, {"": other})
