"""The backbone: a pre-trained timm Vision Transformer, frozen, and the trace that it leaves for the task streams.

One forward pass of the backbone meets no task, so its outputs are bitwise those of the timm model. The loop over the
layers is written out here, in timm's own order of operations, because the keys and values of every layer are wanted:
they are all that a task ever sees of an image (DESIGN section 3).

Letters for shapes, here and in streams.py and reference.py:
    B  images in the batch          L  layers (depth)          H  attention heads
    N  tokens of the trunk: prefix tokens (class, distillation, register), then patches
    T  class tokens of tasks        M  memory cells            D  width of a token      d  width of a head

Source of the blocks: Dosovitskiy et al., ICLR 2021 (arXiv 2010.11929), as implemented by timm's `VisionTransformer`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memtok.checkpoint import Checkpoint, read_checkpoint
from memtok.errors import MemtokError
from memtok.preprocessing import Preprocessing

logger = logging.getLogger("memtok")


@dataclass(frozen=True)
class Trace:
    """What one pass of the trunk leaves behind.

    keys, values: one tensor (B, H, N, d) per layer, empty lists when nobody asked for them.
    features: (B, D) the base class token after the final norm, None when the last layer was skipped.
    base: (B, base classes) the timm model's own answer, None without a classifier or when the last layer was skipped.
    """

    keys: list[Tensor]
    values: list[Tensor]
    features: Tensor | None
    base: Tensor | None


class Backbone(nn.Module):
    """A timm `VisionTransformer` that never changes: no gradient, evaluation mode whatever is called.

    Attributes:
        vit: the timm model. fingerprint: "sha256:..." of its trunk. source: where it came from, for people.
        preprocessing: what an image goes through before it gets here.
        classes: names of the base classes where the checkpoint has them, else empty.
        record: how memtok trained it in regime `full`; empty for every other checkpoint.
        architecture: timm's name as it was given to `load_backbone`, None if it was not.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.vit: Any = checkpoint.vit
        self.fingerprint: str = checkpoint.fingerprint
        self.preprocessing: Preprocessing = checkpoint.preprocessing
        self.source: str = checkpoint.source
        self.classes: tuple[str, ...] = checkpoint.classes
        self.record: dict[str, Any] = checkpoint.record
        self.architecture: str | None = None
        self.requires_grad_(False)
        self.register_load_state_dict_pre_hook(refuse_other_weights)  # type: ignore[no-untyped-call]
        super().train(False)

    def train(self, mode: bool = True) -> Self:
        """Does nothing: a backbone stays in evaluation mode, so that dropout and the like never change an answer."""
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Freezes; asking a backbone for gradients is an error (regime `full` trains a copy instead)."""
        if requires_grad:
            raise MemtokError(
                "expected a frozen backbone, found a request for its gradients; to train all of it use regime 'full'"
            )
        return super().requires_grad_(False)

    @property
    def depth(self) -> int:
        """L, the number of layers."""
        return len(self.vit.blocks)

    @property
    def dim(self) -> int:
        """D, the width of a token."""
        return int(self.vit.embed_dim)

    @property
    def heads(self) -> int:
        """H, the number of attention heads."""
        return int(self.vit.blocks[0].attn.num_heads)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.vit.cls_token.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        dtype: torch.dtype = self.vit.cls_token.dtype
        return dtype

    @property
    def class_token(self) -> Tensor:
        """(D,) the base class token, without position embedding."""
        token: Tensor = self.vit.cls_token[0, 0]
        return token

    @property
    def class_position(self) -> Tensor | None:
        """(D,) the position embedding of the class position, None where the backbone has none for the class."""
        if self.vit.pos_embed is None or self.vit.no_embed_class:
            return None
        position: Tensor = self.vit.pos_embed[0, 0]
        return position

    def extra_repr(self) -> str:
        height, width = self.preprocessing.image_size
        return f"{self.source!r}, {height}x{width} px, {self.fingerprint[:19]}"

    def check_images(self, images: Tensor) -> Tensor:
        """Returns `images` in the backbone's precision; MemtokError unless (B, channels, height, width) fit it."""
        channels = self.vit.patch_embed.proj.in_channels
        height, width = self.preprocessing.image_size
        if not isinstance(images, Tensor):
            raise MemtokError(
                f"expected images as a tensor (batch, {channels}, {height}, {width}), found {type(images).__name__}; "
                "apply memtok.evaluation_transform(model.preprocessing) to each image and stack them"
            )
        if images.ndim != 4 or tuple(images.shape[1:]) != (channels, height, width):
            raise MemtokError(
                f"expected images of shape (batch, {channels}, {height}, {width}), found {tuple(images.shape)}; "
                "resize them, or load the backbone with image_size="
            )
        if not images.is_floating_point():
            raise MemtokError(
                f"expected normalised floating-point images, found {images.dtype}; "
                "apply memtok.evaluation_transform(model.preprocessing)"
            )
        if images.device != self.device:
            raise MemtokError(
                f"expected images on {self.device}, found them on {images.device}; move them with images.to(...)"
            )
        return images.to(self.dtype)

    def embed(self, images: Tensor) -> Tensor:
        """(B, N, D) prefix tokens and patches with their position embeddings, before any norm."""
        tokens: Tensor = self.vit.patch_drop(self.vit._pos_embed(self.vit.patch_embed(images)))
        return tokens

    def embed_class_tokens(self, class_tokens: Tensor) -> Tensor:
        """(..., D) class tokens as they enter the first layer: with the class position's embedding, and CLIP's norm."""
        position = self.class_position
        placed = class_tokens if position is None else class_tokens + position
        entered: Tensor = self.vit.norm_pre(placed)
        return entered

    def final_norm(self, tokens: Tensor) -> Tensor:
        """(..., D) tokens after the norm that precedes the head: `norm`, or `fc_norm` where the model pools first."""
        norm = self.vit.fc_norm if isinstance(self.vit.norm, nn.Identity) else self.vit.norm
        normed: Tensor = norm(tokens)
        return normed

    @torch.no_grad()
    def trace(self, images: Tensor, *, keys_and_values: bool = True, outputs: bool = True) -> Trace:
        """Runs the trunk once over (B, 3, height, width) images.

        keys_and_values: keep what the task streams need. outputs: compute features and the base answer; without them
        the last layer stops at its keys and values, for nothing after them is read.
        """
        x = self.vit.norm_pre(self.embed(self.check_images(images)))  # (B, N, D)
        keys: list[Tensor] = []
        values: list[Tensor] = []
        last = self.depth - 1
        for index, block in enumerate(self.vit.blocks):
            normed = block.norm1(x)
            if index == last and not outputs:
                if keys_and_values:
                    key, value = project_keys_and_values(block.attn, normed)
                    keys.append(key)
                    values.append(value)
                return Trace(keys, values, None, None)
            query, key, value = split_heads(block.attn, block.attn.qkv(normed))
            if keys_and_values:
                keys.append(key)
                values.append(value)
            heads = attend(block.attn, query, key, value)
            x = x + block.drop_path1(block.ls1(block.attn.proj(join_heads(block.attn, heads, normed))))
            x = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
        return Trace(keys, values, self.final_norm(x[:, 0]), self.classify(self.vit.norm(x)))

    def classify(self, tokens: Tensor) -> Tensor | None:
        """(B, base classes) from tokens after `norm`; None for a model without classifier."""
        if isinstance(self.vit.head, nn.Identity):
            return None
        logits: Tensor = self.vit.forward_head(tokens)
        return logits

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features (B, D) and the base answer (B, base classes) or None, of normalised (B, 3, height, width) images."""
        trace = self.trace(images, keys_and_values=False)
        assert trace.features is not None
        return trace.features, trace.base


def refuse_other_weights(backbone: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before a state dict is loaded: MemtokError if it would change the backbone, whose bytes never change."""
    for name, tensor in backbone.state_dict().items():
        other = state.get(prefix + name, tensor)
        if not isinstance(other, Tensor) or other.shape != tensor.shape or not torch.equal(other.to(tensor), tensor):
            raise MemtokError(
                f"expected the backbone's own numbers in {prefix + name}, found others; load another backbone with "
                "memtok.load_backbone, and tasks with memtok.load_task"
            )


def split_heads(attention: Any, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, each (B, H, n, d), of the output (B, n, 3 H d) of timm's joint projection."""
    batch, count, _ = qkv.shape
    heads = qkv.reshape(batch, count, 3, attention.num_heads, attention.head_dim).permute(2, 0, 3, 1, 4)
    query, key, value = heads.unbind(0)  # (B, H, n, d) each
    return attention.q_norm(query), attention.k_norm(key), value


def project_keys_and_values(attention: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values, each (B, H, n, d), of (B, n, D) tokens that ask nothing: a third of the projection is saved."""
    start = attention.attn_dim
    bias = None if attention.qkv.bias is None else attention.qkv.bias[start:]
    projected = F.linear(tokens, attention.qkv.weight[start:], bias)  # (B, n, 2 H d)
    batch, count, _ = projected.shape
    key, value = projected.reshape(batch, count, 2, attention.num_heads, attention.head_dim).permute(2, 0, 3, 1, 4)
    return attention.k_norm(key), value


def attend(attention: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """(B, H, n, d) of plain unmasked attention, by the kernel that timm would take."""
    if attention.fused_attn:
        return F.scaled_dot_product_attention(query, key, value)
    scores = (query * attention.scale) @ key.transpose(-2, -1)
    heads: Tensor = scores.softmax(dim=-1) @ value
    return heads


def join_heads(attention: Any, heads: Tensor, normed: Tensor) -> Tensor:
    """(B, n, H d) what the output projection of attention gets: heads (B, H, n, d) side by side, normed and gated.

    normed: (B, n, D) the input of the attention block, which the gate of some timm models reads.
    """
    batch, _, count, _ = heads.shape
    joined: Tensor = attention.norm(heads.transpose(1, 2).reshape(batch, count, attention.attn_dim))
    if attention.gate is not None:
        joined = joined * attention.gate(normed).sigmoid()
    return joined


def load_backbone(
    source: str | Path | nn.Module,
    image_size: int | tuple[int, int] | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    architecture: str | None = None,
) -> Backbone:
    """Loads a backbone from a folder, a `.safetensors` file, a Hub id, a timm name, or a timm / transformers model.

    image_size: pixels, (height, width) or one number for both; position embeddings are resized as the source library
    does it. architecture: timm's name, for a lone file that does not name it. See docs/backbones.md.

    Raises MemtokError for a source that cannot be found or read, and for a model that task streams do not understand.
    """
    place = check_device(device)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise MemtokError(
            f"expected a floating-point torch.dtype, found {dtype!r}; use torch.float32 or torch.bfloat16"
        )
    checkpoint = read_checkpoint(source, image_size=image_size, architecture=architecture)
    if checkpoint.preprocessing_origin != "checkpoint":
        logger.warning("preprocessing of %s: %s", checkpoint.source, checkpoint.preprocessing_origin)
    backbone = Backbone(checkpoint)
    backbone.architecture = architecture
    return backbone.to(device=place, dtype=dtype)


def check_device(device: str | torch.device) -> torch.device:
    """The device, if this machine has it."""
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise MemtokError(
            f"expected a device of this machine, found {str(device)!r}; use 'cpu', or 'cuda' where there is a GPU"
        ) from error
    return place
