"""How much memory configurations take while they train together, and how they are split over passes that fit.

What a configuration keeps for its gradient is the sum over its parts (`Part.kept`). Beside that stand its parameters,
what its optimizer keeps of them, and what all share: the trunk's trace and the layer that it is at work on.
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
from memtok.parts import kept, parameters
from memtok.regimes import REGIMES
from memtok.sweeps.space import Configuration

SHARE = 0.6  # of the free memory, which others may want too
ESTIMATE_WITHIN = 2.0  # the estimate of what is kept for the gradient is off by less than this factor; a test measures
GIGABYTE = 1_000_000_000
MOST_GIGABYTES = 1e9  # no machine has as much, and a larger limit limits nothing


@dataclass(frozen=True, kw_only=True)
class Step:
    """Training steps over `images` images at once, of tasks with `classes` classes on a backbone.

    moments: numbers that the optimizer keeps of every parameter. width: bytes of a number in the streams.
    """

    backbone: Backbone
    images: int
    classes: int
    moments: int
    width: int

    @classmethod
    def of(cls, backbone: Backbone, *, images: int, classes: int, optimizer: str, precision: str) -> Step:
        """With this optimizer, in this precision."""
        moments = 1 if optimizer == "sgd" else 2
        width = 2 if precision == "bf16" else backbone.dtype.itemsize
        return cls(backbone=backbone, images=images, classes=classes, moments=moments, width=width)

    def kept(self, configuration: Configuration) -> int:
        """Bytes that a configuration keeps of the forward pass for its gradient."""
        return self.width * kept(self.backbone, configuration.form(self.classes), self.images)

    def configuration(self, configuration: Configuration) -> int:
        """Bytes of a configuration in all: what it keeps, its parameters, gradients, moments and initial values."""
        sizes = configuration.form(self.classes)
        trained = parameters(self.backbone, REGIMES[configuration.regime], sizes)
        return self.kept(configuration) + 4 * trained * (3 + self.moments)

    def shared(self) -> int:
        """Bytes of what all configurations share: images, the trace, and the layer that the trunk is at work on."""
        layer, tokens = self.backbone.layers[0], self.backbone.tokens
        pixels = CHANNELS * math.prod(self.backbone.preprocessing.image_size)
        trace = 2 * self.backbone.depth * tokens * layer.inner
        at_work = tokens * (4 * layer.dim + 4 * layer.inner + 2 * layer.hidden)
        return self.width * self.images * (2 * pixels + trace + at_work)


@dataclass(frozen=True)
class Budget:
    """What a sweep with these steps may use: `limit` bytes. together: most configurations in one pass."""

    step: Step
    limit: int
    together: int | None = None

    def need(self, configurations: Sequence[Configuration]) -> int:
        """Bytes that a pass of these takes."""
        return sum(self.step.configuration(each) for each in configurations) + self.step.shared()

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
                    f"expected {shown_bytes(single[each])} of memory for {each.name} at {self.step.images} images a "
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
