"""Row `growth`: how the time of a training step and of inference grows with tasks, cells, batch, image size and depth.

One size is changed at a time; the others stay at one task of 10 cells and a quarter of the batch of the run, for there
are many points. Timed at each: the trunk's own pass, the inference pass with the base output, and one training step of
all tasks (`Together`). `points` chooses few or many. A picture is drawn beside the tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from memtok_benchmarks import contenders
from memtok_benchmarks.lines import RowResult, Table
from memtok_benchmarks.scene import Scene
from memtok_benchmarks.sizes import TINY, Sizes
from memtok_benchmarks.timing import Timing, race

POINTS: dict[str, dict[str, tuple[int, ...]]] = {
    "few": {
        "tasks": (1, 25, 100),
        "cells": (0, 10, 50),
        "batch": (1, 8, 32),
        "image size": (224, 384),
        "depth": (4, 12),
    },
    "many": {
        "tasks": (1, 10, 25, 50, 100, 200),
        "cells": (0, 1, 5, 10, 20, 50),
        "batch": (1, 4, 8, 16, 32, 64),
        "image size": (128, 224, 320, 384, 448),
        "depth": (3, 6, 9, 12),
    },
}
TINY_POINTS: dict[str, tuple[int, ...]] = {
    "tasks": (1, 3),
    "cells": (0, 2),
    "batch": (1, 2),
    "image size": (32, 48),
    "depth": (1, 2),
}


@dataclass(frozen=True)
class Point:
    """One measured point: along `axis`, at `value`, the median seconds of trunk, inference and training step."""

    axis: str
    value: int
    trunk: Timing
    inference: Timing
    training: Timing

    def to_json(self) -> dict[str, Any]:
        """As JSON has it."""
        times = {name: getattr(self, name).to_json() for name in ("trunk", "inference", "training")}
        return {"axis": self.axis, "value": self.value, **times}


def growth(scene: Scene) -> RowResult:
    """A table per axis."""
    points = list(measured(scene.sizes))
    tables = []
    for axis in dict.fromkeys(point.axis for point in points):
        mine = [point for point in points if point.axis == axis]
        rows = tuple(
            (
                f"{point.value}",
                f"{1000 * point.trunk.median:.1f}",
                f"{1000 * point.inference.median:.1f}",
                f"{1000 * point.training.median:.1f}",
                f"{point.inference.over(point.trunk):.3f}",
                f"{point.training.over(point.trunk):.3f}",
            )
            for point in mine
        )
        columns = (axis, "trunk, ms", "inference, ms", "training step, ms", "inference / trunk", "step / trunk")
        tables.append(Table(title=f"Growth with {axis}", columns=columns, rows=rows))
    return RowResult(tables=tuple(tables), data={"points": [point.to_json() for point in points]})


def measured(sizes: Sizes) -> Iterator[Point]:
    """All points, axis by axis."""
    axes = TINY_POINTS if sizes.model == TINY else POINTS[sizes.points]
    for axis, values in axes.items():
        for value in values:
            yield point_at(sizes, axis, value)


def point_at(sizes: Sizes, axis: str, value: int) -> Point:
    """One point, in a scene of its own."""
    changes: dict[str, Any] = {
        "cells": {"training_cells": value},
        "batch": {"batch": value},
        "image size": {"image_size": value},
    }.get(axis, {})
    tasks = value if axis == "tasks" else 1
    sizes = replace(sizes, **({"batch": max(1, sizes.batch // 4)} | changes))
    with Scene(sizes, **({"depth": value} if axis == "depth" else {})) as here:
        runs = {
            "trunk": contenders.trunk(here),
            "inference": contenders.memtok_serving(here, tasks, sizes.training_cells),  # as many cells as are trained
            "training": contenders.together(here, tasks),
        }
        timings = race(runs, rounds=sizes.rounds, synchronize=here.synchronize)
    return Point(axis, value, timings["trunk"], timings["inference"], timings["training"])
