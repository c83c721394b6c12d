"""What all families of timm's Vision Transformers share: the fields of a description, reading and checking them.

A family is one file beside this one: a subclass of `Architecture` that reads the constructor arguments off a model and
makes the model again. What no field describes (an adapter, a changed scale, a pruned layer) is found by
`check_as_built`, which compares a model with the one built from its description.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar

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
from timm.models import PretrainedCfg
from torch import Tensor, nn

from memtok.errors import MemtokError

# The matrices of a layer. Task streams use their weights directly and would bypass any other module in their place.
LINEAR = ("qkv", "q_proj", "k_proj", "v_proj", "proj", "fc1", "fc2", "fc1_g", "fc1_x")
# Modules without effect in evaluation mode.
QUIET = (nn.Identity, nn.Dropout, DropPath, PatchDropout)
NORMS = ("layernorm", "layernormfp32", "rmsnorm", "rmsnormfp32", "simplenorm", "simplenormfp32")
NORM_NAMES = ("norm", "norm1", "norm2", "norm_pre", "fc_norm", "q_norm", "k_norm")
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
# Attributes of timm's modules that change no output in evaluation mode: initial values, augmentation, the kernel that
# computes attention, and the number of classes, which is read from the head.
IGNORED = (
    "training",
    "num_classes",
    "no_embed_class",  # read as `positions`
    "fused_attn",
    "grad_checkpointing",
    "strict_img_size",
    "distilled_training",
    "fix_init",
    "weight_init_mode",
    "head_init_scale",
    "init_values",
    "shift_coords",
    "jitter_coords",
    "rescale_coords",
    "aug_active",
    "inplace",
)


@dataclass(frozen=True, kw_only=True)
class Architecture(ABC):
    """The structure of a Vision Transformer, without its weights. Sizes are (height, width) in pixels.

    A family of models is a subclass; features that it does not have, such as registers, stay at their defaults.

    patch_size: pixels per patch, of a convolutional stem its whole stride.
    mlp: "mlp", "glu", "glu_gate_first", "swiglu" or "gated"; mlp_hidden: outputs of its first layer. activation: a
    value of ACTIVATIONS. norm: one of NORMS.
    positions: "all" tokens have a position embedding, or "patches" only, or "none". registers: register tokens.
    distilled: timm's VisionTransformerDistilled.
    final_norm: "norm", "fc_norm" (after pooling), "both" or "none".
    pool: timm's global_pool. classes: outputs of the head, 0 without one, -1 for a head that is no linear layer.
    """

    family: ClassVar[str]
    models: ClassVar[tuple[type[nn.Module], ...]]

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
    qk_norm: bool = False
    attention_norm: bool = False
    attention_gate: bool = False
    mlp_norm: bool = False
    layer_scale: bool = False
    class_token: bool = True
    registers: int = 0
    distilled: bool = False
    positions: str = "all"
    pre_norm: bool = False
    final_norm: str = "norm"
    pool: str = "token"
    classes: int = 0
    head_bias: bool = True
    dynamic_image_size: bool = False
    dynamic_image_pad: bool = False

    @classmethod
    @abstractmethod
    def check(cls, vit: Any) -> None:
        """MemtokError that names what cannot be described in a model of this family."""

    @classmethod
    @abstractmethod
    def read(cls, vit: Any) -> Architecture:
        """The description of a model that `check` let pass."""

    @abstractmethod
    def new_model(self) -> Any:
        """A timm model of this description, but for a head without bias and the gates of attention."""

    def make(self) -> nn.Module:
        """timm's model of this description; it is called with torch's meta device as the default."""
        vit = self.new_model()
        if not self.head_bias:
            vit.head = nn.Linear(self.dim, self.classes, bias=False) if self.classes > 0 else nn.Identity()
        for block in vit.blocks if self.attention_gate else ():
            block.attn.gate = nn.Linear(self.dim, block.attn.proj.in_features, bias=self.qkv_bias)
        made: nn.Module = vit
        return made

    def arguments(self) -> dict[str, Any]:
        """The arguments of timm's constructors that all families call the same."""
        return {
            "img_size": self.image_size,
            "patch_size": self.patch_size,
            "embed_dim": self.dim,
            "depth": self.depth,
            "num_heads": self.heads,
            "mlp_ratio": mlp_ratio(self.mlp_hidden, self.dim),
            "qkv_bias": self.qkv_bias,
            "init_values": 1.0 if self.layer_scale else None,
            "num_classes": self.classes,
            "global_pool": self.pool,
            "norm_layer": partial(get_norm_layer(self.norm), eps=self.epsilon),
        }

    def token_arguments(self) -> dict[str, Any]:
        """Those of the families with optional tokens and dynamic image sizes."""
        return {
            "class_token": self.class_token,
            "no_embed_class": self.positions == "patches",
            "dynamic_img_size": self.dynamic_image_size,
            "dynamic_img_pad": self.dynamic_image_pad,
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, with the name of the family; plain ViTs have none, as in the first version's files."""
        return {**asdict(self), "family": self.family}

    def to_json(self) -> str:
        """One line of JSON, which `architecture.from_json` reads back."""
        return json.dumps(self.to_dict(), sort_keys=True)

    def facts(self) -> dict[str, Any]:
        """What the tensors of a trunk do not determine, for its fingerprint. Never change a name or a value here."""
        facts = {
            "depth": self.depth,
            "heads": self.heads,
            "patch": list(self.patch_size),
            "mlp": self.mlp,
            "activation": self.activation,
            "norm": self.norm,
            "epsilon": repr(self.epsilon),
            "extra_tokens": self.registers,
            "positions": self.positions,
            # The number of patches is the same for 6 x 6 and 3 x 12.
            "grid": None if self.positions == "none" else self.grid(),
            "pre_norm": self.pre_norm,
            "final_norm": self.final_norm,
        }
        # Without a class token the features are the output of the model's own pooling.
        return facts if self.class_token else {**facts, "class_token": False, "pool": self.pool}

    def grid(self) -> list[int]:
        """Rows and columns of patches."""
        return [side // patch for side, patch in zip(self.image_size, self.patch_size, strict=True)]

    def canonical(self, name: str, tensor: Tensor) -> str | None:
        """The name of a tensor in the fingerprint; None for a tensor that is not part of it."""
        return name


def read_common(vit: Any) -> dict[str, Any]:
    """The fields of `Architecture` that are read in the same way from every family. All layers must agree."""
    block, patch = vit.blocks[0], vit.patch_embed
    attention, registers = block.attn, getattr(vit, "reg_token", None)
    norm, epsilon = agreed("norm layer", (norm_kind(name, module) for name, module in _norms(vit)))
    kind, activation = agreed("MLP", (mlp_kind(block.mlp) for block in vit.blocks))
    linear_head = isinstance(vit.head, nn.Linear)
    finals = [name for name in ("norm", "fc_norm") if is_there(getattr(vit, name))]
    return {
        "image_size": tuple(patch.img_size),
        "patch_size": stride_of(patch),
        "dim": vit.embed_dim,
        "depth": len(vit.blocks),
        "heads": agreed("number of heads", (block.attn.num_heads for block in vit.blocks)),
        "mlp": kind,
        "mlp_hidden": (block.mlp.fc1_g if kind == "swiglu" else block.mlp.fc1).out_features,
        "activation": activation,
        "norm": norm,
        "epsilon": epsilon,
        "mlp_norm": is_there(block.mlp.norm),
        "qk_norm": is_there(getattr(attention, "q_norm", None)),
        "attention_norm": is_there(getattr(attention, "norm", None)),
        "attention_gate": getattr(attention, "gate", None) is not None,
        "layer_scale": is_there(getattr(block, "ls1", None)) or getattr(block, "gamma_1", None) is not None,
        "class_token": vit.cls_token is not None,
        "registers": 0 if registers is None else registers.shape[1],
        "positions": "none" if vit.pos_embed is None else "patches" if getattr(vit, "no_embed_class", False) else "all",
        "pre_norm": is_there(getattr(vit, "norm_pre", None)),
        "final_norm": "both" if len(finals) > 1 else finals[0] if finals else "none",
        "pool": vit.global_pool,
        "classes": vit.head.out_features if linear_head else -1 if is_there(vit.head) else 0,
        "head_bias": not linear_head or vit.head.bias is not None,
        "dynamic_image_size": getattr(vit, "dynamic_img_size", False),
        "dynamic_image_pad": getattr(patch, "dynamic_img_pad", False),
    }


def mlp_ratio(hidden: int, dim: int) -> float:
    """timm takes int(dim x ratio); half a unit more keeps rounding from losing one."""
    return (hidden + 0.5) / dim


def is_there(module: nn.Module | None) -> bool:
    """Whether an optional module of timm exists and is no identity."""
    return module is not None and not isinstance(module, nn.Identity)


def stride_of(embed: Any) -> tuple[int, int]:
    """Pixels (height, width) between one token and the next: the patch, of a convolutional stem its whole stride."""
    height, width = embed.feat_ratio(as_scalar=False)
    return height, width


def pretrained_config(vit: Any) -> dict[str, Any]:
    """timm's record of the weights; empty for a model that was not made by `create_model`."""
    config: Any = getattr(vit, "pretrained_cfg", None)
    if isinstance(config, PretrainedCfg):
        config = config.to_dict()
    return dict(config) if isinstance(config, Mapping) else {}


def check_patches(vit: Any, *allowed: type[nn.Module]) -> None:
    """MemtokError for an embedding of patches that is none of `allowed`, or that takes no colour images."""
    embed = vit.patch_embed
    if type(embed) not in allowed:
        names = " or ".join(kind.__name__ for kind in allowed)
        raise MemtokError(f"expected timm's {names}, found {type(embed).__name__}; take a model with plain patches")
    channels = embed.proj.in_channels if type(embed) is PatchEmbed else getattr(embed, "in_chans", 3)
    if channels != 3:
        raise MemtokError(f"expected a model of 3 colour channels, found {channels}; take another")


def check_blocks(vit: Any, block_type: type[nn.Module], *attentions: type[nn.Module]) -> None:
    """MemtokError for layers of another kind, or whose matrices are no plain linear layers."""
    if not len(vit.blocks):
        raise MemtokError("expected a Vision Transformer with layers, found none; take another")
    for index, block in enumerate(vit.blocks):
        for kinds, module in (((block_type,), block), (attentions, getattr(block, "attn", None))):
            if type(module) not in kinds:
                raise MemtokError(
                    f"expected timm's {' or '.join(kind.__name__ for kind in kinds)} in every layer, found "
                    f"{type(module).__name__} in blocks.{index}; task streams do not understand it, take another model"
                )
    for name, module in vit.blocks.named_modules():
        if name.rpartition(".")[2] in LINEAR and type(module) is not nn.Linear:
            raise MemtokError(
                f"expected torch's Linear in blocks.{name}, found {type_text(module)}; task streams do not understand "
                "it: merge it into a plain layer, or take another model"
            )


def check_as_built(vit: nn.Module, rebuilt: nn.Module, skipped: tuple[str, ...] = ()) -> None:
    """MemtokError, by name, where a model differs from `rebuilt`, the one that its description makes.

    It compares the kinds of modules, their settings (heads, scales, temperatures, sizes) and the shapes of tensors.
    skipped: names of the modules that are left out, with all in them.
    """
    modules = dict(vit.named_modules())
    pairs = [
        (name, modules[name], expected)
        for name, expected in rebuilt.named_modules()
        # Older versions of timm leave out identities.
        if name in modules and name.partition(".")[0] not in skipped
    ]
    for name, module, expected in pairs:
        _check_kind(name, module, expected)
    shapes = {name: tensor.shape for name, tensor in rebuilt.state_dict().items()}
    found = {name: tensor.shape for name, tensor in vit.state_dict().items()}
    for name in sorted(shapes.keys() | found.keys()):
        if name.partition(".")[0] not in skipped and shapes.get(name) != found.get(name):
            raise MemtokError(
                f"expected {name} of shape {shape_text(shapes.get(name))} in this Vision Transformer, found "
                f"{shape_text(found.get(name))}; only models as timm builds them can carry tasks"
            )
    for name, module, expected in pairs:
        _check_settings(name, module, expected)


def _check_kind(name: str, module: nn.Module, expected: nn.Module) -> None:
    kind = type(expected).__name__.lower()
    if isinstance(expected, QUIET):
        same = isinstance(module, QUIET)
    elif kind in NORMS:
        same = norm_kind(name, module) == norm_kind(name, expected)
    elif kind in ACTIVATIONS:
        same = activation_name(module) == activation_name(expected)
    else:
        same = type(module) is type(expected)
    if not same:
        raise MemtokError(
            f"expected timm's {type(expected).__name__} in {name}, found {type_text(module)}; only models as timm "
            "builds them can carry tasks"
        )


def _check_settings(name: str, module: nn.Module, expected: nn.Module) -> None:
    if isinstance(expected, QUIET) or type(expected).__name__.lower() in (*NORMS, *ACTIVATIONS):
        return  # modules of one kind are equal
    for fact, value in vars(expected).items():
        other = getattr(module, fact, value)
        if not fact.startswith("_") and fact not in IGNORED and _is_plain(value) and _plain(other) != _plain(value):
            raise MemtokError(
                f"expected {fact} {value} in {name or 'the model'}, as timm makes it, found {other}; only models as "
                "timm builds them can carry tasks"
            )


def _is_plain(value: Any) -> bool:
    """Whether a value can be compared and written: a number, a text, nothing, or several of these."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _plain(value: Any) -> Any:
    """The value with its lists as tuples."""
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def _norms(vit: Any) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of every norm in the trunk, except those of a convolutional stem."""
    for name, module in vit.named_modules():
        if name.rpartition(".")[2] in NORM_NAMES and not name.startswith(("patch_embed.backbone.", "attn_pool.")):
            yield name, module


def norm_kind(name: str, norm: Any) -> tuple[str, float] | None:
    """A norm's name out of NORMS and its epsilon, None where there is no norm; MemtokError for another module."""
    kind = type(norm).__name__.lower()
    if isinstance(norm, nn.Identity):
        return None
    if kind not in NORMS or type(norm) not in (nn.LayerNorm, get_norm_layer(kind)):
        raise MemtokError(f"expected a norm layer out of {', '.join(NORMS)}, found {type(norm).__name__} in {name}")
    return kind, float(norm.eps)


def mlp_kind(mlp: Any) -> tuple[str, str]:
    """The kind of a timm MLP and its activation; MemtokError for another module."""
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


def agreed(what: str, values: Iterable[Any]) -> Any:
    """The one value of all layers, ignoring None; MemtokError if they differ."""
    found = {value for value in values if value is not None}
    if len(found) != 1:
        raise MemtokError(
            f"expected the same {what} in every layer, found {sorted(map(str, found))}; take a model as timm builds it"
        )
    return found.pop()


def set_activations(vit: Any, name: str) -> None:
    """Gives every layer the activation of this canonical name, which not every constructor of timm takes."""
    for block in vit.blocks:
        block.mlp.act = get_act_layer(name)()


def type_text(module: object) -> str:
    """The class of a module with its package, for error messages: wrappers often have the same class name."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def shape_text(shape: torch.Size | None) -> str:
    """A shape for an error message, "none" for a missing tensor."""
    return "none" if shape is None else str(tuple(shape))


def floating(vit: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of all floating-point tensors; counters of training steps are left out."""
    return ((name, tensor) for name, tensor in vit.state_dict().items() if tensor.is_floating_point())
