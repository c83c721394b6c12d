"""A readout reads the trunk's last layers and changes nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import memtok
from memtok import levels as memtok_levels
from tests.layers.small_models import small_model
from tests.parts.trunk_levels import levels, normalised
from tests.tiny import bytes_of, tiny_backbone, tiny_images, tiny_task, tiny_vit

CLASSES = ["cat", "dog", "cow"]


@pytest.fixture(scope="module")
def backbone() -> memtok.Backbone:
    return tiny_backbone(depth=3, reg_tokens=2, no_embed_class=True)


def vectors(tokens: Tensor, name: str, prefix: int) -> Tensor:
    """(B, k, D) a statistic of normalised tokens (B, N, D), written out for a grid of 4 x 4 patches."""
    patches = tokens[:, prefix:]
    if name in ("class", "registers"):
        return tokens[:, :1] if name == "class" else tokens[:, 1:prefix]
    if name == "mean":
        return patches.mean(dim=1, keepdim=True)
    if name == "deviation":
        return ((patches - patches.mean(dim=1, keepdim=True)).pow(2).mean(dim=1, keepdim=True) + 1e-6).sqrt()
    quarters = [[row * 4 + column for row in rows for column in columns] for rows in HALVES for columns in HALVES]
    return torch.stack([patches[:, quarter].mean(dim=1) for quarter in quarters], dim=1)


HALVES = (0, 1), (2, 3)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("statistics", [None, "class+mean", "registers", "deviation+mean", "regions"])
def test_it_adds_one_product_with_the_statistics_of_the_last_levels(
    backbone: memtok.Backbone, count: int, statistics: str | None
) -> None:
    task = tiny_task(backbone, readout=count, statistics=statistics, regime="head")
    names = (statistics or "class+deviation+regions").split("+")
    names.sort(key=["class", "registers", "mean", "deviation", "regions"].index)
    assert task.statistics == "+".join(names)
    assert backbone.grid == (4, 4)
    images = tiny_images(4)
    read = backbone.trace(images, reads=task.reads).statistics
    assert {name: one.shape[1] for name, one in read.items()} == dict.fromkeys(names, count)  # no level more
    expected = task.head(backbone(images)[0])
    for place, tokens in enumerate(levels(backbone.vit, images)[-count:]):
        read = torch.cat([vectors(normalised(tokens), name, 3) for name in names], dim=1)
        expected = expected + read.flatten(1) @ task.readout["weight"][:, place].flatten(1).T
    found = memtok.MemoryViT(backbone, [task])(images)["pets"]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_an_odd_grid_has_its_middle_in_both_halves() -> None:
    grid = torch.arange(9.0).reshape(1, 9, 1)
    assert memtok_levels.regions(grid, (3, 3)).flatten().tolist() == [2.0, 3.0, 5.0, 6.0]


def test_without_class_token_it_reads_the_patches_alone() -> None:
    vit = small_model("no class token, mean")
    backbone = memtok.load_backbone(vit)
    assert backbone.class_token is None
    task = tiny_task(backbone, readout=1, regime="head", statistics="class+mean")
    images = tiny_images(3)
    mean = normalised(levels(vit, images)[-1])[:, backbone.prefix_tokens :].mean(dim=1)
    expected = task.head(backbone(images)[0]) + mean @ task.readout["weight"][:, 0, 0].T
    torch.testing.assert_close(memtok.MemoryViT(backbone, [task])(images)["pets"], expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(memtok.MemtokError) as caught:
        tiny_task(backbone, readout=1, regime="head", statistics="class")
    assert caught.value.argument == "statistics"


def test_a_new_one_changes_no_answer(backbone: memtok.Backbone) -> None:
    made = {"name": "pets", "classes": CLASSES, "seed": 3}
    plain, reading = (memtok.Task.create(backbone, **made, readout=count) for count in (0, 3))
    images = tiny_images(4)
    one, other = (memtok.MemoryViT(backbone, [task])(images)["pets"] for task in (plain, reading))
    assert torch.equal(one, other)
    assert set(reading.tensors()) - set(plain.tensors()) == {"readout.weight"}
    assert reading.tensors()["readout.weight"].shape == (3, 3, 6, 32)


def test_a_regime_reads_all_levels_by_default(backbone: memtok.Backbone, tmp_path: Path) -> None:
    made: dict[str, Any] = {"name": "pets", "classes": CLASSES, "seed": 3}
    task = memtok.Task.create(backbone, **made, regime="readout")
    assert task.sizes == {"classes": 3, "memory": 0, "queries": 0, "adapter_rank": 0, "readout": 4, "side": 0}
    assert task.composable
    assert memtok.Task.create(backbone, **made, regime="readout", readout=2, statistics="mean").sizes["readout"] == 2
    head = memtok.Task.create(backbone, **made, regime="head", readout="all")
    assert bytes_of(head) == bytes_of(task)
    assert head.fingerprint != task.fingerprint  # the regime is part of it
    task.save(tmp_path / "pets.safetensors")
    again = memtok.load_task(tmp_path / "pets.safetensors", backbone)
    assert (again.regime, again.fingerprint) == ("readout", task.fingerprint)
    tensors = {name: tensor for name, tensor in task.tensors().items() if name != "readout.weight"}
    with pytest.raises(memtok.MemtokError, match="expected readout of 1 or more in task 'pets'"):
        memtok.Task(backbone, name="pets", classes=CLASSES, tensors=tensors, regime="readout")


def test_put_together_each_answers_as_alone_and_as_the_reference(backbone: memtok.Backbone) -> None:
    first = tiny_task(backbone, "a", seed=1, readout=2)
    tasks = [
        first,
        tiny_task(backbone, "b", seed=2, readout=3, memory=0, adapter_rank=2),
        tiny_task(backbone, "c", seed=3, readout=1, regime="head"),
        tiny_task(backbone, "d", seed=4, extends=[first], readout=3),
        tiny_task(backbone, "e", seed=5),
    ]
    images = tiny_images(3)
    with torch.no_grad():
        features, base = backbone(images)
        out = memtok.MemoryViT(backbone, tasks)(images)
        assert torch.equal(out.base, base)
        assert torch.equal(out.features, features)
        reference = memtok.reference_outputs(backbone, tasks, images)
        for task in tasks:
            alone = memtok.MemoryViT(backbone, [*task.ancestors(), task])(images)[task.name]
            torch.testing.assert_close(out[task.name], alone, atol=2e-5, rtol=1e-5)
            torch.testing.assert_close(out[task.name], reference[task.name], atol=2e-5, rtol=1e-5)
        lone = memtok.MemoryViT(backbone, [tasks[2]])
        assert torch.equal(out["c"], lone(images)["c"])
        # Without the base output, and from one trace for models that read fewer layers.
        model = memtok.MemoryViT(backbone, tasks)
        trace = model.trace(images, base=False)
        assert torch.equal(lone.answer(model.trace(images))["c"], out["c"])
        assert torch.equal(
            model.select(["b"]).answer(trace, base=False)["b"], model.select(["b"])(images, base=False)["b"]
        )


def test_a_trace_without_statistics_is_refused(backbone: memtok.Backbone) -> None:
    plain, reading = tiny_task(backbone, "plain"), tiny_task(backbone, "reading", readout=2)
    trace = memtok.MemoryViT(backbone, [plain]).trace(tiny_images(2))
    with pytest.raises(memtok.MemtokError):
        memtok.MemoryViT(backbone, [reading]).answer(trace)


def test_gradients_are_those_of_the_reference(backbone: memtok.Backbone) -> None:
    images = tiny_images(3)
    found = []
    for forward in (
        lambda task: memtok.MemoryViT(backbone, [task])(images),
        lambda task: memtok.reference_outputs(backbone, [task], images),
    ):
        task = tiny_task(backbone, readout=2)
        forward(task)["pets"].square().sum().backward()
        found.append({name: parameter.grad for name, parameter in task.named_parameters()})
    assert float(found[0]["readout.weight"].abs().max()) > 1e-3
    for name, gradient in found[1].items():
        torch.testing.assert_close(found[0][name], gradient, atol=1e-4, rtol=1e-4)
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_files_keep_it(backbone: memtok.Backbone, tmp_path: Path) -> None:
    task = tiny_task(backbone, readout=2)
    task.save(tmp_path / "pets.safetensors")
    again = memtok.load_task(tmp_path / "pets.safetensors", backbone)
    assert bytes_of(again) == bytes_of(task)
    assert again.fingerprint == task.fingerprint
    assert again.sizes["readout"] == 2
    with torch.no_grad():
        again.readout["weight"][0, 0, 0, 0] += 1
    assert again.fingerprint != task.fingerprint
    deep = memtok.load_backbone(tiny_vit(depth=3, reg_tokens=2, no_embed_class=True, seed=5))
    with pytest.raises(memtok.MemtokError):
        memtok.load_task(tmp_path / "pets.safetensors", deep)


@pytest.mark.parametrize(
    "wrong",
    [
        {"readout": -1},
        {"readout": 5},
        {"readout": 1.0},
        {"readout": True},
        {"readout": 0, "regime": "readout"},
        {"readout": "most"},
        {"readout": "all", "regime": "memory-shared"},
        {"readout": 1, "regime": "memory-shared"},
        {"readout": 1, "regime": "head+class"},
    ],
)
def test_wrong_numbers_are_refused(backbone: memtok.Backbone, wrong: dict[str, Any]) -> None:
    with pytest.raises(memtok.MemtokError) as caught:
        memtok.Task.create(backbone, name="pets", classes=CLASSES, **wrong)
    assert caught.value.argument == "readout"


@pytest.mark.parametrize(
    "wrong",
    [
        {"readout": 1, "statistics": "median"},
        {"readout": 1, "statistics": "mean+mean"},
        {"readout": 1, "statistics": ""},
        {"readout": 1, "statistics": 3},
        {"statistics": "mean"},
        {"readout": 0, "statistics": "mean"},
    ],
)
def test_wrong_statistics_are_refused(backbone: memtok.Backbone, wrong: dict[str, Any]) -> None:
    with pytest.raises(memtok.MemtokError) as caught:
        memtok.Task.create(backbone, name="pets", classes=CLASSES, **wrong)
    assert caught.value.argument == "statistics"


def test_only_a_task_that_reads_says_what(backbone: memtok.Backbone, tmp_path: Path) -> None:
    plain, reading = tiny_task(backbone, "plain"), tiny_task(backbone, "reading", readout=1, statistics="mean+class")
    assert plain.choices == {"placement": "before-norm"}
    assert reading.choices == {"placement": "before-norm", "statistics": "class+mean"}
    memtok.save_tasks([plain, reading], tmp_path / "both.safetensors")
    again = memtok.load_tasks(tmp_path / "both.safetensors", backbone)
    assert [task.fingerprint for task in again] == [plain.fingerprint, reading.fingerprint]


def test_folding_what_was_measured_changes_no_answer(backbone: memtok.Backbone) -> None:
    task = tiny_task(backbone, readout=3, statistics="class+mean")
    images = tiny_images(6)
    model = memtok.MemoryViT(backbone, [task])
    read = backbone.trace(images, reads=task.reads).statistics
    spread = {name: values.std(dim=0) + 0.1 for name, values in read.items()}
    task.measure({name: (values.mean(dim=0), spread[name]) for name, values in read.items()})
    assert set(task.measured) == {"readout.mean", "readout.spread"} == set(task.measurable)
    assert not set(task.measured) & set(task.tensors())
    with torch.no_grad():
        standardised, reference = model(images)["pets"], memtok.reference_outputs(backbone, [task], images)["pets"]
        kept = memtok.Task.create(backbone, name="kept", classes=CLASSES, readout=3, statistics="class+mean")
        for name, parameter in kept.named().items():
            parameter.copy_(task.tensors()[name])
        task.fold()
        assert not task.measured
        assert bytes_of(task) == bytes_of(kept)
        torch.testing.assert_close(model(images)["pets"], standardised, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(reference, standardised, atol=1e-4, rtol=1e-4)
    weight = task.readout["weight"].detach().clone()
    task.fold()
    assert torch.equal(task.readout["weight"], weight)


def test_verification_covers_it(backbone: memtok.Backbone) -> None:
    tasks = [tiny_task(backbone, "a", readout=3), tiny_task(backbone, "b", seed=1, regime="readout")]
    report = memtok.verify(backbone, tasks, source=backbone.vit, images=4)
    assert report.ok


def test_it_trains_alone_and_together(backbone: memtok.Backbone) -> None:
    data = memtok.open_data("digits").only(["0", "1"])

    def made(name: str, **more: Any) -> memtok.Task:
        return memtok.Task.create(backbone, name=name, classes=data.classes, seed=0, **more)

    settings = {"steps": 4, "batch_size": 8, "device": "cpu", "workers": 0, "augment": "none"}
    alone = made("a", readout=2, regime="head")
    before = bytes_of(backbone)
    memtok.train(alone, data, learning_rate=0.05, **settings)
    assert float(alone.readout["weight"].detach().abs().max()) > 0
    assert bytes_of(backbone) == before
    both = [made("a", readout=2, regime="head"), made("b", readout=3, memory=1)]
    memtok.train_together(both, data, learning_rates=[0.05, 0.05], **settings)
    torch.testing.assert_close(both[0].readout["weight"], alone.readout["weight"], atol=1e-5, rtol=1e-4)


def test_from_kept_traces_it_trains_as_from_images(backbone: memtok.Backbone, tmp_path: Path) -> None:
    data = memtok.open_data("digits").only(["0", "1"])
    settings = {"steps": 6, "batch_size": 8, "device": "cpu", "workers": 0, "augment": "none", "learning_rate": 0.05}
    trained = []
    for more in ({}, {"keep_traces": "ram"}, {"keep_traces": "disk", "trace_dir": tmp_path / "traces"}):
        task = memtok.Task.create(backbone, name="a", classes=data.classes, readout=2, memory=1, seed=0)
        memtok.train(task, data, **settings, **more)
        trained.append(task)
    assert bytes_of(trained[1]) == bytes_of(trained[2])
    torch.testing.assert_close(trained[1].readout["weight"], trained[0].readout["weight"], atol=2e-3, rtol=2e-2)
