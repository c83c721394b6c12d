"""A side stream: a narrow state of every patch, fed by the trunk's levels and never feeding back.

The state of a patch, r numbers, takes up the trunk's tokens of every second level, is mixed with its neighbours and
by a small MLP, and is carried to the next of these levels; the head reads its mean and its means over a grid. What it
adds to a pass is small, for r is, and the tokens are those that the trunk computes anyway.

Source: docs/method.md has the equations. Side networks beside an untouched trunk: Sung et al., LST, NeurIPS 2022
(arXiv 2206.06522); of low rank: Tang et al., LAST (arXiv 2402.04009).

Letters for shapes: K tasks of one shape, B images, m levels that are read, g x h patches, r numbers.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memtok.errors import MemtokError
from memtok.levels import ALL_LEVELS, APART, CLASS, NO_READS, PATCHES, Reads, Statistics, patch_levels
from memtok.parts.base import Form, Option, Part, Spec, Trunk, length
from memtok.regimes import Regime

if TYPE_CHECKING:
    from torch import Tensor

GRID = 4  # means per side of the image that the head reads, beside the mean of all
READ = 1 + GRID * GRID  # vectors that the head reads
WIDER = 2  # the MLP's hidden layer over its input
MIX_STD, HEAD_STD = 0.1, 0.02
RATE = 0.3  # with Adam, over that of class tokens

Values = Mapping[str, "Tensor"]
"""The tensors of K tasks that act at the levels, (m, K, ...) by name without `side.`: one block per level."""


class Side(Part):
    """What a side stream of width r consists of, at each of m levels:

    `side.patches` (m, r, D) and `side.token` (m, r, D), which take up a patch and the class token, where the trunk has
    one, `side.bias` (m, r), `side.mix` (m, r, 3, 3), a convolution of every number by itself, `side.up` (m, 2 r, r)
    and `side.down` (m, r, 2 r), the MLP. And `side.weight` (classes, 17, r) over the mean of the state and its means
    over a grid of 4 x 4.
    """

    options = (
        Option(
            name="side",
            help="width of a side stream over the patches, such as 16",
            axis="sides",
            heading="side stream",
            tag="side",
            fits=lambda regime: regime.composable,
        ),
    )
    names = tuple(f"side.{name}" for name in ("patches", "token", "bias", "mix", "up", "down", "weight"))

    def specs(self, trunk: Trunk, regime: Regime, form: Form) -> dict[str, Spec]:
        width, dim, count = form["side"], trunk.dim, len(patch_levels(trunk.depth))
        if not width:
            return {}
        hidden = WIDER * width
        takes = ("patches", "token") if trunk.vectors(CLASS) else ("patches",)
        return {
            **{f"side.{name}": Spec((count, width, dim), dim**-0.5) for name in takes},
            "side.bias": Spec((count, width), decays=False),
            "side.mix": Spec((count, width, 3, 3), MIX_STD),
            "side.up": Spec((count, hidden, width), width**-0.5),
            "side.down": Spec((count, width, hidden), 0.5 * hidden**-0.5),
            "side.weight": Spec((form["classes"], READ, width), HEAD_STD),
        }

    def sizes(self, tensors: Mapping[str, Any]) -> dict[str, int]:
        return {"side": max(0, length(tensors.get("side.weight"), 2, 3))}

    def reads(self, form: Form) -> Reads:
        return Reads(ALL_LEVELS, frozenset((PATCHES, CLASS))) if form["side"] else NO_READS

    def logits(
        self, tensors: Mapping[str, Tensor], choices: Mapping[str, str], features: Tensor, statistics: Statistics
    ) -> Tensor | None:
        return self.together([tensors]).logits(statistics)[0] if "side.weight" in tensors else None

    def shape(self, tensors: Mapping[str, Tensor]) -> Hashable | None:
        patches = tensors.get("side.patches")
        return None if patches is None else (patches.shape, patches.dtype)

    def together(self, tasks: Sequence[Mapping[str, Tensor]]) -> Streams:
        return Streams(gathered(tasks), tuple(task["side.weight"].flatten(1) for task in tasks))

    def rate(self, trunk: Trunk, form: Form) -> float:
        return RATE

    def cost(self, trunk: Trunk, form: Form) -> int:
        width, count, patches = form["side"], len(patch_levels(trunk.depth)), math.prod(trunk.grid)
        level = patches * width * (trunk.dim + 9 + 2 * WIDER * width) + trunk.vectors(CLASS) * trunk.dim * width
        return int(count * level + READ * width * (patches + form["classes"]))

    def kept(self, trunk: Trunk, form: Form, images: int) -> int:
        """The patches, as the trunk leaves them; of the state the input and output of every norm, and the MLP's."""
        width, count, patches = form["side"], len(patch_levels(trunk.depth)), math.prod(trunk.grid)
        return int(images * count * patches * (trunk.dim + (4 + 2 * WIDER) * width)) if width else 0


@dataclass(frozen=True)
class Streams:
    """The side streams of K tasks of one shape. weights: of each task, (classes, 17 r)."""

    values: Values
    weights: tuple[Tensor, ...]

    def logits(self, statistics: Statistics) -> list[Tensor]:
        """What they add to the logits of each task, (B, classes); MemtokError without the patches of the levels."""
        levels, count = statistics[PATCHES].shape[1] if PATCHES in statistics else 0, len(self.values["bias"])
        if levels != count:
            raise MemtokError(
                f"expected the patches of {count} levels for a side stream, found those of {levels}; make the trace "
                "with a model that has all tasks to answer"
            )
        read = states_read(self.values, statistics).flatten(2)  # (K, B, 17 r)
        return [own @ weight.T for own, weight in zip(read, self.weights, strict=True)]

    def tensors(self) -> Iterable[Tensor]:
        """The values; the weights are the tasks' own."""
        return self.values.values()


def gathered(tasks: Sequence[Mapping[str, Tensor]]) -> Values:
    """The values of tasks whose side streams have one shape, from their tensors."""
    import torch

    found = {}
    for name in Side.names:
        if name != "side.weight" and name in tasks[0]:
            found[name.removeprefix("side.")] = torch.stack([task[name] for task in tasks], dim=1)
    return found


def states_read(values: Values, statistics: Statistics) -> Tensor:
    """(K, B, 17, r) what the heads of K tasks read of their states after the last level."""
    from torch.nn import functional as F

    patches = statistics[PATCHES]  # (B, m, g, h, D)
    batch, count, rows, columns, dim = patches.shape
    _, tasks, width, _ = values["patches"].shape
    state = values["bias"].new_zeros(())
    for level in range(count):
        tokens = patches[:, level].to(values["bias"].dtype).reshape(batch * rows * columns, dim)
        taken = tokens @ values["patches"][level].reshape(tasks * width, dim).T  # one product for all tasks
        taken = taken.reshape(batch, rows * columns, tasks, width) + entering(values, statistics, level, count)
        state = mixed(values, level, state + taken, (rows, columns))
        hidden = by_task(F.layer_norm(state, (width,)), values["up"][level])
        state = state + by_task(F.gelu(hidden), values["down"][level])
    return pooled(F.layer_norm(state, (width,)), (rows, columns))


def entering(values: Values, statistics: Statistics, level: int, count: int) -> Tensor:
    """(B or 1, 1, K, r) what all patches take up alike at one of `count` levels: of the class token, and the bias."""
    bias = values["bias"][level]
    if "token" not in values:
        return bias[None, None]
    token = statistics[CLASS][:, APART * (level - count) + 1, 0].to(bias.dtype)  # (B, D)
    tasks, width, dim = values["token"][level].shape
    taken = (token @ values["token"][level].reshape(tasks * width, dim).T).reshape(-1, 1, tasks, width)
    return taken + bias


def mixed(values: Values, level: int, state: Tensor, grid: tuple[int, int]) -> Tensor:
    """The state (B, g h, K, r) with a convolution over the grid added, every number of every task by itself."""
    from torch.nn import functional as F

    batch, patches, tasks, width = state.shape
    # A view: channels lie last, as the state has them.
    image = F.layer_norm(state, (width,)).reshape(batch, *grid, tasks * width).permute(0, 3, 1, 2)
    kernels = values["mix"][level].reshape(tasks * width, 1, 3, 3)
    moved = F.conv2d(image, kernels, padding=1, groups=tasks * width)
    return state + moved.permute(0, 2, 3, 1).reshape(batch, patches, tasks, width)


def by_task(state: Tensor, matrices: Tensor) -> Tensor:
    """(B, P, K, outputs): the numbers (B, P, K, inputs) of each task times its matrix (K, outputs, inputs)."""
    batch, patches, tasks, width = state.shape
    rows = state.reshape(batch * patches, tasks, width).transpose(0, 1)  # (K, B P, inputs)
    product = (rows @ matrices.transpose(-2, -1)).transpose(0, 1)
    return product.reshape(batch, patches, tasks, matrices.shape[1])


def pooled(state: Tensor, grid: tuple[int, int]) -> Tensor:
    """(K, B, 17, r) the mean of a state (B, g h, K, r), and its means over 4 x 4 windows, row by row."""
    import torch
    from torch.nn import functional as F

    batch, _, tasks, width = state.shape
    image = state.reshape(batch, *grid, tasks * width).permute(0, 3, 1, 2)  # a view, as in `mixed`
    means = torch.cat([image.mean(dim=(2, 3)).unsqueeze(2), F.adaptive_avg_pool2d(image, GRID).flatten(2)], dim=2)
    return means.reshape(batch, tasks, width, READ).permute(1, 0, 3, 2)
