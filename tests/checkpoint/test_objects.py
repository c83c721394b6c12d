"""Model objects whose answers a copy would not give are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import memtok
from tests.tiny import tiny_images, tiny_task, tiny_vit


def double(*given: Any) -> Any:
    return given[-1] * 2 if isinstance(given[-1], Tensor) else None


HOOKS = {
    "register_forward_hook": double,
    "register_forward_pre_hook": double,
    "register_full_backward_hook": double,
    "register_full_backward_pre_hook": double,
}
PLACES = [
    "",
    "patch_embed",
    "blocks",
    "blocks.1",
    "blocks.0.norm1",
    "blocks.0.attn",
    "blocks.1.attn.qkv",
    "norm",
    "head",
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", sorted(HOOKS))
def test_hooks_are_refused_by_name(kind: str, place: str) -> None:
    vit = tiny_vit()
    handle = getattr(vit.get_submodule(place), kind)(HOOKS[kind])
    with pytest.raises(memtok.MemtokError, match="expected a model without hooks") as caught:
        memtok.load_backbone(vit)
    assert (place or "VisionTransformer") in str(caught.value)
    assert "\n" not in str(caught.value)
    handle.remove()
    assert memtok.load_backbone(vit).depth == 2


@pytest.mark.parametrize(
    ("place", "method"),
    [
        ("", "forward"),
        ("", "forward_features"),
        ("", "_pos_embed"),
        ("patch_embed", "forward"),
        ("blocks.1", "forward"),
        ("blocks.0.attn", "forward"),
        ("blocks.0.mlp.act", "forward"),
        ("head", "forward"),
    ],
)
def test_a_method_replaced_on_the_object_is_refused_by_name(place: str, method: str) -> None:
    vit = tiny_vit()
    owner = vit.get_submodule(place)
    setattr(owner, method, lambda x, **_: x)
    with pytest.raises(memtok.MemtokError, match=f"found another {method} put on") as caught:
        memtok.load_backbone(vit)
    assert (place or "VisionTransformer") in str(caught.value)
    delattr(owner, method)
    assert memtok.load_backbone(vit).depth == 2


class Scaled(nn.Linear):
    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens) * 1.5


class LoRA(nn.Module):
    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.update = base, nn.Linear(base.in_features, base.out_features, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.base(tokens) + self.update(tokens)


class GELU(nn.Module):
    """Called like torch's."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens * 3


class Other(Block):
    def forward(self, tokens: Tensor, **_: Any) -> Tensor:
        return tokens


def wrapped(vit: Any) -> None:
    vit.blocks[1].attn.qkv = LoRA(vit.blocks[1].attn.qkv)


def wrapped_mlp(vit: Any) -> None:
    vit.blocks[1].mlp.fc1 = LoRA(vit.blocks[1].mlp.fc1)


def another_class(vit: Any) -> None:
    vit.blocks[1].attn.proj.__class__ = Scaled


def parametrized(vit: Any) -> None:
    parametrize.register_parametrization(vit.blocks[1].attn.qkv, "weight", nn.Tanh())


def pruned(vit: Any) -> None:
    prune.l1_unstructured(vit.blocks[1].attn.qkv, "weight", 0.5)


def overridden(vit: Any) -> None:
    vit.blocks[1].__class__ = Other


def activation(vit: Any) -> None:
    for block in vit.blocks:
        block.mlp.act = GELU()


def layer_scale(vit: Any) -> None:
    vit.blocks[1].ls1 = nn.Tanh()


def drop_path(vit: Any) -> None:
    vit.blocks[1].drop_path1 = nn.Tanh()


def after_positions(vit: Any) -> None:
    vit.pos_drop = nn.Tanh()


def scale(vit: Any) -> None:
    vit.blocks[1].attn.scale = 3.0


def heads(vit: Any) -> None:
    for block in vit.blocks:
        block.attn.num_heads = 4


def compiled_block(vit: Any) -> None:
    vit.blocks[1] = torch.compile(vit.blocks[1])


def compiled_projection(vit: Any) -> None:
    vit.blocks[1].attn.qkv = torch.compile(vit.blocks[1].attn.qkv)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (wrapped, "blocks.1.attn.qkv"),
        (wrapped_mlp, "blocks.1.mlp.fc1"),
        (another_class, "blocks.1.attn.proj"),
        (parametrized, "blocks.1.attn.qkv"),
        (pruned, "blocks.1.attn.qkv"),
        (overridden, "blocks.1"),
        (activation, "GELU"),
        (layer_scale, "blocks.1.ls1"),
        (drop_path, "blocks.1.drop_path1"),
        (after_positions, "pos_drop"),
        (scale, "blocks.1.attn"),
        (heads, "blocks.0.attn"),
        (compiled_block, "blocks.1"),
        (compiled_projection, "blocks.1.attn.qkv"),
    ],
)
def test_modules_of_another_kind_are_refused_by_name(change: Callable[[Any], None], named: str) -> None:
    vit = tiny_vit(init_values=0.5)
    change(vit)
    with pytest.raises(memtok.MemtokError) as caught:
        memtok.load_backbone(vit)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_compiled_model_is_refused() -> None:
    with pytest.raises(memtok.MemtokError, match=r"before torch\.compile"):
        memtok.load_backbone(torch.compile(tiny_vit()))


@pytest.mark.filterwarnings("ignore")  # torch's quantisation is about to leave torch
def test_quantised_layers_are_refused_by_name() -> None:
    vit = torch.ao.quantization.quantize_dynamic(tiny_vit(), {nn.Linear})
    with pytest.raises(memtok.MemtokError, match=r"blocks\.0\.attn\.qkv"):
        memtok.load_backbone(vit)


class Subclass(Tensor):
    """A tensor that computes as it likes, as those of quantisation do."""


def test_weights_that_are_no_plain_tensors_are_refused_by_name() -> None:
    vit = tiny_vit()
    vit.blocks[0].attn.qkv.weight = nn.Parameter(vit.blocks[0].attn.qkv.weight.detach().as_subclass(Subclass))
    with pytest.raises(
        memtok.MemtokError, match=r"plain floating-point weights, found .*Subclass.*blocks\.0\.attn\.qkv"
    ):
        memtok.load_backbone(vit)


def test_hooks_on_a_model_of_transformers_are_refused() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )
    model = transformers.ViTModel(config)
    handle = model.embeddings.register_forward_hook(double)
    with pytest.raises(memtok.MemtokError, match="without hooks, found forward hooks on embeddings"):
        memtok.load_backbone(model)
    handle.remove()
    assert memtok.load_backbone(model).depth == 2


@pytest.mark.parametrize("mode", [True, False])
def test_dropout_of_all_kinds_is_taken_in_either_mode(mode: bool) -> None:
    rates = ("patch_drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate", "drop_rate")
    vit = tiny_vit(**dict.fromkeys(rates, 0.4))
    images = tiny_images()
    with torch.no_grad():
        expected = vit(images)
        backbone = memtok.load_backbone(vit.train(mode))
        out = memtok.MemoryViT(backbone, [tiny_task(backbone)])(images)
    assert torch.equal(out.base, expected)
    assert vit.training == mode
