"""Descriptions of timm models: read off, rebuilt, and refused by name where task streams do not understand them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from timm.layers import QuickGELU
from timm.models import vision_transformer as timm_vit
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg
from torch import nn

from memtok.checkpoint.architecture import build, check_supported, describe, from_json
from memtok.errors import MemtokError
from tests.checkpoint.tiny_models import VARIANTS, images, tiny_timm


@pytest.mark.parametrize("variant", VARIANTS)
def test_described_and_rebuilt(variant: str) -> None:
    """The rebuilt model has the same description, takes the same numbers and gives the same answer, bit for bit."""
    vit = tiny_timm(**VARIANTS[variant])
    architecture = describe(vit)
    again = from_json(architecture.to_json())
    assert again == architecture
    state = torch.get_rng_state()
    rebuilt = build(again)
    assert torch.equal(torch.get_rng_state(), state)
    assert describe(rebuilt) == architecture
    rebuilt.load_state_dict(vit.state_dict(), strict=True)
    pixels = images(*architecture.image_size)
    with torch.no_grad():
        assert torch.equal(rebuilt.eval()(pixels), vit(pixels))


def test_gate_and_bias_free_head_set_by_hand() -> None:
    vit = tiny_timm()
    vit.head = nn.Linear(32, 5, bias=False)
    for block in vit.blocks:
        block.attn.gate = nn.Linear(32, 32)
    architecture = describe(vit)
    assert architecture.attention_gate
    assert not architecture.head_bias
    rebuilt = build(architecture)
    rebuilt.load_state_dict(vit.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(rebuilt.eval()(images()), vit(images()))


@pytest.mark.parametrize("width", [31, 43, 48, 85, 127])
def test_width_of_the_mlp_is_exact(width: int) -> None:
    """timm takes a ratio; the width comes back whatever rounding does."""
    architecture = replace(describe(tiny_timm()), mlp_hidden=width)
    assert build(architecture, "meta").blocks[0].mlp.fc1.out_features == width


def test_written_as_versions_read_it_that_knew_class_tokens_only() -> None:
    """What the first version's files say of a model is all that files say of it now."""
    written = json.loads(describe(tiny_timm()).to_json())
    assert not written.keys() & {"family", "class_token", "stem"}
    assert from_json(json.dumps(written)).class_token
    bare = json.loads(describe(tiny_timm(class_token=False, global_pool="avg")).to_json())
    assert bare.keys() - written.keys() == {"class_token"}


def test_settings_of_attention_pooling_are_part_of_a_model_without_class_token() -> None:
    vit = tiny_timm(class_token=False, global_pool="map")
    vit.attn_pool.num_heads = 2
    with pytest.raises(MemtokError, match="num_heads 4 in attn_pool"):
        describe(vit)


def swin() -> nn.Module:
    return timm.create_model(
        "swin_tiny_patch4_window7_224", embed_dim=16, depths=(1, 1), num_heads=(2, 2), num_classes=2
    )


def with_changed_norm() -> nn.Module:
    vit = tiny_timm()
    vit.blocks[1].norm2.eps = 1e-3
    return vit


def with_another_head_count() -> nn.Module:
    vit = tiny_timm()
    vit.blocks[1].attn.num_heads = 2
    return vit


def with_another_turn() -> nn.Module:
    vit = tiny_timm(kind=Eva, use_rot_pos_emb=True, rope_rotate_half=True)
    vit.rope.rotate_half = False
    return vit


def with_another_window() -> nn.Module:
    vit = tiny_timm(kind=Beit, use_rel_pos_bias=True)
    vit.blocks[1].attn.window_size = (4, 9)
    return vit


def with_another_scale() -> nn.Module:
    vit = tiny_timm(kind=Eva)
    vit.blocks[1].attn.scale = 0.3
    return vit


def with_separate_bias() -> nn.Module:
    vit = tiny_timm(kind=Eva)
    vit.blocks[1].attn.qkv_bias_separate = True
    return vit


def with_adapter() -> nn.Module:
    vit = tiny_timm()
    vit.blocks[1].mlp.extra = nn.Linear(32, 32)
    return vit


def pruned() -> nn.Module:
    vit = tiny_timm()
    vit.blocks[1].mlp.fc1, vit.blocks[1].mlp.fc2 = nn.Linear(32, 40), nn.Linear(40, 32)
    return vit


def with_module(name: str, module: nn.Module) -> nn.Module:
    vit = tiny_timm()
    owner, _, leaf = name.rpartition(".")
    setattr(vit.get_submodule(owner), leaf, module)
    return vit


class MyAttention(timm_vit.Attention):  # type: ignore[misc]
    pass


class MyTransformer(timm_vit.VisionTransformer):  # type: ignore[misc]
    pass


SMALL = dict(img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, num_classes=2)
REFUSED: dict[str, tuple[Any, str]] = {
    "swin": (swin, "SwinTransformer"),
    "eva-post-norm": (lambda: Eva(**SMALL, use_post_norm=True), "EvaBlockPostNorm in blocks.0"),
    "eva-temporal": (lambda: Eva(**SMALL, use_rot_pos_emb=True, rope_type="mrope"), "RotaryEmbeddingMRope"),
    "eva-turned": (with_another_turn, "rotate_half True in rope"),
    "beit-window": (with_another_window, "window_size .* in blocks.1.attn"),
    "eva-scaled": (with_another_scale, "scale .* in blocks.1.attn"),
    "eva-separate-bias": (with_separate_bias, "qkv_bias_separate False in blocks.1.attn"),
    "naflex": (lambda: NaFlexVit(NaFlexVitCfg(embed_dim=32, depth=1, num_heads=2)), "NaFlexVit"),
    "convolution": (lambda: nn.Conv2d(3, 3, 1), "Conv2d"),
    "subclass": (lambda: MyTransformer(**SMALL), "MyTransformer"),
    "post-norm": (lambda: tiny_timm(block_fn=timm_vit.ResPostBlock), "ResPostBlock in blocks.0"),
    "parallel": (lambda: tiny_timm(block_fn=timm_vit.ParallelThingsBlock), "ParallelThingsBlock in blocks.0"),
    "differential": (lambda: tiny_timm(attn_layer="diff"), "DiffAttention in blocks.0"),
    "own-attention": (lambda: tiny_timm(attn_layer=MyAttention), "MyAttention in blocks.0"),
    "grey": (lambda: tiny_timm(in_chans=1), "3 colour channels, found 1"),
    "no-layers": (lambda: with_module("blocks", nn.Sequential()), "layers, found none"),
    "patches": (lambda: with_module("patch_embed", nn.Identity()), "PatchEmbed, found Identity"),
    "mlp": (lambda: with_module("blocks.1.mlp", nn.Linear(32, 32)), "MLPs .*, found Linear"),
    "activation": (lambda: with_module("blocks.1.mlp.act", nn.Softplus()), "activation .*, found Softplus"),
    "norm": (lambda: with_module("norm", nn.BatchNorm1d(32)), "norm layer .*, found BatchNorm1d in norm"),
    "norms-differ": (with_changed_norm, "same norm layer"),
    "activations-differ": (lambda: with_module("blocks.1.mlp.act", QuickGELU()), "same MLP"),
    "heads-differ": (with_another_head_count, "same number of heads"),
    "adapter": (with_adapter, "blocks.1.mlp.extra.bias of shape none"),
    "pruned": (pruned, r"blocks.1.mlp.fc1.bias of shape \(128,\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(MemtokError, match=message) as caught:
        check_supported(make())
    assert "\n" not in str(caught.value)


def test_a_head_of_ones_own_is_no_obstacle() -> None:
    assert describe(with_module("head", nn.Sequential(nn.Linear(32, 8), nn.Linear(8, 2)))).classes == -1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "description of a Vision Transformer"),
        ("[]", "description of a Vision Transformer"),
        ("{}", "description of a Vision Transformer"),
        ('{"image_size": 3}', "description of a Vision Transformer"),
    ],
)
def test_damaged_descriptions(text: str, message: str) -> None:
    with pytest.raises(MemtokError, match=message):
        from_json(text)


def test_settings_of_a_newer_version_are_refused() -> None:
    text = describe(tiny_timm()).to_json().replace('"depth"', '"windows": 3, "depth"')
    with pytest.raises(MemtokError, match="windows"):
        from_json(text)
