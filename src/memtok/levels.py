"""What tasks read of the trunk between its layers: statistics of the tokens, level by level.

Level l is what enters layer l, and level L what leaves the last layer, before the final norm: L + 1 levels in all. The
tokens of a level are normalised without affine parameters, as layer norm does it, so that all levels have one scale.
Letters as in layers/base.py. Importing this module brings no torch along.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Statistics = Mapping[str, "Tensor"]
"""By name, (B, n, k, D): k vectors of each of the last n levels. `PATCHES`: (B, m, rows, columns, D), see there."""

CLASS, REGISTERS, MEAN, DEVIATION, REGIONS = STATISTICS = ("class", "registers", "mean", "deviation", "regions")
"""The class token; the register and distillation tokens; the mean of the patches; their standard deviation; the means
of the patches in each quarter of the image, row by row."""

PATCHES = "patches"
"""All patches as they lie in the image, not of every level but of every second one from the last downwards."""

EPSILON = 1e-6  # of the norm, and under the root of a deviation; what is trained depends on it
PARTS = 2  # of an image's side, for the regions
ALL_LEVELS = 1 << 30  # more than any trunk has
APART = 2  # levels from one whose patches are read to the next


@dataclass(frozen=True)
class Reads:
    """What is read: the named statistics of the last `levels` levels."""

    levels: int = 0
    statistics: frozenset[str] = frozenset()

    def __or__(self, other: Reads) -> Reads:
        """What both read."""
        return Reads(max(self.levels, other.levels), self.statistics | other.statistics)

    def __bool__(self) -> bool:
        return self.levels > 0


NO_READS = Reads()


def union(reads: Iterable[Reads]) -> Reads:
    """What all of them read."""
    found = Reads()
    for one in reads:
        found |= one
    return found


def patch_levels(depth: int) -> range:
    """The levels of a trunk of so many layers whose patches are read, in their order."""
    return range(depth % APART, depth + 1, APART)


def read_at(name: str, level: int, depth: int, levels: int) -> bool:
    """Whether a statistic of the last `levels` levels is read at this one."""
    return level > depth - levels and (name != PATCHES or level in patch_levels(depth))


def vectors(name: str, *, class_token: bool, prefix_tokens: int) -> int:
    """k, of how many vectors a statistic consists, for a trunk with such tokens before its patches."""
    counts = {CLASS: int(class_token), REGISTERS: prefix_tokens - int(class_token), REGIONS: PARTS * PARTS}
    return counts.get(name, 1)


def normalised(tokens: Tensor) -> Tensor:
    """(B, N, D) tokens with mean 0 and variance 1 over their width."""
    from torch.nn import functional as F

    return F.layer_norm(tokens, tokens.shape[-1:], eps=EPSILON)


def statistic(name: str, tokens: Tensor, *, class_token: bool, prefix_tokens: int, grid: tuple[int, int]) -> Tensor:
    """(B, k, D) one statistic of normalised tokens (B, N, D), whose patches are the last of them.

    `PATCHES` is (B, rows, columns, D).
    """
    patches = tokens[:, prefix_tokens:]
    if name == PATCHES:
        return patches.reshape(patches.shape[0], *grid, patches.shape[2])
    if name == CLASS:
        return tokens[:, : int(class_token)]
    if name == REGISTERS:
        return tokens[:, int(class_token) : prefix_tokens]
    if name == MEAN:
        return patches.mean(dim=1, keepdim=True)
    if name == DEVIATION:
        centred = patches - patches.mean(dim=1, keepdim=True)  # torch's var over this dimension is ten times as slow
        # In place, for two tensors of this size take ten times as long as one, and no gradient reaches them.
        return (centred.square_().mean(dim=1, keepdim=True) + EPSILON).sqrt()
    return regions(patches, grid)


def regions(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, 4, D) the mean of the patches (B, P, D) in each quarter; the middle of an odd side is in both halves."""
    from torch.nn import functional as F

    image = patches.reshape(patches.shape[0], *grid, patches.shape[2]).permute(0, 3, 1, 2)  # (B, D, rows, columns)
    return F.adaptive_avg_pool2d(image, PARTS).flatten(2).transpose(1, 2)
