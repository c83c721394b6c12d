"""What a timm Vision Transformer is, apart from its numbers: described, and rebuilt from the description.

`describe` reads the constructor arguments off a model, also off one that was built by hand, and refuses by name what
the task streams do not understand. `build` makes the model of a description.

Source: timm's `VisionTransformer` and `VisionTransformerDistilled` (timm.models.vision_transformer, timm.models.deit).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import torch
from timm.layers import (
    DropPath,
    GatedMlp,
    GluMlp,
    Mlp,
    PatchDropout,
    PatchEmbed,
    SwiGLU,
    get_act_layer,
    get_norm_layer,
)
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn

from memtok.errors import MemtokError

# Modules that answer for the base model's own classes. All else is the trunk, which tasks stand on.
HEAD_MODULES = ("head", "head_dist", "attn_pool")

MLPS: dict[str, Any] = {
    "mlp": Mlp,
    "glu": GluMlp,
    "glu_gate_first": partial(GluMlp, gate_last=False),
    "swiglu": SwiGLU,
    "gated": GatedMlp,
}
# The matrices of a layer. Task streams read their weights, so that what another module does with them would be lost.
LINEAR = ("qkv", "proj", "fc1", "fc2", "fc1_g", "fc1_x")
# All the same in evaluation mode.
QUIET = (nn.Identity, nn.Dropout, DropPath, PatchDropout)
NORMS = ("layernorm", "layernormfp32", "rmsnorm", "rmsnormfp32", "simplenorm", "simplenormfp32")
# timm and torch each have a module for most of these; the class's name, in small letters, is looked up here.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelutanh": "gelu_tanh",
    "quickgelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "swishme": "silu",
    "mish": "mish",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "identity": "identity",
}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """All that builds a Vision Transformer, apart from its numbers. Sizes are (height, width) in pixels.

    mlp: a key of MLPS; mlp_hidden: outputs of its first layer. activation: a value of ACTIVATIONS. norm: one of NORMS.
    positions: "all" tokens have a position embedding, or "patches" only, or "none". registers: register tokens.
    distilled: timm's VisionTransformerDistilled. final_norm: "norm", "fc_norm" (after pooling) or "none".
    pool: timm's global_pool. classes: outputs of the head, 0 without one, -1 for a head that is no linear layer.
    """

    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    dim: int
    depth: int
    heads: int
    mlp_hidden: int
    activation: str
    epsilon: float
    mlp: str = "mlp"
    norm: str = "layernorm"
    qkv_bias: bool = True
    projection_bias: bool = True
    qk_norm: bool = False
    attention_norm: bool = False
    attention_gate: bool = False
    mlp_norm: bool = False
    layer_scale: bool = False
    distilled: bool = False
    registers: int = 0
    positions: str = "all"
    patch_norm: bool = False
    pre_norm: bool = False
    final_norm: str = "norm"
    pool: str = "token"
    pool_include_prefix: bool = False
    classes: int = 0
    head_bias: bool = True
    dynamic_image_size: bool = False
    dynamic_image_pad: bool = False

    def to_json(self) -> str:
        """One line of JSON that `from_json` reads back."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Architecture:
        """The reverse of `to_json`; MemtokError for anything else, or for settings that this version does not know."""
        try:
            values: dict[str, Any] = json.loads(text)
            unknown = values.keys() - {field.name for field in fields(cls)}
            for name in ("image_size", "patch_size"):
                height, width = values[name]
                values[name] = (int(height), int(width))
            architecture = cls(**values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise MemtokError(
                f"expected the description of a Vision Transformer, found {text[:100]!r}; write the file again"
            ) from error
        if unknown:
            raise MemtokError(
                f"expected known settings, found {', '.join(sorted(unknown))}; read the file with a newer memtok"
            )
        return architecture


def build(architecture: Architecture, device: str = "cpu") -> nn.Module:
    """The timm model of a description, in float32, its numbers not set yet. Draws no random numbers."""
    arguments: dict[str, Any] = {
        "img_size": architecture.image_size,
        "patch_size": architecture.patch_size,
        "embed_dim": architecture.dim,
        "depth": architecture.depth,
        "num_heads": architecture.heads,
        # timm takes int(dim x ratio); half a unit more keeps rounding from losing one.
        "mlp_ratio": (architecture.mlp_hidden + 0.5) / architecture.dim,
        "qkv_bias": architecture.qkv_bias,
        "qk_norm": architecture.qk_norm,
        "proj_bias": architecture.projection_bias,
        "init_values": 1.0 if architecture.layer_scale else None,
        "num_classes": architecture.classes,
        "global_pool": architecture.pool,
        "no_embed_class": architecture.positions == "patches",
        "pos_embed": "none" if architecture.positions == "none" else "learn",
        "reg_tokens": architecture.registers,
        "pre_norm": architecture.pre_norm,
        "final_norm": architecture.final_norm != "none",
        "fc_norm": architecture.final_norm == "fc_norm",
        "pool_include_prefix": architecture.pool_include_prefix,
        "dynamic_img_size": architecture.dynamic_image_size,
        "dynamic_img_pad": architecture.dynamic_image_pad,
        "norm_layer": partial(get_norm_layer(architecture.norm), eps=architecture.epsilon),
        "act_layer": get_act_layer(architecture.activation),
        "mlp_layer": MLPS[architecture.mlp],
        "weight_init": "skip",
    }
    if architecture.attention_norm or architecture.mlp_norm:  # older versions of timm know neither
        arguments["scale_attn_norm"] = architecture.attention_norm
        arguments["scale_mlp_norm"] = architecture.mlp_norm
    if architecture.patch_norm:
        arguments["embed_norm_layer"] = arguments["norm_layer"]
    model = VisionTransformerDistilled if architecture.distilled else VisionTransformer
    with torch.device("meta"):
        vit: Any = model(**arguments)
        if architecture.classes and not architecture.head_bias:
            vit.head = nn.Linear(architecture.dim, architecture.classes, bias=False)
        for block in vit.blocks if architecture.attention_gate else ():
            block.attn.gate = nn.Linear(architecture.dim, block.attn.attn_dim, bias=architecture.qkv_bias)
    vit = vit.float()  # whatever torch's default precision is
    empty: nn.Module = vit if device == "meta" else vit.to_empty(device=device)
    return empty


def check_supported(vit: nn.Module) -> None:
    """MemtokError, by name, for a model that the task streams do not understand."""
    describe(vit)


def describe(vit: nn.Module) -> Architecture:
    """The description of a timm model; MemtokError, by name, for one that the task streams do not understand.

    Those are all but `VisionTransformer` and `VisionTransformerDistilled` with a class token and with `Block` and
    `Attention` in every layer: windowed attention, rotary positions, norms after the residual are among them.
    """
    _check_kind(vit)
    architecture = _read(vit)
    # Whatever the description leaves out (an adapter, a pruned layer) shows in the model that it builds.
    rebuilt = build(architecture, "meta")
    _check_modules(vit, rebuilt)
    expected = {name: tensor.shape for name, tensor in trunk_tensors(rebuilt)}
    found = {name: tensor.shape for name, tensor in trunk_tensors(vit)}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise MemtokError(
                f"expected {name} of shape {shape_text(expected.get(name))} in this Vision Transformer, found "
                f"{shape_text(found.get(name))}; only models as timm builds them can carry tasks"
            )
    return architecture


def _check_kind(vit: Any) -> None:
    if type(vit) not in (VisionTransformer, VisionTransformerDistilled):
        raise MemtokError(
            f"expected timm's VisionTransformer or VisionTransformerDistilled, found {type(vit).__name__}; "
            "task streams understand plain global attention only, so take a ViT, DeiT, DINOv2 or CLIP"
        )
    if vit.cls_token is None:
        raise MemtokError(
            "expected a Vision Transformer with a class token, found one without; take one that timm pools by token"
        )
    if type(vit.patch_embed) is not PatchEmbed:
        raise MemtokError(
            f"expected timm's PatchEmbed, found {type(vit.patch_embed).__name__}; take a model with plain patches"
        )
    if vit.patch_embed.proj.in_channels != 3:
        raise MemtokError(
            f"expected a model of 3 colour channels, found {vit.patch_embed.proj.in_channels}; take another"
        )
    if not len(vit.blocks):
        raise MemtokError("expected a Vision Transformer with layers, found none; take another")
    for index, block in enumerate(vit.blocks):
        for kind, module in ((Block, block), (Attention, getattr(block, "attn", None))):
            if type(module) is not kind:
                raise MemtokError(
                    f"expected timm's {kind.__name__} in every layer, found {type(module).__name__} in blocks.{index}; "
                    "task streams do not understand it, take another model"
                )

    for name, module in vit.blocks.named_modules():
        if name.rpartition(".")[2] in LINEAR and type(module) is not nn.Linear:
            raise MemtokError(
                f"expected torch's Linear in blocks.{name}, found {type_text(module)}; task streams do not understand "
                "it: merge it into a plain layer, or take another model"
            )


def _check_modules(vit: Any, rebuilt: Any) -> None:
    """MemtokError for a module of another kind than timm builds there. Norms and activations are checked by `_read`."""
    modules = dict(vit.named_modules())
    for name, expected in rebuilt.named_modules():
        module = modules.get(name, expected)  # older versions of timm leave out what does nothing
        known = type(expected).__name__.lower() in (*NORMS, *ACTIVATIONS) and not isinstance(expected, nn.Identity)
        quiet = type(expected) in QUIET and type(module) in QUIET
        if name.partition(".")[0] not in HEAD_MODULES and type(module) is not type(expected) and not (known or quiet):
            raise MemtokError(
                f"expected timm's {type(expected).__name__} in {name}, found {type_text(module)}; only models as timm "
                "builds them can carry tasks"
            )
        for fact in ("num_heads", "head_dim", "attn_dim", "scale") if isinstance(expected, Attention) else ():
            if getattr(module, fact) != getattr(expected, fact):
                raise MemtokError(
                    f"expected {fact} {getattr(expected, fact)} in {name}, as timm makes it, found "
                    f"{getattr(module, fact)}; only models as timm builds them can carry tasks"
                )


def _read(vit: Any) -> Architecture:
    """Reads constructor arguments off the modules. Layers must agree with each other."""
    block, patch = vit.blocks[0], vit.patch_embed
    norm, epsilon = _one("norm layer", (_norm_kind(name, module) for name, module in _norms(vit)))
    kind, activation = _one("MLP", (_mlp_kind(block.mlp) for block in vit.blocks))
    hidden = block.mlp.fc1_g if kind == "swiglu" else block.mlp.fc1
    heads = _one("number of heads", (block.attn.num_heads for block in vit.blocks))
    linear_head = isinstance(vit.head, nn.Linear)
    finals = [name for name in ("norm", "fc_norm") if not isinstance(getattr(vit, name), nn.Identity)]
    return Architecture(
        image_size=tuple(patch.img_size),
        patch_size=tuple(patch.patch_size),
        dim=vit.embed_dim,
        depth=len(vit.blocks),
        heads=heads,
        mlp=kind,
        mlp_hidden=hidden.out_features,
        activation=activation,
        norm=norm,
        epsilon=epsilon,
        qkv_bias=block.attn.qkv.bias is not None,
        projection_bias=block.attn.proj.bias is not None,
        qk_norm=not isinstance(block.attn.q_norm, nn.Identity),
        attention_norm=not isinstance(getattr(block.attn, "norm", nn.Identity()), nn.Identity),
        attention_gate=getattr(block.attn, "gate", None) is not None,
        mlp_norm=not isinstance(block.mlp.norm, nn.Identity),
        layer_scale=not isinstance(block.ls1, nn.Identity),
        distilled=isinstance(vit, VisionTransformerDistilled),
        registers=0 if vit.reg_token is None else vit.reg_token.shape[1],
        positions="none" if vit.pos_embed is None else "patches" if vit.no_embed_class else "all",
        patch_norm=not isinstance(patch.norm, nn.Identity),
        pre_norm=not isinstance(vit.norm_pre, nn.Identity),
        final_norm=finals[0] if finals else "none",
        pool=vit.global_pool,
        pool_include_prefix=vit.pool_include_prefix,
        classes=vit.head.out_features if linear_head else 0 if isinstance(vit.head, nn.Identity) else -1,
        head_bias=not linear_head or vit.head.bias is not None,
        dynamic_image_size=vit.dynamic_img_size,
        dynamic_image_pad=patch.dynamic_img_pad,
    )


def _norms(vit: Any) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of every norm in the trunk."""
    yield from (("patch_embed.norm", vit.patch_embed.norm), ("norm_pre", vit.norm_pre))
    yield from (("norm", vit.norm), ("fc_norm", vit.fc_norm))
    for index, block in enumerate(vit.blocks):
        for name in ("norm1", "norm2", "attn.q_norm", "attn.k_norm", "attn.norm", "mlp.norm"):
            owner, _, leaf = name.rpartition(".")
            yield f"blocks.{index}.{name}", getattr(block.get_submodule(owner), leaf, nn.Identity())


def _norm_kind(name: str, norm: Any) -> tuple[str, float] | None:
    kind = type(norm).__name__.lower()
    if isinstance(norm, nn.Identity):
        return None
    if kind not in NORMS or type(norm) not in (nn.LayerNorm, get_norm_layer(kind)):
        raise MemtokError(f"expected a norm layer out of {', '.join(NORMS)}, found {type(norm).__name__} in {name}")
    return kind, float(norm.eps)


def _mlp_kind(mlp: Any) -> tuple[str, str]:
    kinds = {Mlp: "mlp", GluMlp: "glu", SwiGLU: "swiglu", GatedMlp: "gated"}
    kind = kinds.get(type(mlp))
    if kind is None:
        names = ", ".join(known.__name__ for known in kinds)
        raise MemtokError(
            f"expected one of timm's MLPs {names} in every layer, found {type(mlp).__name__}; take another"
        )
    if kind == "glu" and not mlp.gate_last:
        kind = "glu_gate_first"
    return kind, activation_name(mlp.act)


def activation_name(activation: nn.Module) -> str:
    """The canonical name of an activation module, the same for torch's and timm's; MemtokError for an unknown one."""
    name = ACTIVATIONS.get(type(activation).__name__.lower())
    if name is None or type(activation).__module__.partition(".")[0] not in ("torch", "timm"):
        raise MemtokError(
            f"expected an activation out of {', '.join(sorted(set(ACTIVATIONS.values())))}, found "
            f"{type(activation).__name__ if name is None else type_text(activation)}; take another model"
        )
    approximated = isinstance(activation, nn.GELU) and activation.approximate == "tanh"
    return "gelu_tanh" if approximated else name


def _one(what: str, values: Iterator[Any]) -> Any:
    """The value that all agree on, None left aside."""
    found = {value for value in values if value is not None}
    if len(found) != 1:
        raise MemtokError(
            f"expected the same {what} in every layer, found {sorted(map(str, found))}; take a model as timm builds it"
        )
    return found.pop()


def trunk_tensors(vit: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of all that the features of a token depend on: everything but the head."""
    for name, tensor in vit.state_dict().items():
        if name.partition(".")[0] not in HEAD_MODULES:
            yield name, tensor


def type_text(module: object) -> str:
    """The class of a module for an error message, with where it is from: wrappers like to be called the same."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def shape_text(shape: torch.Size | None) -> str:
    """A shape for an error message, "none" for a tensor that is not there."""
    return "none" if shape is None else str(tuple(shape))
