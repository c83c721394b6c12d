"""Row `throughput`: images per second over the batch size, and the share of the machine's matrix rate that they use.

Timed at each batch size: the trunk's own pass and one training step of one task (10 cells). The best of each is
compared: a step that is fast at a small batch gains nothing if the trunk is faster at a large one. The share is the
operations that arithmetic counts (memtok_benchmarks.floor), over the time, over the rate of one large matrix product on
this machine.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from memtok_benchmarks import contenders, floor
from memtok_benchmarks.lines import Entry, Line, RowResult, Table
from memtok_benchmarks.machine import matrix_rate
from memtok_benchmarks.scene import Scene
from memtok_benchmarks.timing import race

BATCHES = {"cpu": (0.25, 1, 2), "cuda": (1, 2, 4, 8, 16, 32)}  # times the batch of the run


def throughput(scene: Scene) -> RowResult:
    """Images per second at the best batch size of each."""
    sizes = scene.sizes
    rate = matrix_rate(sizes)
    points: list[dict[str, Any]] = []
    for factor in BATCHES.get(scene.device.type, BATCHES["cpu"]):
        batch = max(1, round(factor * sizes.batch))
        try:
            points.append(at(scene, batch))
        except torch.OutOfMemoryError:
            break  # larger ones do not fit either
    best = {name: max(points, key=lambda point: point[name]) for name in ("trunk", "training")}
    geometry = floor.Geometry.of(scene.backbone.vit)
    share = 2 * floor.trunk(geometry) * best["trunk"]["trunk"] / rate
    line = Line(
        what="training of 1 task, images per second over the trunk's, each at its best batch size",
        memtok=Entry(
            label="memtok",
            value=best["training"]["training"] / best["trunk"]["trunk"],
            note=f"batches {best['training']['batch']} and {best['trunk']['batch']}",
        ),
        must=0.85 if scene.device.type == "cuda" else None,
        least=True,
    )
    rows = tuple((f"{point['batch']}", f"{point['trunk']:.1f}", f"{point['training']:.1f}") for point in points)
    table = Table(title="Images per second", columns=("batch", "trunk", "training step"), rows=rows)
    note = f"Throughput: the trunk reaches {100 * share:.0f} % of the measured matrix rate, {rate / 1e9:,.0f} GFLOP/s."
    data = {"matrix_gflops": rate / 1e9, "share": share, "points": points}
    return RowResult(lines=(line,), tables=(table,), notes=(note,), data=data)


def at(scene: Scene, batch: int) -> dict[str, Any]:
    """Images per second of the trunk and of a training step at one batch size."""
    with Scene(replace(scene.sizes, batch=batch)) as here:
        runs = {"trunk": contenders.trunk(here), "training": contenders.memtok_step(here)}
        timings = race(runs, rounds=here.sizes.rounds, synchronize=here.synchronize)
    found: dict[str, Any] = {name: batch / timing.median for name, timing in timings.items()}
    return {"batch": batch, **found, "timings": {name: timing.to_json() for name, timing in timings.items()}}
