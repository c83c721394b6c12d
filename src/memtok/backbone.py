"""The backbone: a pre-trained timm Vision Transformer, frozen, and the trace that it leaves for the task streams.

One forward pass of the backbone meets no task, so its outputs are bitwise those of the timm model. The loop over the
layers is written out here, in the verbs of `memtok.layers` and timm's own order of operations, because the keys and
values of every layer are wanted: they are all that a task ever sees of an image (DESIGN section 3). Letters for shapes
as in layers/base.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from memtok import levels
from memtok.checkpoint import Checkpoint, read_checkpoint
from memtok.checks import check_choice
from memtok.errors import Argument, MemtokError
from memtok.layers import Layer, Positions, family_of, final_norm
from memtok.levels import NO_READS, Reads
from memtok.preprocessing import Preprocessing
from memtok.surroundings import plain_torch
from memtok.trace import Kept, Trace, class_bias, rotated_keys_and_values

logger = logging.getLogger("memtok")

KEYS_AND_VALUES, INPUTS, NOTHING = "keys and values", "inputs", "nothing"
CHANNELS = 3  # other models are refused


class Backbone(nn.Module):
    """A timm Vision Transformer that never changes: no gradient, evaluation mode whatever is called.

    Attributes:
        vit: the timm model. layers: its blocks, as `memtok.layers` reads them. fingerprint: "sha256:..." of its trunk.
        source: where it came from, for people.
        preprocessing: what an image goes through before it gets here.
        classes: names of the base classes where the checkpoint has them, else empty.
        record: how memtok trained it in regime `full`; empty for every other checkpoint.
        architecture: timm's name as it was given to `load_backbone`, None if it was not.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.vit: Any = checkpoint.vit
        self.family = family_of(self.vit)
        self.layers: tuple[Layer, ...] = self.family.layers(self.vit)
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
        return len(self.layers)

    @property
    def dim(self) -> int:
        """D, the width of a token."""
        return int(self.vit.embed_dim)

    @property
    def heads(self) -> int:
        """H, the number of attention heads."""
        return self.layers[0].heads

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches."""
        rows, columns = self.vit.patch_embed.grid_size
        return rows, columns

    @property
    def prefix_tokens(self) -> int:
        """How many tokens stand before the patches: class, distillation and register tokens."""
        return int(self.vit.num_prefix_tokens)

    @property
    def tokens(self) -> int:
        """N, the tokens of the trunk: prefix tokens and patches."""
        return self.prefix_tokens + self.grid[0] * self.grid[1]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        return self.layers[0].dtype

    @property
    def class_token(self) -> Tensor | None:
        """(D,) the base class token, without position embedding; None where the backbone has none."""
        if self.vit.cls_token is None:
            return None
        token: Tensor = self.vit.cls_token[0, 0]
        return token

    @property
    def start_token(self) -> Tensor:
        """(D,) what the class token of a new task starts from: the base one, if there is one.

        Else the mean of the patches as they enter the first layer, of an image that is 0 after normalisation: the bias
        of the patch embedding and the mean position. docs/method.md has the measurement.
        """
        if self.class_token is not None:
            return self.class_token
        grey = torch.zeros(1, CHANNELS, *self.preprocessing.image_size, device=self.device, dtype=self.dtype)
        with torch.no_grad():
            return self.family.enter(self.vit, grey)[0, self.prefix_tokens :].mean(dim=0)

    @property
    def class_position(self) -> Tensor | None:
        """(D,) the position embedding of the class position, None where the backbone has none for the class."""
        return self.family.class_position(self.vit)

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
        """Returns `images` in the backbone's precision; MemtokError unless (B, 3, height, width) fit it."""
        height, width = self.preprocessing.image_size
        if not isinstance(images, Tensor):
            raise MemtokError(
                f"expected images as a tensor (batch, {CHANNELS}, {height}, {width}), found {type(images).__name__}; "
                "make one of them with model.prepare(images)",
                argument="images",
            )
        if images.ndim != 4 or tuple(images.shape[1:]) != (CHANNELS, height, width):
            raise MemtokError(
                f"expected images of shape (batch, {CHANNELS}, {height}, {width}), found {tuple(images.shape)}; "
                f"resize them, or load the backbone with {Argument('image_size')}",
                argument="images",
            )
        if not images.is_floating_point():
            raise MemtokError(
                f"expected normalised floating-point images, found {images.dtype}; make them with "
                "model.prepare(images)",
                argument="images",
            )
        if images.device != self.device:
            raise MemtokError(
                f"expected images on {self.device}, found them on {images.device}; move them with images.to(...)",
                argument="images",
            )
        return images.to(self.dtype)

    def enter(self, images: Tensor) -> Tensor:
        """(B, N, D) prefix tokens and patches as they enter the first layer, without gradient unless images want it."""
        with gradients_of(images):
            return self.family.enter(self.vit, images)

    def enter_class_tokens(self, class_tokens: Tensor) -> Tensor:
        """(..., D) class tokens as they enter the first layer: with the class position's embedding, and CLIP's norm."""
        return self.family.enter_class_tokens(self.vit, class_tokens)

    def positions(self) -> Sequence[Positions]:
        """The positions of the image tokens, for each layer; `memtok.layers` knows what they mean."""
        with torch.no_grad():
            return self.family.positions(self.vit)

    def final_norm(self, tokens: Tensor) -> Tensor:
        """(..., D) tokens after the norm that precedes the head: `norm`, or `fc_norm` where the model pools first."""
        return final_norm(self.vit, tokens)

    def trace(
        self,
        images: Tensor,
        *,
        keep: str = KEYS_AND_VALUES,
        outputs: bool = True,
        reads: Reads = NO_READS,
        visit: Callable[[int, Kept], None] | None = None,
        run: Callable[..., tuple[Tensor, Kept | tuple[()]]] | None = None,
    ) -> Trace:
        """Runs the trunk once over (B, 3, height, width) images, without gradient unless the images require one.

        keep: returned for the task streams: "keys and values", "inputs" (half as much, see `Trace`) or "nothing".
        outputs: compute features and the base answer; without them the last layer stops where the trace of it is
        complete, for nothing after that is read. reads: the statistics to return; with any, the last layer does not
        stop. visit: gets the number of each layer and what was kept of it, which is then not in the result; it may
        build a graph of gradients. run: a compiled `run_layer`.
        """
        check_choice("keep", keep, (KEYS_AND_VALUES, INPUTS, NOTHING))
        images = self.check_images(images)
        x = self.enter(images)  # (B, N, D)
        trace = Trace(backbone=self.fingerprint)
        read: list[dict[str, Tensor]] = []  # by level
        compiled = KEYS_AND_VALUES if keep == NOTHING else keep  # one code with tasks and without: the same bits
        for index, (layer, positions) in enumerate(zip(self.layers, self.positions(), strict=True)):
            stop = index == self.depth - 1 and not outputs and not reads
            with gradients_of(images):
                read.append(self.statistics(x, index, reads))
                x, kept = (run or run_layer)(layer, x, positions, keep if run is None else compiled, stop)
            if keep != NOTHING and kept:
                (visit(index, kept) if visit else trace.append(kept))
        if reads:
            with gradients_of(images):
                read.append(self.statistics(x, self.depth, reads))
            trace = replace(trace, statistics=stacked(read))
        if not outputs:
            return trace
        with gradients_of(images):
            return replace(trace, features=self.features(x), base=self.classify(self.vit.norm(x)))

    def features(self, tokens: Tensor) -> Tensor:
        """(B, D) of tokens (B, N, D) after the last layer: the base class token after the final norm.

        A backbone without class token pools as its own classifier does, or takes the mean of the patches where it has
        no pooling.
        """
        if self.class_token is not None:
            return self.final_norm(tokens[:, 0])
        normed = self.vit.norm(tokens)
        if not self.vit.global_pool:
            pooled: Tensor = self.vit.fc_norm(normed[:, self.prefix_tokens :].mean(dim=1))
        else:
            pooled = self.vit.forward_head(normed, pre_logits=True)
        return pooled

    def vectors(self, statistic: str) -> int:
        """k, of how many vectors one of `memtok.levels.STATISTICS` consists here."""
        return levels.vectors(statistic, class_token=self.class_token is not None, prefix_tokens=self.prefix_tokens)

    def shape_of(self, statistic: str) -> tuple[int, ...]:
        """Its shape for one image when all levels are read: (L + 1, k, D), or (m, rows, columns, D) patches."""
        if statistic == levels.PATCHES:
            return len(levels.patch_levels(self.depth)), *self.grid, self.dim
        return self.depth + 1, self.vectors(statistic), self.dim

    def statistics(self, tokens: Tensor, level: int, reads: Reads) -> dict[str, Tensor]:
        """What is read of tokens (B, N, D) of one level, by name: (B, k, D), or (B, rows, columns, D) patches."""
        names = [
            name
            for name in (*levels.STATISTICS, levels.PATCHES)
            if name in reads.statistics and levels.read_at(name, level, self.depth, reads.levels)
        ]
        if not names:
            return {}
        normed = levels.normalised(tokens)
        has_class = self.class_token is not None
        return {
            name: levels.statistic(
                name, normed, class_token=has_class, prefix_tokens=self.prefix_tokens, grid=self.grid
            )
            for name in names
        }

    def classify(self, tokens: Tensor) -> Tensor | None:
        """(B, base classes) from tokens after `norm`; None for a model without classifier."""
        if isinstance(self.vit.head, nn.Identity):
            return None
        logits: Tensor = self.vit.forward_head(tokens)
        return logits

    def attention(self, images: Tensor) -> Tensor:
        """(B, H, N) attention weights of the base class token over the trunk's tokens, in the last layer.

        images: normalised (B, 3, height, width). Raises MemtokError for a backbone without class token.
        """
        if self.class_token is None:
            raise MemtokError(
                "expected a backbone with a class token, found one without; attention weights of tasks with class "
                "tokens of their own are in model(images, attention=True)"
            )
        layer, positions = self.layers[-1], self.positions()[-1]
        [*_, normed] = self.trace(images, keep=INPUTS, outputs=False).inputs
        with gradients_of(images):
            query, key, _ = layer.queries_keys_values(normed)
            query, key = layer.rotate(query, positions)[:, :, :1], layer.rotate(key, positions)
            scores, bias = (query * layer.scale) @ key.transpose(-2, -1), class_bias(layer, positions)
            return (scores if bias is None else scores + bias).softmax(dim=-1).squeeze(2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features (B, D) and the base answer (B, base classes) or None, of normalised (B, 3, height, width) images."""
        trace = self.trace(images, keep=NOTHING)
        assert trace.features is not None
        return trace.features, trace.base


def stacked(read: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """What was read level by level, the last of which has all statistics, as (B, n, ...) by name."""
    return {name: torch.stack([one[name] for one in read if name in one], dim=1) for name in read[-1]}


def gradients_of(images: Tensor) -> torch.set_grad_enabled:
    """A context for what depends on images and on nothing that trains: no gradients unless the images require one.

    So training builds no graph of the trunk, and a saliency map (`images.requires_grad_()`) goes through all of it.
    """
    return torch.set_grad_enabled(torch.is_grad_enabled() and images.requires_grad)


def run_layer(layer: Layer, x: Tensor, positions: Positions, keep: str, stop: bool) -> tuple[Tensor, Kept | tuple[()]]:
    """One layer of the trunk: tokens (B, N, D) after it, and its trace, as selected by `keep` of `Backbone.trace`.

    With `stop` it ends there, and the tokens that come back mean nothing.
    """
    normed = layer.normed(x)
    if stop:
        return x, (normed,) if keep == INPUTS else rotated_keys_and_values(layer, normed, positions)
    x, pair = add_attention(layer, x, normed, positions, keep == KEYS_AND_VALUES)
    kept = (normed,) if keep == INPUTS else pair
    del normed  # the MLP needs the most memory of all: what is not kept is given back before it
    return layer.add_mlp(x), kept


def add_attention(
    layer: Layer, x: Tensor, normed: Tensor, positions: Positions, keep: bool
) -> tuple[Tensor, tuple[Tensor, Tensor] | tuple[()]]:
    """Tokens (B, N, D) with the output of attention added; with `keep` also keys and values, (B, H, N, d) each.

    They are copies: views would hold the queries in memory as well, and every reader would copy them anyway.
    """
    query, key, value = layer.queries_keys_values(normed)
    query, key = layer.rotate(query, positions), layer.rotate(key, positions)
    heads = layer.attend(query, key, value, positions)
    pair = (key.contiguous(), value.contiguous()) if keep else ()
    return layer.add_attention(x, heads, normed), pair


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
            f"expected a floating-point torch.dtype, found {dtype!r}; use torch.float32 or torch.bfloat16",
            argument="dtype",
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
            f"expected a device of this machine, found {str(device)!r}; use 'cpu', or 'cuda' where there is a GPU",
            argument="device",
        ) from error
    return place
