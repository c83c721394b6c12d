"""A readout reads the trunk's last layers and changes nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import memtok
from tests.layers.small_models import small_model
from tests.tiny import bytes_of, tiny_backbone, tiny_images, tiny_task, tiny_vit

CLASSES = ["cat", "dog", "cow"]


@pytest.fixture(scope="module")
def backbone() -> memtok.Backbone:
    return tiny_backbone(depth=3, reg_tokens=2, no_embed_class=True)


def hidden_states(vit: Any, images: Tensor) -> list[Tensor]:
    """(B, N, D) after each layer, as timm computes them."""
    found: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda _, __, output: found.append(output)) for block in vit.blocks]
    with torch.no_grad():
        vit(images)
    for hook in hooks:
        hook.remove()
    return found


def normalised(tokens: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the width of every token."""
    centred = tokens - tokens.mean(dim=-1, keepdim=True)
    return centred / (centred.pow(2).mean(dim=-1, keepdim=True) + 1e-6).sqrt()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_it_adds_one_product_with_the_statistics_of_the_last_layers(backbone: memtok.Backbone, count: int) -> None:
    task = tiny_task(backbone, readout=count, regime="head")
    images = tiny_images(4)
    expected = task.head(backbone(images)[0])
    for place, tokens in enumerate(hidden_states(backbone.vit, images)[-count:]):
        tokens = normalised(tokens)
        class_token, mean = tokens[:, 0], tokens[:, 3:].mean(dim=1)  # one class token, two registers, then patches
        weight = task.readout["weight"][:, place]  # (classes, 2, D)
        expected = expected + class_token @ weight[:, 0].T + mean @ weight[:, 1].T
    found = memtok.MemoryViT(backbone, [task])(images)["pets"]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_without_class_token_it_reads_the_mean_alone() -> None:
    vit = small_model("no class token, mean")
    backbone = memtok.load_backbone(vit)
    assert backbone.class_token is None
    task = tiny_task(backbone, readout=1, regime="head")
    images = tiny_images(3)
    mean = normalised(hidden_states(vit, images)[-1])[:, backbone.prefix_tokens :].mean(dim=1)
    expected = task.head(backbone(images)[0]) + mean @ task.readout["weight"][:, 0, 0].T
    torch.testing.assert_close(memtok.MemoryViT(backbone, [task])(images)["pets"], expected, atol=1e-5, rtol=1e-5)


def test_a_new_one_changes_no_answer(backbone: memtok.Backbone) -> None:
    made = {"name": "pets", "classes": CLASSES, "seed": 3}
    plain, reading = (memtok.Task.create(backbone, **made, readout=count) for count in (0, 3))
    images = tiny_images(4)
    one, other = (memtok.MemoryViT(backbone, [task])(images)["pets"] for task in (plain, reading))
    assert torch.equal(one, other)
    assert set(reading.tensors()) - set(plain.tensors()) == {"readout.weight"}
    assert reading.tensors()["readout.weight"].shape == (3, 3, 2, 32)


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
        {"readout": 4},
        {"readout": 1.0},
        {"readout": True},
        {"readout": 1, "regime": "memory-shared"},
        {"readout": 1, "regime": "head+class"},
    ],
)
def test_wrong_numbers_are_refused(backbone: memtok.Backbone, wrong: dict[str, Any]) -> None:
    with pytest.raises(memtok.MemtokError) as caught:
        memtok.Task.create(backbone, name="pets", classes=CLASSES, **wrong)
    assert caught.value.argument == "readout"


def test_verification_covers_it(backbone: memtok.Backbone) -> None:
    tasks = [tiny_task(backbone, "a", readout=3), tiny_task(backbone, "b", seed=1, readout=1, regime="head")]
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
