"""A side stream reads the trunk's patches level by level and changes nothing else."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import memtok
from memtok.traces import OpenStores
from memtok.training import train_together
from tests.layers.small_models import small_model
from tests.operators import calls
from tests.parts.trunk_levels import levels, normalised
from tests.tiny import bytes_of, tiny_backbone, tiny_images, tiny_task, tiny_vit

CLASSES = ["cat", "dog", "cow"]
SETTINGS: dict[str, Any] = {"steps": 6, "batch_size": 8, "device": "cpu", "workers": 0, "augment": "none"}


@pytest.fixture(scope="module")
def backbone() -> memtok.Backbone:
    return tiny_backbone(depth=3, reg_tokens=2, no_embed_class=True)


def normed(state: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return (state - state.mean(-1, keepdims=True)) / np.sqrt(state.var(-1, keepdims=True) + 1e-5)  # type: ignore[no-any-return]


def gelu(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return torch.nn.functional.gelu(torch.from_numpy(values)).numpy()


def read_by_hand(task: memtok.Task, read: list[Tensor], grid: tuple[int, int], prefix: int) -> Tensor:
    """(B, classes) what a side stream adds, of the tokens (B, N, D) of its levels: one patch after the other."""
    own = {name: tensor.detach().double().numpy() for name, tensor in task.side.items()}
    rows, columns = grid
    batch, width = len(read[0]), own["bias"].shape[1]
    state = np.zeros((batch, rows, columns, width))
    for level, tokens in enumerate(read):
        numbers = tokens.double().numpy()
        patches = numbers[:, prefix:].reshape(batch, rows, columns, -1)
        state = state + patches @ own["patches"][level].T + own["bias"][level]
        if "token" in own:
            state = state + (numbers[:, 0] @ own["token"][level].T)[:, None, None]
        before, moved = normed(state), np.zeros_like(state)
        for row in range(rows):
            for column in range(columns):
                for down in (-1, 0, 1):
                    for right in (-1, 0, 1):
                        if 0 <= row + down < rows and 0 <= column + right < columns:
                            kernel = own["mix"][level][:, down + 1, right + 1]
                            moved[:, row, column] += kernel * before[:, row + down, column + right]
        state = state + moved
        state = state + gelu(normed(state) @ own["up"][level].T) @ own["down"][level].T
    last = torch.from_numpy(normed(state)).permute(0, 3, 1, 2)
    windows = torch.nn.functional.adaptive_avg_pool2d(last, 4).flatten(2)
    vectors = torch.cat([last.mean(dim=(2, 3)).unsqueeze(2), windows], dim=2)
    return torch.einsum("brs,csr->bc", vectors, torch.from_numpy(own["weight"])).float()


@pytest.mark.parametrize("size", [32, 48, (24, 40)], ids=str)
@pytest.mark.parametrize("kind", ["registers", "no class token, mean"])
def test_it_adds_what_the_equations_say(kind: str, size: int | tuple[int, int]) -> None:
    vit = tiny_vit(depth=3, reg_tokens=2, no_embed_class=True) if kind == "registers" else small_model(kind)
    backbone = memtok.load_backbone(vit, image_size=size)
    vit.set_input_size(img_size=backbone.preprocessing.image_size)
    task = tiny_task(backbone, side=5, regime="head")
    assert ("token" in task.side) == (kind == "registers")
    images = torch.randn(3, 3, *backbone.preprocessing.image_size, generator=torch.Generator().manual_seed(0))
    read = [normalised(tokens) for tokens in levels(vit, images)[backbone.depth % 2 :: 2]]
    with torch.no_grad():
        expected = task.head(backbone(images)[0]) + read_by_hand(task, read, backbone.grid, backbone.prefix_tokens)
        for found in (memtok.MemoryViT(backbone, [task])(images), memtok.reference_outputs(backbone, [task], images)):
            torch.testing.assert_close(found["pets"], expected, atol=1e-5, rtol=1e-5)


def test_put_together_each_answers_as_alone_and_as_the_reference(backbone: memtok.Backbone) -> None:
    first = tiny_task(backbone, "a", seed=1, side=4, readout=2)
    tasks = [
        first,
        tiny_task(backbone, "b", seed=2, side=4, memory=0, adapter_rank=2),
        tiny_task(backbone, "c", seed=3, side=4, regime="head", classes=5),
        tiny_task(backbone, "d", seed=4, side=3, regime="head"),
        tiny_task(backbone, "e", seed=5, side=4, extends=[first]),
        tiny_task(backbone, "f", seed=6, regime="head", readout=3),
        tiny_task(backbone, "g", seed=7, side=4, regime="head", classes=5),
    ]
    images = tiny_images(3)
    with torch.no_grad():
        features, base = backbone(images)
        model = memtok.MemoryViT(backbone, tasks)
        out = model(images)
        assert torch.equal(out.base, base)
        assert torch.equal(out.features, features)
        reference = memtok.reference_outputs(backbone, tasks, images)
        with model.folded():
            folded = model(images)
        from_trace = model.answer(model.trace(images))
        for task in tasks:
            alone = memtok.MemoryViT(backbone, [*task.ancestors(), task])(images)[task.name]
            for other in (alone, reference[task.name], folded[task.name], from_trace[task.name]):
                torch.testing.assert_close(out[task.name], other, atol=2e-5, rtol=1e-5)
    assert memtok.verify(backbone, tasks, source=backbone.vit, images=4).ok


def test_tasks_of_one_width_share_a_product_per_level(backbone: memtok.Backbone) -> None:
    images = tiny_images(2)
    tasks = [tiny_task(backbone, name, regime="side", classes=2 + seed, seed=seed) for seed, name in enumerate("abc")]
    counts = []
    for some in (tasks[:1], tasks):
        model = memtok.MemoryViT(backbone, some)
        with model.folded(), torch.no_grad():
            model(images)
            counts.append(calls(lambda model=model: model(images)))  # type: ignore[misc]
    one, three = counts
    assert three["mm"] - one["mm"] == 2  # what each head reads of its state
    assert all(one[name] == three[name] for name in ("bmm", "convolution", "native_layer_norm", "gelu"))


def reference(backbone: memtok.Backbone, images: Tensor, tasks: list[memtok.Task]) -> memtok.Outputs:
    return memtok.reference_outputs(backbone, tasks, images)


def test_gradients_are_those_of_the_reference(backbone: memtok.Backbone) -> None:
    double, images = memtok.load_backbone(backbone.vit, dtype=torch.float64), tiny_images(3).double()
    found = []
    for forward in (lambda tasks: memtok.MemoryViT(double, tasks)(images), partial(reference, double, images)):
        tasks = [tiny_task(double, name, seed=seed, side=4).double() for seed, name in enumerate("ab")]
        out = forward(tasks)
        torch.stack([out[name].square().sum() for name in "ab"]).sum().backward()
        found.append({(task.name, name): tensor.grad for task in tasks for name, tensor in task.named_parameters()})
    for key, gradient in found[1].items():
        torch.testing.assert_close(found[0][key], gradient, atol=1e-9, rtol=1e-7)
        assert float(gradient.abs().max()) > 1e-4
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_a_trace_without_patches_is_refused(backbone: memtok.Backbone) -> None:
    plain, reading = tiny_task(backbone, "plain", readout=4), tiny_task(backbone, "reading", side=2)
    trace = memtok.MemoryViT(backbone, [plain]).trace(tiny_images(2))
    with pytest.raises(memtok.MemtokError):
        memtok.MemoryViT(backbone, [reading]).answer(trace)


def test_files_keep_it(backbone: memtok.Backbone, tmp_path: Path) -> None:
    task = tiny_task(backbone, side=3)
    task.save(tmp_path / "pets.safetensors")
    again = memtok.load_task(tmp_path / "pets.safetensors", backbone)
    assert bytes_of(again) == bytes_of(task)
    assert again.fingerprint == task.fingerprint
    assert again.sizes["side"] == 3
    deep = memtok.load_backbone(tiny_vit(depth=5, reg_tokens=2, no_embed_class=True, seed=5))
    with pytest.raises(memtok.MemtokError):
        memtok.load_task(tmp_path / "pets.safetensors", deep)


@pytest.mark.parametrize("wrong", [{"side": -1}, {"side": 1.0}, {"side": True}, {"side": 1, "regime": "head+class"}])
def test_wrong_numbers_are_refused(backbone: memtok.Backbone, wrong: dict[str, Any]) -> None:
    with pytest.raises(memtok.MemtokError) as caught:
        memtok.Task.create(backbone, name="pets", classes=CLASSES, **wrong)
    assert caught.value.argument == "side"


def test_it_trains_from_images_and_from_kept_features_alone_and_together(
    backbone: memtok.Backbone, tmp_path: Path
) -> None:
    data = memtok.open_data("digits").only(["0", "1"])

    def made(**more: Any) -> memtok.Task:
        return memtok.Task.create(backbone, name="a", classes=data.classes, seed=0, side=4, regime="head", **more)

    before = bytes_of(backbone)
    trained = []
    for more in ({}, {"keep_traces": "ram"}, {"keep_traces": "disk", "trace_dir": tmp_path / "traces"}):
        trained.append(made(readout=2))
        # The only validation is that of the last state, which tasks trained together keep.
        memtok.train(trained[-1], data, learning_rate=0.05, validate_every=6, **SETTINGS, **more)
    assert bytes_of(backbone) == before
    assert bytes_of(trained[1]) == bytes_of(trained[2])
    both = [made(readout=2), made()]
    both[1].name = "b"
    with OpenStores() as stores:
        train_together(both, data, learning_rates=[0.05, 0.05], keep_traces="ram", stores=stores, **SETTINGS)
    fresh = made(readout=2)
    for name, tensor in trained[1].named().items():
        torch.testing.assert_close(trained[0].named()[name], tensor, atol=5e-3, rtol=5e-2)
        torch.testing.assert_close(both[0].named()[name], tensor, atol=1e-4, rtol=1e-3)
        assert not tensor.numel() or not torch.equal(fresh.named()[name], tensor)


@pytest.mark.parametrize("regime", ["side", "readout"])
def test_with_memory_it_is_a_task_of_regime_memory(backbone: memtok.Backbone, regime: str) -> None:
    task = memtok.Task.create(backbone, name="pets", classes=CLASSES, regime=regime, memory=3, seed=0)
    assert (task.regime, task.queries, task.cells) == ("memory", 1, 3)
    assert (task.sizes["side"], task.sizes["readout"]) == ((16, 0) if regime == "side" else (0, 4))
    queries = memtok.Task.create(backbone, name="pets", classes=CLASSES, regime=regime, queries=2, side=8, seed=0)
    assert (queries.regime, queries.queries, queries.cells, queries.sizes["side"]) == ("memory", 2, 0, 8)
    assert memtok.Task.create(backbone, name="pets", classes=CLASSES, regime=regime, memory=0).regime == regime


def test_kept_features_are_patches_of_every_second_level(backbone: memtok.Backbone) -> None:
    read = backbone.trace(tiny_images(2), reads=tiny_task(backbone, side=2).reads).statistics
    assert {name: tuple(one.shape) for name, one in read.items()} == {
        "class": (2, 4, 1, 32),
        "patches": (2, 2, 4, 4, 32),
    }
