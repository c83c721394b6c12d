"""How much memory configurations take while they train together, and how they are split over passes that fit.

What a configuration keeps for its gradient follows from the sizes of the streams; so do its parameters and what its
optimizer keeps of them. Beside them stands what all share: the trunk's trace and the layer that it is at work on.

Letters for sizes: B images of a batch (of one of its parts, where it is accumulated), N tokens of the trunk, D their
width, I that of all heads, F that of the MLP, H heads, L layers; t class tokens, m cells and rank r of a configuration.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from memtok.backbone import CHANNELS, Backbone
from memtok.display import shown_bytes
from memtok.errors import Argument, MemtokError
from memtok.parts import parameters
from memtok.sweeps.space import Configuration

SHARE = 0.6  # of the free memory, which others may want too
ESTIMATE_WITHIN = 2.0  # the estimate of what is kept for the gradient is off by less than this factor; a test measures
GIGABYTE = 1_000_000_000
MOST_GIGABYTES = 1e9  # no machine has as much, and a larger limit limits nothing


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the memory of a step depends on besides the configurations. `width`: bytes of a number in the streams."""

    layers: int
    tokens: int
    dim: int
    inner: int
    hidden: int
    heads: int
    pixels: int
    images: int
    classes: int
    moments: int
    width: int

    @classmethod
    def of(cls, backbone: Backbone, *, images: int, classes: int, optimizer: str, precision: str) -> Sizes:
        """Of a backbone and of steps over `images` at once."""
        layer = backbone.layers[0]
        height, width = backbone.preprocessing.image_size
        return cls(
            layers=backbone.depth,
            tokens=backbone.tokens,
            dim=backbone.dim,
            inner=layer.inner,
            hidden=layer.hidden,
            heads=backbone.heads,
            pixels=CHANNELS * height * width,
            images=images,
            classes=classes,
            moments=1 if optimizer == "sgd" else 2,
            width=2 if precision == "bf16" else backbone.dtype.itemsize,
        )

    def kept(self, shape: tuple[str, int, int, int]) -> int:
        """Bytes that a configuration of this shape keeps of the forward pass for its gradient."""
        _, t, m, rank = shape
        if not t:
            return self.width * self.images * self.classes
        # Both norms keep their input, the MLP its hidden layer; attention keeps keys, values, and queries as they are
        # and as laid out for the products with trunk and memory.
        of_tokens = t * (2 * self.dim + 5 * self.inner + self.hidden)
        # Probabilities as the softmax gives them, and as laid out for the same products.
        of_attention = 2 * self.heads * t * (self.tokens + t + m)
        # What goes into adapters, and their low-rank middle.
        of_adapters = t * (2 * self.dim + self.inner + 3 * rank) * bool(rank)
        per_image = self.layers * (of_tokens + of_attention + of_adapters) + t * self.dim + self.classes
        # Adapters of all layers are cast and stacked, cells projected, once per step.
        per_step = self.layers * (3 * m * self.dim + rank * 4 * (self.dim + self.inner))
        return self.width * (self.images * per_image + per_step)

    def configuration(self, backbone: Backbone, configuration: Configuration) -> int:
        """Bytes of a configuration in all: what it keeps, its parameters, gradients, moments and initial values."""
        trained = parameters(backbone, configuration.regime, configuration.sizes(self.classes))
        return self.kept(stream_shape(configuration)) + 4 * trained * (3 + self.moments)

    def shared(self) -> int:
        """Bytes of what all configurations share: images, the trace, and the layer that the trunk is at work on."""
        trace = 2 * self.layers * self.tokens * self.inner
        at_work = self.tokens * (4 * self.dim + 4 * self.inner + 2 * self.hidden)
        return self.width * self.images * (2 * self.pixels + trace + at_work)


def stream_shape(configuration: Configuration) -> tuple[str, int, int, int]:
    """The shape of a configuration; a head has no class token of its own."""
    regime, t, m, rank = configuration.shape
    return regime, 0 if regime == "head" else t, m, rank


@dataclass(frozen=True)
class Budget:
    """What may be used: `limit` bytes, of a sweep with these sizes on this backbone. together: most in one pass."""

    sizes: Sizes
    backbone: Backbone
    limit: int
    together: int | None = None

    def need(self, configurations: Sequence[Configuration]) -> int:
        """Bytes that a pass of these takes."""
        own = sum(self.sizes.configuration(self.backbone, each) for each in configurations)
        return own + self.sizes.shared()

    def fits(self, configurations: Sequence[Configuration]) -> bool:
        """Whether these can share a pass."""
        few_enough = self.together is None or len(configurations) <= self.together
        return few_enough and self.need(configurations) <= self.limit

    def passes(self, configurations: Sequence[Configuration]) -> list[list[Configuration]]:
        """The configurations in few passes that fit, alike ones together; MemtokError if one alone does not fit.

        The largest are placed first, each into the first pass that has room. Inside a pass they keep their order.
        """
        order = {each: number for number, each in enumerate(configurations)}
        single = {each: self.need([each]) for each in configurations}
        found: list[list[Configuration]] = []
        for each in sorted(configurations, key=lambda one: (-single[one], one.shape, order[one])):
            if single[each] > self.limit:
                raise MemtokError(
                    f"expected {shown_bytes(single[each])} of memory for {each.name} at {self.sizes.images} images a "
                    f"step, found a limit of {shown_bytes(self.limit)}; raise the limit, or lower the batch size or "
                    f"raise {Argument('accumulate')}",
                    argument="memory_limit",
                )
            place = next((one for one in found if self.fits([*one, each])), None)
            if place is None:
                found.append([each])
            else:
                place.append(each)
        return [sorted(one, key=order.__getitem__) for one in found]


def free_memory(device: torch.device) -> int:
    """Bytes that are free where the sweep trains."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    import psutil

    return int(psutil.virtual_memory().available)


def find_limit(device: torch.device, gigabytes_given: float | None, reserved: int = 0) -> int:
    """Bytes that may be used: as given, else a share of what is free beside `reserved` bytes."""
    if gigabytes_given is None:
        return int(SHARE * max(0, free_memory(device) - reserved))
    value: Any = gigabytes_given
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:  # also of whole numbers that are no float
        raise MemtokError(f"expected {Argument('memory_limit')} in GB as a number above 0, found {value!r}; change it")
    return int(min(value, MOST_GIGABYTES) * GIGABYTE)
