"""A readout: the head also reads statistics of the trunk's levels, not of its end alone.

Middle layers help to tell classes apart (Evci et al., Head2Toe, ICML 2022, arXiv 2201.03529). It adds no layer work:
the trunk computes these tokens anyway, and the readout is one matrix product over their statistics.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from memtok.errors import Argument, MemtokError
from memtok.levels import CLASS, DEVIATION, REGIONS, STATISTICS, Reads, Statistics
from memtok.parts.base import Choice, Form, Moments, Option, Part, Spec, Trunk, length
from memtok.regimes import Regime

if TYPE_CHECKING:
    from torch import Tensor

# With Adam every weight moves by about its rate in a step, so an answer, a sum over all features, by as many times the
# rate. At the default of 1e-2 this is 1.92 over the features.
FEATURES_AT_RATE_ONE = 192.0


class Readout(Part):
    """`readout.weight` (classes, n, S, D) over the statistics of the last n of L + 1 levels; see `memtok.levels`.

    S is the number of vectors per level, those of all chosen statistics in the order of `STATISTICS`. It starts at
    zero, as no change of the answers. n is 0 for none. In training the statistics are standardised by their mean and
    spread over training images, `readout.mean` and `readout.spread` (n, S, D) each, which are folded into weight and
    bias afterwards.
    """

    options = (
        Option(
            name="readout",
            help="last levels of the trunk whose statistics the head reads too; a backbone has one more than layers",
            axis="readouts",
            heading="readout",
            tag="readout",
            fits=lambda regime: regime.composable,
            most=lambda trunk: trunk.depth + 1,
        ),
    )
    choices = (
        Choice(
            name="statistics",
            values=STATISTICS,
            default="+".join((CLASS, DEVIATION, REGIONS)),
            help="what a readout reads of each level",
            several=True,
            of="readout",
            fits=lambda regime: regime.composable,
        ),
    )
    names = ("readout.weight",)

    def specs(self, trunk: Trunk, regime: Regime, form: Form) -> dict[str, Spec]:
        return {"readout.weight": Spec((form["classes"], *features(trunk, form)))} if form["readout"] else {}

    def measured(self, trunk: Trunk, form: Form) -> dict[str, Spec]:
        if not form["readout"]:
            return {}
        return {name: Spec(features(trunk, form)) for name in ("readout.mean", "readout.spread")}

    def sizes(self, tensors: Mapping[str, Any]) -> dict[str, int]:
        return {"readout": max(0, length(tensors.get("readout.weight"), 1, 4))}

    def check(self, trunk: Trunk, form: Form) -> None:
        if form["readout"] > trunk.depth + 1:
            raise MemtokError(
                f"expected {Argument('readout')} of {trunk.depth + 1} at most, the levels of this backbone, found "
                f"{form['readout']}; use fewer"
            )
        if form["readout"] and not features(trunk, form)[1]:
            raise MemtokError(
                f"expected {Argument('statistics')} that this backbone has, found {form['statistics']}, of which it "
                f"has no token; add {DEVIATION}",
                argument="statistics",
            )

    def reads(self, form: Form) -> Reads:
        return Reads(form["readout"], frozenset(words(form))) if form["readout"] else Reads()

    def measure(self, form: Form, moments: Moments) -> dict[str, Tensor]:
        if not form["readout"]:
            return {}
        mean, spread = (
            read({name: pair[which].unsqueeze(0) for name, pair in moments.items()}, form, form["readout"])[0]
            for which in (0, 1)
        )
        return {"readout.mean": mean, "readout.spread": spread}

    def folded(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if "readout.mean" not in tensors:
            return tensors
        found = dict(tensors)
        mean, spread = found.pop("readout.mean").double(), found.pop("readout.spread").double()
        weight = found["readout.weight"].double() / spread
        bias = found["head.bias"].double() - (weight * mean).flatten(1).sum(dim=1)
        return found | {
            "readout.weight": weight.to(tensors["readout.weight"]),
            "head.bias": bias.to(found["head.bias"]),
        }

    def logits(
        self, tensors: Mapping[str, Tensor], choices: Mapping[str, str], features: Tensor, statistics: Statistics
    ) -> Tensor | None:
        weight = tensors.get("readout.weight")
        if weight is None:
            return None
        levels = min(statistics[name].shape[1] if name in statistics else 0 for name in words(choices))
        if levels < weight.shape[1]:
            raise MemtokError(
                f"expected {choices['statistics']} of {weight.shape[1]} levels for a readout, found those of {levels}; "
                "make the trace with a model that has all tasks to answer"
            )
        found = standardised(read(statistics, choices, weight.shape[1]).to(weight.dtype), tensors)
        return found.flatten(1) @ weight.flatten(1).T

    def cost(self, trunk: Trunk, form: Form) -> int:
        return math.prod(features(trunk, form)) * form["classes"] if form["readout"] else 0

    def kept(self, trunk: Trunk, form: Form, images: int) -> int:
        """The standardised statistics."""
        return images * math.prod(features(trunk, form)) if form["readout"] else 0

    def rate(self, trunk: Trunk, form: Form) -> float:
        return FEATURES_AT_RATE_ONE / math.prod(features(trunk, form)) if form["readout"] else 1.0


def words(choices: Mapping[str, Any]) -> list[str]:
    """The statistics of each level that are read, in their order."""
    return str(choices["statistics"]).split("+")


def features(trunk: Trunk, form: Form) -> tuple[int, int, int]:
    """(n, S, D) of what is read."""
    return form["readout"], sum(map(trunk.vectors, words(form))), trunk.dim


def read(statistics: Statistics, choices: Mapping[str, Any], levels: int) -> Tensor:
    """(B, n, S, D) what is read, of the last `levels` of as many as there are."""
    import torch

    return torch.cat([statistics[name][:, -levels:] for name in words(choices)], dim=2)


def standardised(values: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """(B, n, S, D) what is read, by the mean and spread that were measured; as it is where none were."""
    if "readout.mean" not in tensors:
        return values
    return (values - tensors["readout.mean"]) / tensors["readout.spread"]
