"""The eleven faults of the public reproduction, and one test against each, named after it.

What they were, and which option or class of memtok stands in their place: docs/coming-from-the-reproduction.md.
"""

from __future__ import annotations

import itertools
import json
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

import memtok
from memtok.backbone import Backbone
from memtok.checkpoint import Checkpoint, save_checkpoint
from memtok.checkpoint.architecture import build
from memtok.checkpoint.architectures.vit import VitArchitecture
from memtok.data import DATASETS, DataSource, evaluation_transform, open_data
from memtok.data.published import Published
from memtok.data.sources import ArrayStore, ImageSet
from memtok.training.recipes import RECIPES, learning_rate_at
from tests.tiny import bytes_of, tiny_backbone, tiny_images, tiny_task, tiny_vit

QUICK: dict[str, Any] = {"steps": 3, "batch_size": 8, "device": "cpu", "workers": 0, "learning_rate": 0.05}


@contextmanager
def seen_images(backbone: Backbone) -> Iterator[list[Tensor]]:
    """While it lasts, every image (3, height, width) that the backbone is given is kept in the list."""
    seen: list[Tensor] = []
    hook = backbone.vit.patch_embed.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[0].clone()))
    try:
        yield seen
    finally:
        hook.remove()


def pictures(part: str, count: int, classes: int, seed: int) -> ImageSet:
    """Pictures of 32 px of noise, labels in turn."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(count, dtype=np.int64) % classes
    return ImageSet(ArrayStore(pixels, part), np.arange(count), labels)


@pytest.fixture
def cifar100(monkeypatch: pytest.MonkeyPatch) -> DataSource:
    """`cifar100` as memtok registers it, with 40 + 12 pictures of three classes in place of the download."""
    few = Published.of_two_parts(("a", "b", "c"), pictures("train", 40, 3, seed=0), pictures("test", 12, 3, seed=1))
    monkeypatch.setitem(DATASETS, "cifar100", replace(DATASETS["cifar100"], read=lambda _: few))
    return open_data("cifar100")


def task_for(backbone: Backbone, data: DataSource, **more: Any) -> memtok.Task:
    return memtok.Task.create(backbone, name="task", classes=data.classes, seed=0, **more)


def transformed(images: ImageSet, preprocessing: memtok.Preprocessing) -> list[Tensor]:
    transform = evaluation_transform(preprocessing)
    return [transform(images[index][0]) for index in range(len(images))]


@pytest.mark.twice
@pytest.mark.parametrize("augment", ["inception", None])
def test_fault_01_evaluation_is_never_augmented_randomly(cifar100: DataSource, augment: str | None) -> None:
    """The reproduction evaluates CIFAR-100 under RandomResizedCrop."""
    backbone = tiny_backbone()
    task = task_for(backbone, cifar100)
    expected = torch.stack(transformed(cifar100.test, backbone.preprocessing))
    tables = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        random.seed(seed)
        with seen_images(backbone) as seen:
            tables.append(memtok.evaluate(memtok.MemoryViT(backbone, [task]), "cifar100").to_json())
        assert torch.equal(torch.stack(seen), expected)
    assert tables[0] == tables[1]
    with seen_images(backbone) as seen:  # the same for the validation within a training run, which does augment
        memtok.train(task, cifar100, **QUICK, augment=augment, validate_every=1)
    for image in transformed(cifar100.validation, backbone.preprocessing):
        assert sum(torch.equal(image, other) for other in seen) == QUICK["steps"]
    plain = transformed(cifar100.train, backbone.preprocessing)
    assert not any(torch.equal(image, other) for image in plain for other in seen)


def test_fault_02_pixels_are_normalised_as_the_checkpoint_says(tmp_path: Path) -> None:
    """The reproduction gives the backbone pixels in [0, 1]; this one was trained on pixels in [-1, 1]."""
    stated = memtok.Preprocessing(
        image_size=(32, 32),
        resize=(32, 32),
        crop=False,
        interpolation="bilinear",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.25, 0.125),
        position_resize="timm",
    )
    save_checkpoint(tiny_vit(), stated, tmp_path / "base.safetensors")
    for name, value in (("black", 0), ("white", 255)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(10):
            Image.new("RGB", (40, 40), (value,) * 3).save(tmp_path / "photos" / name / f"{index}.png")
    backbone = memtok.load_backbone(tmp_path / "base.safetensors")
    data = open_data(f"folder:{tmp_path / 'photos'}", data_dir=tmp_path / "data")
    task = task_for(backbone, data)
    values = {(-1.0, -2.0, -4.0), (1.0, 2.0, 4.0)}  # (0 - 0.5) / std and (1 - 0.5) / std
    with seen_images(backbone) as trained:
        memtok.train(task, data, **QUICK, augment="inception")
    with seen_images(backbone) as evaluated:
        memtok.evaluate(memtok.MemoryViT(backbone, [task]), data)
    for seen in (trained, evaluated):
        assert {tuple(colour.tolist()) for image in seen for colour in image.flatten(1).T} == values


@pytest.mark.twice
@pytest.mark.parametrize("split", ["official", "80-20"])
def test_fault_03_no_image_that_is_evaluated_was_trained_on(cifar100: DataSource, split: str) -> None:
    """The reproduction draws its 80/20 split anew in training and in evaluation, from the global generator."""
    backbone = tiny_backbone()
    drawn = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        drawn.append(open_data("cifar100", split=split))
    first, second = drawn
    parts = [(data.train.identities, data.validation.identities, data.test.identities) for data in drawn]
    assert parts[0] == parts[1]
    assert first.split_digest == second.split_digest
    for one, other in itertools.combinations(parts[0], 2):
        assert not set(one) & set(other)
    task = task_for(backbone, first)
    with seen_images(backbone) as trained:
        result = memtok.train(task, first, **QUICK | {"steps": 10}, augment="none", validate_every=10)
    assert result.split_digest == task.record["data"]["split"]["digest"] == second.split_digest
    with seen_images(backbone) as tested:  # `evaluate` opens the data itself, by the split of the task's record
        table = memtok.evaluate(memtok.MemoryViT(backbone, [task]), "cifar100")
    assert table.to_json()["tasks"]["task"]["images"] == len(second.test)
    assert torch.equal(torch.stack(tested), torch.stack(transformed(second.test, backbone.preprocessing)))
    assert not any(torch.equal(image, other) for image in tested for other in trained)


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_fault_04_the_schedule_counts_steps_and_never_rises_again(recipe: str, cifar100: DataSource) -> None:
    """The reproduction's schedule is made for epochs and moved on every batch, so the rate swings up and down."""
    peak, steps = RECIPES[recipe].learning_rate, 1000
    warmup = RECIPES[recipe].warmup(steps)
    assert warmup >= 5  # five steps, not five epochs
    rates = [learning_rate_at(step, peak=peak, warmup=warmup, steps=steps) for step in range(steps)]
    assert rates[:warmup] == sorted(set(rates[:warmup]))
    assert rates[warmup - 1] == max(rates) == peak
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert 0 < rates[-1] < 1e-4 * peak
    settings = QUICK | {"recipe": recipe, "epochs": 4, "augment": "none"}  # 4 epochs of 5 batches
    del settings["steps"]
    used: list[float] = []
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: used.append(optimizer.param_groups[0]["lr"]))
    try:
        result = memtok.train(task_for(tiny_backbone(), cifar100), cifar100, **settings)
    finally:
        hook.remove()
    warmup = RECIPES[recipe].warmup(result.steps)
    assert len(used) == result.steps == 4 * 5
    assert used[:warmup] == sorted(set(used[:warmup]))
    assert used[warmup - 1] == max(used) == QUICK["learning_rate"]
    assert used[warmup:] == sorted(used[warmup:], reverse=True)
    assert 0 < used[-1] < 0.02 * max(used)


def test_fault_05_the_class_token_begins_as_the_base_class_token() -> None:
    """The reproduction draws it with standard deviation 1, some 50 times that of a pre-trained one."""
    backbone = memtok.load_backbone("small")
    one = memtok.Task.create(backbone, name="one", classes=["a", "b"])
    assert torch.equal(one.class_tokens, backbone.class_token[None])
    three = memtok.Task.create(backbone, name="three", classes=["a", "b"], queries=3, seed=0)
    assert torch.equal(three.class_tokens[0], backbone.class_token)
    assert 0.01 < float((three.class_tokens[1:] - backbone.class_token).detach().std()) < 0.03
    assert float(one.memory.detach().std()) == pytest.approx(0.02, rel=0.1)


def test_fault_06_memory_joins_before_the_layer_norm() -> None:
    """In the paper's figure memory passes through the layer's first LayerNorm; in the reproduction it does not.

    What a LayerNorm takes away, the size of a cell and a number added to all of it, cannot matter then.
    """
    backbone, images = tiny_backbone(), tiny_images()

    def answer(change: bool, **more: Any) -> Tensor:
        task = tiny_task(backbone, **more)
        with torch.no_grad():
            if change:
                task.memory.mul_(3).add_(2)
            return memtok.MemoryViT(backbone, [task])(images)["pets"]

    assert tiny_task(backbone).placement == "before-norm"
    torch.testing.assert_close(answer(True), answer(False), atol=1e-4, rtol=1e-4)
    assert (answer(True, placement="after-norm") - answer(False, placement="after-norm")).abs().max() > 0.01


def test_fault_07_concatenating_keeps_who_extends_whom(tmp_path: Path) -> None:
    """The reproduction has one flag for the whole mask, and `concatenate` sets it back to concatenation."""
    backbone, images = tiny_backbone(), tiny_images()
    first, other = tiny_task(backbone, "first", seed=1), tiny_task(backbone, "other", seed=3)
    second = tiny_task(backbone, "second", seed=2, extends=[first])
    grown, apart = memtok.MemoryViT(backbone, [first, second]), memtok.MemoryViT(backbone, [other])
    memtok.save_tasks([other, first, second], tmp_path / "all.safetensors")
    mixed = [grown.concat(apart), apart.concat(grown), apart.add(first).add(second)]
    mixed.append(memtok.MemoryViT(backbone, memtok.load_tasks(tmp_path / "all.safetensors", backbone)))
    with torch.no_grad():
        alone = {**{name: grown(images)[name] for name in ("first", "second")}, "other": apart(images)["other"]}
        for model in mixed:
            out = model(images, attention=True)
            for name, logits in alone.items():
                torch.testing.assert_close(out[name], logits, atol=1e-5, rtol=1e-5)
            literal = memtok.reference_outputs(backbone, model.tasks, images)
            for name, logits in alone.items():
                torch.testing.assert_close(literal[name], logits, atol=1e-5, rtol=1e-5)
        severed = tiny_task(backbone, "second", seed=2)
        cut = memtok.MemoryViT(backbone, [severed])(images)["second"]
    assert (alone["second"] - cut).abs().max() > 0.01  # what it extends matters to it


def test_fault_08_a_later_extension_trains_itself_only_and_no_memory_is_still_masked(cifar100: DataSource) -> None:
    """In the reproduction's MNIST code all memory is one parameter, and a head without memory has no mask at all."""
    backbone, images = tiny_backbone(), tiny_images()
    first = task_for(backbone, cifar100, memory=2)
    first.name = "first"
    memtok.train(first, cifar100, **QUICK)
    before = bytes_of(first)
    with torch.no_grad():
        alone = memtok.MemoryViT(backbone, [first])(images)
    second = memtok.Task.create(backbone, name="second", classes=cifar100.classes, memory=2, extends=[first], seed=1)
    fresh = bytes_of(second)
    result = memtok.train(second, cifar100, **QUICK)
    assert bytes_of(first) == before
    assert {key for key, value in bytes_of(second).items() if value == fresh[key]} == set()
    assert result.trainable_parameters == sum(value.numel() for value in second.tensors().values())
    bare = tiny_task(backbone, "bare", memory=0)
    assert bare.cells == 0
    with torch.no_grad():
        out = memtok.MemoryViT(backbone, [first, second, bare])(images)
        assert torch.equal(out.base, backbone.vit(images))
        torch.testing.assert_close(out["first"], alone["first"], atol=1e-5, rtol=1e-5)
        single = memtok.MemoryViT(backbone, [bare])(images)["bare"]
        torch.testing.assert_close(out["bare"], single, atol=1e-5, rtol=1e-5)
    mask = memtok.attention_mask(17, [bare, first])
    row, column = mask.shape[0] - 2, 17
    assert not mask[:column, column:].any()  # neither image tokens nor the base class token see a task
    assert mask[row, column]
    assert not mask[row, column + 1 :].any()  # the bare task sees itself alone, of all that is new


def test_fault_09_a_task_file_holds_the_task_and_no_backbone(tmp_path: Path, cifar100: DataSource) -> None:
    """The reproduction's files have about 350 MB for 0.35 MB of new numbers: 1 cell, 100 classes, ViT-B/32."""
    architecture = VitArchitecture(
        image_size=(224, 224), patch_size=(32, 32), dim=768, depth=12, heads=12, mlp_hidden=3072, activation="gelu",
        epsilon=1e-12,
    )  # fmt: skip
    vit: Any = build(architecture)  # its numbers are not set, but the one that a task begins with
    torch.nn.init.zeros_(vit.cls_token)
    preprocessing = replace(tiny_backbone().preprocessing, image_size=(224, 224), resize=(224, 224), crop=False)
    backbone = Backbone(Checkpoint(vit, "sha256:" + 64 * "0", preprocessing, "ViT-B/32", "checkpoint"))
    names = [f"class {index}" for index in range(100)]
    task = memtok.Task.create(backbone, name="cifar100", classes=names, memory=1, seed=0)
    task.save(tmp_path / "task.safetensors")
    numbers = 768 + 12 * 768 + 100 * 768 + 100
    size = (tmp_path / "task.safetensors").stat().st_size
    assert 4 * numbers < size < 4 * numbers + 8000
    assert size < 0.36e6 < 349e6 < 4 * sum(value.numel() for value in vit.parameters())
    # The same of all that a run leaves behind.
    small = tiny_backbone()
    memtok.train(task_for(small, cifar100), cifar100, **QUICK, out=tmp_path / "new.safetensors")
    written = sorted(tmp_path.rglob("*.safetensors"))
    assert len(written) >= 3
    for path in written:
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        shapes = {tuple(entry.get("shape", ())) for entry in json.loads(content[8 : 8 + length]).values()}
        assert not shapes & {(96, 32), (32, 32), (128, 32), (1, 17, 32), (2304, 768)}, path.name


def test_fault_10_evaluation_leaves_generators_and_modes_as_they_are(cifar100: DataSource) -> None:
    """The reproduction's `validate` seeds the global generator and leaves the model in evaluation mode."""
    backbone = tiny_backbone()
    task = task_for(backbone, cifar100)
    model = memtok.MemoryViT(backbone, [task])
    random.seed(11)
    np.random.seed(12)
    torch.manual_seed(13)

    def state() -> list[Any]:
        return [random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist(), torch.is_grad_enabled()]

    for mode in (True, False):
        model.train(mode)
        modes = {name: module.training for name, module in model.named_modules()}
        assert mode in modes.values()
        trains = {name: value.requires_grad for name, value in model.named_parameters()}
        before = state()
        memtok.evaluate(model, cifar100)
        assert state() == before
        assert {name: module.training for name, module in model.named_modules()} == modes
        assert {name: value.requires_grad for name, value in model.named_parameters()} == trains
    before = state()
    memtok.train(task, cifar100, **QUICK, augment="inception", validate_every=1)  # validation and augmentation too
    assert state() == before


def test_fault_11_the_backbone_is_frozen_and_costs_no_gradients(cifar100: DataSource) -> None:
    """The reproduction keeps all gradients of the backbone, in every step, and uses none."""
    backbone, images = tiny_backbone(), tiny_images()
    task = task_for(backbone, cifar100)
    model = memtok.MemoryViT(backbone, [task]).train()
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    kept: list[int] = []

    def keep(value: Tensor) -> Tensor:
        kept.append(value.untyped_storage().data_ptr())
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        trace = model.trace(images)
    assert kept == []  # the trunk builds no graph, so nothing of it waits for a backward pass
    assert trace.features is not None
    assert not any(value.requires_grad for value in (*trace.keys, *trace.values, trace.features))
    out = model(images)
    assert out.base is not None
    assert not out.base.requires_grad
    out["task"].sum().backward()
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert all(parameter.grad is not None for parameter in task.parameters())
    asked = images.clone().requires_grad_()  # a saliency map goes through the trunk, and still not into it
    model(asked)["task"].sum().backward()
    assert asked.grad is not None
    assert bool(asked.grad.any())
    assert all(parameter.grad is None for parameter in backbone.parameters())
    before = bytes_of(backbone)
    result = memtok.train(task, cifar100, **QUICK)
    assert bytes_of(backbone) == before
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert result.trainable_parameters == sum(parameter.numel() for parameter in task.parameters())
