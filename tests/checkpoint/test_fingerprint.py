"""The fingerprint: frozen, sensitive to all that a task stands on, blind to the rest."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from timm.layers import GluMlp, LayerNorm, LayerNormFp32, SwiGLUPacked
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from torch import nn

from memtok.checkpoint.fingerprint import fingerprint_of
from tests.checkpoint.tiny_models import tiny_timm


def counted(**arguments: Any) -> Any:
    """A model whose numbers do not hang on any random generator: 0, 1/97, 2/97 and so on, over and over."""
    vit = tiny_timm(**arguments)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.copy_((torch.arange(parameter.numel()) % 97 / 97).reshape(parameter.shape))
    return vit


def test_frozen() -> None:
    """Task files refer to backbones by these: a change here orphans every task file that exists."""
    assert fingerprint_of(counted()) == "sha256:1316172d2acd142071ac3ee3a90f63833e250b04cac4e56b535a0a41c812e7b8"
    special = counted(kind=VisionTransformerDistilled, init_values=1.0, pre_norm=True, act_layer="quick_gelu")
    assert fingerprint_of(special) == "sha256:a3e9f39c7e7ab953e264e2cfb1dd24efa2c7f336abd546c0eaaa2821151e3c24"


def test_the_head_does_not_count() -> None:
    vit = counted()
    expected = fingerprint_of(vit)
    vit.reset_classifier(0)
    assert fingerprint_of(vit) == expected
    vit.head = nn.Sequential(nn.Linear(32, 3))
    assert fingerprint_of(vit) == expected
    pooled = counted(global_pool="map")  # attention pooling answers for the base classes only
    assert fingerprint_of(pooled) == expected
    distilled, again = counted(kind=VisionTransformerDistilled), counted(kind=VisionTransformerDistilled, num_classes=0)
    assert fingerprint_of(distilled) == fingerprint_of(again)


def test_without_class_token_the_pooling_counts() -> None:
    """The features are its answer then; the head still does not count."""
    pooled = counted(class_token=False, global_pool="map")
    expected = fingerprint_of(pooled)
    assert expected == "sha256:891590d96e40058397fc383f76266619c201e5f865447bf0fb55ebbb8246402d"
    pooled.reset_classifier(0)
    assert fingerprint_of(pooled) == expected
    with torch.no_grad():
        pooled.attn_pool.latent.view(-1)[-1] += 2.0**-12
    assert fingerprint_of(pooled) != expected
    settings: list[dict[str, Any]] = [
        dict(global_pool="avg", fc_norm=False),
        dict(global_pool="max", fc_norm=False),
        dict(global_pool="avgmax", fc_norm=False),
        dict(global_pool="", fc_norm=False),
        dict(global_pool="avg"),
    ]
    bare = [fingerprint_of(counted(class_token=False, **chosen)) for chosen in settings]
    assert len(set(bare)) == len(bare)
    prefixes = [counted(class_token=False, global_pool="avg", reg_tokens=1, pool_include_prefix=p) for p in (0, 1)]
    assert fingerprint_of(prefixes[0]) != fingerprint_of(prefixes[1])


def test_what_the_tensors_of_a_rotary_model_do_not_say_counts() -> None:
    rotary: dict[str, Any] = dict(kind=Eva, use_rot_pos_emb=True, use_abs_pos_emb=False, attn_type="rope")
    changes: list[dict[str, Any]] = [
        {},
        dict(rope_temperature=100.0),
        dict(rope_grid_offset=0.5),
        dict(rope_grid_indexing="xy"),
        dict(rope_rotate_half=True),
        dict(ref_feat_shape=(3, 3)),
        dict(rope_type="dinov3"),
        dict(use_rot_pos_emb=False),
        dict(num_heads=2),
        dict(attn_type="eva", qkv_bias=False),
    ]
    found = [fingerprint_of(counted(**{**rotary, **change})) for change in changes]
    assert len(set(found)) == len(found)
    assert found[0] == "sha256:8724f141695c162609215a5632551ef850255ac9e23909bb9c1efafe278a817d"
    # Tables are computed for every size, and how the size is given makes no difference.
    assert fingerprint_of(counted(**rotary, img_size=32)) == found[0]
    assert fingerprint_of(counted(**rotary, dynamic_img_size=True)) == found[0]
    pooled: dict[str, Any] = dict(kind=Eva, class_token=False, global_pool="map")
    assert fingerprint_of(counted(**pooled)) != fingerprint_of(counted(**pooled, attn_pool_num_heads=2))


def test_relative_positions_count_with_their_grid() -> None:
    tables: dict[str, Any] = dict(kind=Beit, use_abs_pos_emb=False)
    found = [
        fingerprint_of(counted(**tables)),
        fingerprint_of(counted(**tables, use_rel_pos_bias=True)),
        fingerprint_of(counted(**tables, use_shared_rel_pos_bias=True)),
        fingerprint_of(counted(**tables, use_rel_pos_bias=True, img_size=(24, 96))),
        fingerprint_of(counted(**tables, use_rel_pos_bias=True, num_heads=8)),
    ]
    assert len(set(found)) == len(found)
    assert found[1] == "sha256:cfa0ff1f9834ec2b4de3a65cfd1433a54c40beef2629776423675603d7c3f8be"
    assert fingerprint_of(counted(**tables, img_size=32)) == found[0]


def test_precision_training_and_device_copies_do_not_count() -> None:
    vit = tiny_timm()  # numbers that half precision holds exactly
    expected = fingerprint_of(vit)
    assert fingerprint_of(copy.deepcopy(vit).half()) == expected
    assert fingerprint_of(copy.deepcopy(vit).double().train()) == expected
    assert fingerprint_of(vit.bfloat16()) != expected  # these numbers were rounded


def test_dynamic_size_does_not_count() -> None:
    assert fingerprint_of(counted(dynamic_img_size=True)) == fingerprint_of(counted())


def test_one_extra_token_has_one_name() -> None:
    """DeiT comes as distilled model with two heads, and with one head on the class token."""
    distilled, register = counted(kind=VisionTransformerDistilled), counted(reg_tokens=1)
    assert fingerprint_of(distilled) == fingerprint_of(register)
    assert fingerprint_of(register) != fingerprint_of(counted(reg_tokens=1, no_embed_class=True))


@pytest.mark.parametrize("name", list(dict(tiny_timm(init_values=1.0, reg_tokens=2).named_parameters())))
def test_every_tensor_of_the_trunk_counts(name: str) -> None:
    vit = counted(init_values=1.0, reg_tokens=2)
    expected = fingerprint_of(vit)
    with torch.no_grad():
        vit.get_parameter(name).view(-1)[-1] += 2.0**-12
    assert (fingerprint_of(vit) == expected) == name.startswith("head.")


def test_what_the_tensors_do_not_say_counts() -> None:
    """Models whose tensors have the same names, shapes and numbers, and which compute something else."""
    eps = partial(LayerNorm, eps=1e-5)
    models = [
        counted(),
        counted(num_heads=8),
        counted(norm_layer=eps),
        counted(norm_layer=LayerNormFp32),
        counted(act_layer="quick_gelu"),
        counted(act_layer="gelu_tanh"),
        counted(img_size=(24, 96)),  # as many positions, of 3 x 12 patches instead of 6 x 6
    ]
    assert len({fingerprint_of(model) for model in models}) == len(models)
    sizes = [counted(pos_embed="none", img_size=size) for size in (48, 32)]  # without positions any size is the same
    assert fingerprint_of(sizes[0]) == fingerprint_of(sizes[1])
    gates = [counted(mlp_layer=layer, act_layer=nn.SiLU) for layer in (GluMlp, SwiGLUPacked)]
    assert fingerprint_of(gates[0]) != fingerprint_of(gates[1])


def test_the_same_activation_has_one_name() -> None:
    timms, torchs = counted(act_layer="gelu"), counted(act_layer=nn.GELU)
    assert type(timms.blocks[0].mlp.act) is not type(torchs.blocks[0].mlp.act)
    assert fingerprint_of(timms) == fingerprint_of(torchs)
    assert fingerprint_of(counted(norm_layer=nn.LayerNorm)) != fingerprint_of(timms)  # its epsilon is 1e-5
    assert fingerprint_of(counted(norm_layer=partial(nn.LayerNorm, eps=1e-6))) == fingerprint_of(timms)
