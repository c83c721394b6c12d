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
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from memtok.attention import attend, join_heads, project_keys_and_values, split_heads
from memtok.checkpoint import Checkpoint, read_checkpoint
from memtok.checks import check_choice
from memtok.errors import MemtokError
from memtok.preprocessing import Preprocessing
from memtok.surroundings import plain_torch
from memtok.trace import Kept, Trace

logger = logging.getLogger("memtok")

KEYS_AND_VALUES, INPUTS, NOTHING = "keys and values", "inputs", "nothing"


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
    def tokens(self) -> int:
        """N, the tokens of the trunk: prefix tokens and patches."""
        return int(self.vit.patch_embed.num_patches + self.vit.num_prefix_tokens)

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

    @property
    def base_classes(self) -> int:
        """How many classes the base answer has, 0 without one; by the head itself, whatever `vit.num_classes` says."""
        if isinstance(self.vit.head, nn.Linear):
            return self.vit.head.out_features
        with torch.no_grad():
            answer = self.classify(torch.zeros(1, self.tokens, self.dim, device=self.device, dtype=self.dtype))
        if answer is None:
            return 0
        if answer.ndim != 2:
            raise MemtokError(
                f"expected a head that gives a number per class, found {type(self.vit.head).__name__}, which gives a "
                f"tensor of shape {tuple(answer.shape)} for one image; replace it by a classifier"
            )
        return answer.shape[1]

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
                "make one of them with model.prepare(images)"
            )
        if images.ndim != 4 or tuple(images.shape[1:]) != (channels, height, width):
            raise MemtokError(
                f"expected images of shape (batch, {channels}, {height}, {width}), found {tuple(images.shape)}; "
                "resize them, or load the backbone with image_size="
            )
        if not images.is_floating_point():
            raise MemtokError(
                f"expected normalised floating-point images, found {images.dtype}; make them with model.prepare(images)"
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

    def trace(
        self,
        images: Tensor,
        *,
        keep: str = KEYS_AND_VALUES,
        outputs: bool = True,
        visit: Callable[[int, Kept], None] | None = None,
        run: Callable[..., tuple[Tensor, Kept | tuple[()]]] | None = None,
    ) -> Trace:
        """Runs the trunk once over (B, 3, height, width) images, without gradient unless the images ask for theirs.

        keep: what stays for the task streams: "keys and values", "inputs" (half as much, see `Trace`) or "nothing".
        outputs: compute features and the base answer; without them the last layer stops where the trace of it is
        complete, for nothing after that is read. visit: gets the number of each layer and what was kept of it, which
        is then not in the result; it may build a graph of gradients. run: a compiled `run_layer`.
        """
        check_choice("keep", keep, (KEYS_AND_VALUES, INPUTS, NOTHING))
        images = self.check_images(images)
        with gradients_of(images):
            x = self.vit.norm_pre(self.embed(images))  # (B, N, D)
        trace = Trace(backbone=self.fingerprint)
        compiled = KEYS_AND_VALUES if keep == NOTHING else keep  # one code with tasks and without: the same bits
        for index, block in enumerate(self.vit.blocks):
            stop = index == self.depth - 1 and not outputs
            with gradients_of(images):
                x, kept = (run or run_layer)(block, x, keep if run is None else compiled, stop)
            if keep != NOTHING and kept:
                (visit(index, kept) if visit else trace.append(kept))
        if not outputs:
            return trace
        with gradients_of(images):
            return replace(trace, features=self.final_norm(x[:, 0]), base=self.classify(self.vit.norm(x)))

    def classify(self, tokens: Tensor) -> Tensor | None:
        """(B, base classes) from tokens after `norm`; None for a model without classifier."""
        if isinstance(self.vit.head, nn.Identity):
            return None
        logits: Tensor = self.vit.forward_head(tokens)
        return logits

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features (B, D) and the base answer (B, base classes) or None, of normalised (B, 3, height, width) images."""
        trace = self.trace(images, keep=NOTHING)
        assert trace.features is not None
        return trace.features, trace.base


def gradients_of(images: Tensor) -> torch.set_grad_enabled:
    """A context for what depends on images and on nothing that trains: no gradients unless the images want theirs.

    So training builds no graph of the trunk, and a saliency map (`images.requires_grad_()`) goes through all of it.
    """
    return torch.set_grad_enabled(torch.is_grad_enabled() and images.requires_grad)


def run_layer(block: Any, x: Tensor, keep: str, stop: bool) -> tuple[Tensor, Kept | tuple[()]]:
    """One layer of the trunk: tokens (B, N, D) after it, and its trace, as `Backbone.trace` is asked to keep it.

    With `stop` it ends there, and the tokens that come back mean nothing.
    """
    normed = block.norm1(x)
    if stop:
        return x, (normed,) if keep == INPUTS else project_keys_and_values(block.attn, normed)
    x, pair = add_attention(block, x, normed, keep == KEYS_AND_VALUES)
    kept = (normed,) if keep == INPUTS else pair
    del normed  # the MLP needs the most memory of all: what is not kept is given back before it
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x)))), kept


def add_attention(
    block: Any, x: Tensor, normed: Tensor, keep: bool
) -> tuple[Tensor, tuple[Tensor, Tensor] | tuple[()]]:
    """Tokens (B, N, D) with the output of attention added; with `keep` also keys and values, (B, H, N, d) each.

    They are copies: views would hold the queries in memory as well, and every reader would copy them anyway.
    """
    query, key, value = split_heads(block.attn, block.attn.qkv(normed))
    heads = attend(block.attn, query, key, value)
    pair = (key.contiguous(), value.contiguous()) if keep else ()
    return x + block.drop_path1(block.ls1(block.attn.proj(join_heads(block.attn, heads, normed)))), pair


def refuse_other_weights(backbone: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before a state dict is loaded: MemtokError if it would change the backbone, whose bytes never change."""
    for name, tensor in backbone.state_dict().items():
        other = state.get(prefix + name, tensor)
        if not isinstance(other, Tensor) or other.shape != tensor.shape or not torch.equal(other.to(tensor), tensor):
            raise MemtokError(
                f"expected the backbone's own numbers in {prefix + name}, found others; load another backbone with "
                "memtok.load_backbone, and tasks with memtok.load_task"
            )


@plain_torch()
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
