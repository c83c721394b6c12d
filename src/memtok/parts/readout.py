"""A readout: the head also reads statistics of the trunk's levels, not of its end alone.

Middle layers help to tell classes apart (Evci et al., Head2Toe, ICML 2022, arXiv 2201.03529). It adds no layer work:
the trunk computes these tokens anyway, and the readout is one matrix product over their statistics.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
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

    S is the number of vectors per level, those of all chosen statistics in the order of `STATISTICS`. n is 0 for none.
    With a rank k it is a product, `readout.up` (classes, k) times `readout.down` (k, n, S, D), so that it grows with
    k (features + classes) in place of features times classes. Weight and `up` start at zero, as no change of the
    answers, `down` at random. In training the statistics are standardised by their mean and spread over training
    images, `readout.mean` and `readout.spread` (n, S, D) each, which are folded into weight, or `down`, and bias
    afterwards.
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
        Option(
            name="readout_rank",
            help="numbers through which a readout answers, so that many classes take little room; 0 for its full width",
            axis="readout_ranks",
            heading="rank of readout",
            tag="readout-rank",
            of="readout",
            fits=lambda regime: regime.composable,
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
    names = ("readout.weight", "readout.down", "readout.up")

    def specs(self, trunk: Trunk, regime: Regime, form: Form) -> dict[str, Spec]:
        if not form["readout"]:
            return {}
        shape, rank, classes = features(trunk, form), form["readout_rank"], form["classes"]
        if not rank:
            return {"readout.weight": Spec((classes, *shape))}
        return {"readout.down": Spec((rank, *shape), math.prod(shape) ** -0.5), "readout.up": Spec((classes, rank))}

    def measured(self, trunk: Trunk, form: Form) -> dict[str, Spec]:
        if not form["readout"]:
            return {}
        return {name: Spec(features(trunk, form)) for name in ("readout.mean", "readout.spread")}

    def sizes(self, tensors: Mapping[str, Any]) -> dict[str, int]:
        weight, down = tensors.get("readout.weight"), tensors.get("readout.down")
        levels = max(0, length(weight, 1, 4), length(down, 1, 4))
        return {"readout": levels, "readout_rank": max(0, length(down, 0, 4))}

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
        name = "readout.down" if "readout.down" in tensors else "readout.weight"
        weight = found[name].double() / spread
        shift = (weight * mean).flatten(1).sum(dim=1)  # (k,) or (classes,)
        shift = found["readout.up"].double() @ shift if name == "readout.down" else shift
        bias = found["head.bias"].double() - shift
        return found | {name: weight.to(tensors[name]), "head.bias": bias.to(found["head.bias"])}

    def inputs(
        self, tensors: Mapping[str, Tensor], choices: Mapping[str, str], features: Tensor, statistics: Statistics
    ) -> Tensor | None:
        weight = tensors.get("readout.weight", tensors.get("readout.down"))
        if weight is None:
            return None
        levels = min(statistics[name].shape[1] if name in statistics else 0 for name in words(choices))
        if levels < weight.shape[1]:
            raise MemtokError(
                f"expected {choices['statistics']} of {weight.shape[1]} levels for a readout, found those of {levels}; "
                "make the trace with a model that has all tasks to answer"
            )
        found = standardised(read(statistics, choices, weight.shape[1]).to(weight.dtype), tensors).flatten(1)
        return found @ weight.flatten(1).T if "readout.down" in tensors else found

    def weights(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, None]:
        return tensors["readout.up" if "readout.up" in tensors else "readout.weight"].flatten(1), None

    def source(
        self, tensors: Mapping[str, Tensor], choices: Mapping[str, str]
    ) -> tuple[Hashable, tuple[Tensor, ...]] | None:
        weight = tensors.get("readout.weight")
        if weight is None:  # of low rank: the numbers in the middle are its own
            return None
        measured = tuple(tensors[name] for name in ("readout.mean", "readout.spread") if name in tensors)
        return (tuple(weight.shape[1:]), choices["statistics"], len(measured)), measured

    def cost(self, trunk: Trunk, form: Form) -> int:
        rank, classes = form["readout_rank"], form["classes"]
        return math.prod(features(trunk, form)) * (rank or classes) + rank * classes if form["readout"] else 0

    def kept(self, trunk: Trunk, form: Form, images: int) -> int:
        """The standardised statistics, and the numbers between `down` and `up`."""
        return images * (math.prod(features(trunk, form)) + form["readout_rank"]) if form["readout"] else 0

    def rate(self, trunk: Trunk, form: Form) -> float:
        return rate_of_features(trunk, form) if form["readout"] else 1.0

    def rates(self, trunk: Trunk, regime: Regime, form: Form) -> dict[str, float]:
        """`up` reads few numbers, as a head does, and has its rate."""
        found = super().rates(trunk, regime, form)
        return found | ({"readout.up": 1.0} if "readout.up" in found else {})


def words(choices: Mapping[str, Any]) -> list[str]:
    """The statistics of each level that are read, in their order."""
    return str(choices["statistics"]).split("+")


def features(trunk: Trunk, form: Form) -> tuple[int, int, int]:
    """(n, S, D) of what is read."""
    return form["readout"], sum(map(trunk.vectors, words(form))), trunk.dim


def rate_of_features(trunk: Trunk, form: Form) -> float:
    """The rate of the weights of a readout, by how many numbers it reads."""
    return FEATURES_AT_RATE_ONE / math.prod(features(trunk, form))


def read(statistics: Statistics, choices: Mapping[str, Any], levels: int) -> Tensor:
    """(B, n, S, D) what is read, of the last `levels` of as many as there are."""
    import torch

    return torch.cat([statistics[name][:, -levels:] for name in words(choices)], dim=2)


def standardised(values: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """(B, n, S, D) what is read, by the mean and spread that were measured; as it is where none were."""
    if "readout.mean" not in tensors:
        return values
    return (values - tensors["readout.mean"]) / tensors["readout.spread"]
