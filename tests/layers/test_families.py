"""Every family of backbones: bitwise timm's, at any size; task streams answer as the reference; every regime trains."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import pytest
import torch

import memtok
from memtok.backbone import INPUTS, KEYS_AND_VALUES
from memtok.levels import union
from memtok.trace import AbsorbedInputs, read_layer
from memtok.training import FullModel
from tests.layers.small_models import MODELS, ROTARY_OR_NORMED, small_model
from tests.tiny import VARIANTS, bytes_of, tiny_images, tiny_task

every_family = pytest.mark.parametrize("name", sorted(MODELS))


@cache
def small_backbone(name: str, size: int = 32, dtype: torch.dtype = torch.float32) -> memtok.Backbone:
    """The frozen backbone of one of MODELS, loaded once for all tests of a process."""
    return memtok.load_backbone(small_model(name), image_size=size, dtype=dtype)


def several(backbone: memtok.Backbone) -> list[memtok.Task]:
    first = tiny_task(backbone, name="a", memory=3, seed=1)
    tasks = [
        first,
        tiny_task(backbone, name="b", memory=0, queries=2, seed=2),
        tiny_task(backbone, name="c", memory=2, adapter_rank=2, queries=2, extends=[first], readout=2, side=8, seed=3),
        tiny_task(backbone, name="d", regime="head", memory=0, readout=1, side=8, seed=4),
    ]
    return [task.to(backbone.dtype) for task in tasks]


@every_family
@pytest.mark.parametrize("size", [32, 48])
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")
def test_base_and_features_are_bitwise_those_of_timm(name: str, size: int) -> None:
    vit = small_model(name)
    backbone = small_backbone(name, size)
    images = tiny_images(3, size=size)
    if size != 32:
        vit.set_input_size(img_size=(size, size))
    with torch.no_grad():
        features, base = backbone(images)
        assert base is not None
        assert torch.equal(base, vit(images))
        tokens = vit.forward_features(images)
        if vit.cls_token is None:
            assert torch.equal(features, vit.forward_head(tokens, pre_logits=True))
        else:
            last = vit.fc_norm if isinstance(vit.norm, torch.nn.Identity) else torch.nn.Identity()
            assert torch.equal(features, last(tokens[:, 0]))
    model = memtok.MemoryViT(backbone, several(backbone))
    with torch.no_grad():
        out = model(images)
    assert torch.equal(out.base, base)
    assert torch.equal(out.features, features)


@every_family
def test_attention_weights_of_the_class_token_are_those_of_timm(name: str) -> None:
    """They are what timm drops out of, where it does not leave attention to a fused kernel."""
    backbone = small_backbone(name)
    images = tiny_images(2)
    if backbone.class_token is None:
        with pytest.raises(memtok.MemtokError):
            backbone.attention(images)
        return
    vit = small_model(name)
    last = vit.blocks[-1].attn
    last.fused_attn = False
    seen: list[torch.Tensor] = []
    last.attn_drop.register_forward_hook(lambda module, inputs, output: seen.append(output[:, :, 0]))
    with torch.no_grad():
        vit(images)
        torch.testing.assert_close(backbone.attention(images), seen[0], atol=1e-6, rtol=1e-5)


@every_family
@pytest.mark.parametrize("size", [32, 48])
@pytest.mark.parametrize("keep", [KEYS_AND_VALUES, INPUTS])
def test_streams_answer_as_the_reference(name: str, size: int, keep: str) -> None:
    backbone = small_backbone(name, size, torch.float64)
    tasks = several(backbone)
    model = memtok.MemoryViT(backbone, tasks)
    images = tiny_images(3, size=size).double()
    with torch.no_grad():
        expected = memtok.reference_outputs(backbone, tasks, images, attention=True)
        found = model.answer(
            backbone.trace(images, keep=keep, reads=union(task.reads for task in tasks)), attention=True
        )
        torch.testing.assert_close(found.features, expected.features, atol=1e-6, rtol=0)
        torch.testing.assert_close(found.base, expected.base, atol=1e-6, rtol=0)
        for task in tasks:
            torch.testing.assert_close(found[task.name], expected[task.name], atol=1e-6, rtol=0)
        for key, looks in expected.attention.items():
            torch.testing.assert_close(found.attention[key].image, looks.image, atol=1e-6, rtol=0)
            torch.testing.assert_close(found.attention[key].memory, looks.memory, atol=1e-6, rtol=0)


@every_family
def test_gradients_of_the_streams_are_those_of_the_reference(name: str) -> None:
    backbone = small_backbone(name, dtype=torch.float64)
    images = tiny_images(2).double()
    found = []
    for literal in (True, False):
        tasks = several(backbone)
        out = (
            memtok.reference_outputs(backbone, tasks, images) if literal else memtok.MemoryViT(backbone, tasks)(images)
        )
        torch.stack([out[task.name].square().mean() for task in tasks]).sum().backward()
        found.append({(t, key): value for t, task in enumerate(tasks) for key, value in task.named_parameters()})
    for key, parameter in found[0].items():
        zero = torch.zeros_like(parameter)  # for what nothing depends on: memory of no cells, what is extended
        expected, own = (zero if grad is None else grad for grad in (parameter.grad, found[1][key].grad))
        torch.testing.assert_close(own, expected, atol=1e-6, rtol=1e-5)


@every_family
def test_what_cannot_be_absorbed_is_projected(name: str) -> None:
    backbone = small_backbone(name)
    (inputs,) = backbone.trace(tiny_images(2), keep=INPUTS).layers[0]
    with torch.no_grad():
        read = read_layer(backbone.layers[0], (inputs,), backbone.positions()[0], 1)
    assert isinstance(read, AbsorbedInputs) != any(part in name for part in ROTARY_OR_NORMED)


@every_family
@pytest.mark.parametrize("regime", VARIANTS)
def test_variants_answer_and_leave_the_backbone_as_it_is(name: str, regime: str) -> None:
    backbone = small_backbone(name)
    before = bytes_of(backbone)
    task = tiny_task(backbone, regime=regime, memory=0 if regime == "head+class" else 2)
    images = tiny_images(2)
    model = memtok.MemoryViT(backbone, [task])
    out = model(images, attention=True)
    out["pets"].square().mean().backward()
    assert task.class_tokens.grad is not None
    assert bool(task.class_tokens.grad.abs().sum() > 0)
    attention = out.attention["pets"]
    total = attention.image.sum(-1) + attention.class_tokens.sum(-1) + attention.memory.sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total))
    assert bytes_of(backbone) == before


@every_family
def test_a_class_token_that_replaces_the_base_one_is_the_base_one(name: str) -> None:
    """Regime head+class with the base class token itself: the features are the backbone's own."""
    backbone = small_backbone(name)
    if backbone.class_token is None:
        pytest.skip("a model without class token")
    task = memtok.Task.create(backbone, name="pets", classes=["cat", "dog"], regime="head+class", seed=0)
    images = tiny_images(2)
    with torch.no_grad():
        out = memtok.MemoryViT(backbone, [task])(images)
        torch.testing.assert_close(out.embeddings["pets"], out.features, atol=1e-4, rtol=1e-4)


@every_family
def test_a_task_is_verified_saved_and_read_back(name: str, tmp_path: Path) -> None:
    vit, backbone = small_model(name), small_backbone(name)
    tasks = several(backbone)
    report = memtok.verify(backbone, tasks, tiny_images(4), source=vit)
    assert report.ok, report.failures
    memtok.save_tasks(tasks, tmp_path / "all.safetensors")
    again = memtok.load_backbone(copy.deepcopy(vit))
    loaded = memtok.load_tasks(tmp_path / "all.safetensors", again)
    with torch.no_grad():
        expected, found = (
            memtok.MemoryViT(backbone, tasks)(tiny_images()),
            memtok.MemoryViT(again, loaded)(tiny_images()),
        )
    for task in tasks:
        assert torch.equal(found[task.name], expected[task.name])


@every_family
def test_full_fine_tuning_starts_from_it_and_is_read_back(name: str, tmp_path: Path) -> None:
    backbone = small_backbone(name)
    model = FullModel.create(backbone, name="pets", classes=["cat", "dog"], seed=0)
    model(tiny_images(2)).square().mean().backward()
    assert all(value.grad is not None for key, value in model.named_parameters() if ".qkv.weight" in key)
    model.save(tmp_path / "full.safetensors")
    again = memtok.load_backbone(tmp_path / "full.safetensors")
    with torch.no_grad():
        assert torch.equal(again(tiny_images())[1], model(tiny_images()))


@every_family
def test_it_computes_in_half_precision(name: str) -> None:
    backbone = small_backbone(name, dtype=torch.bfloat16)
    model = memtok.MemoryViT(backbone, [tiny_task(backbone, memory=2)])
    with torch.no_grad():
        out = model(tiny_images())
    assert out.features.dtype == torch.bfloat16
    assert bool(out["pets"].isfinite().all())


def test_features_without_class_token_and_without_pooling_are_the_mean_of_the_patches() -> None:
    vit = small_model("no class token, mean", num_classes=0, global_pool="")
    backbone = memtok.load_backbone(vit)
    images = tiny_images(2)
    with torch.no_grad():
        features, base = backbone(images)
        assert base is None
        torch.testing.assert_close(features, vit.forward_features(images)[:, vit.num_prefix_tokens :].mean(dim=1))
    report = memtok.verify(backbone, several(backbone), images, source=vit)
    assert report.ok, report.failures
