"""Run records for tests: realistic ones of a whole grid, and single ones."""

from __future__ import annotations

import random
from typing import Any

from memtok_experiments.columns import EVERY_COLUMN, find_column
from memtok_experiments.records import RunRecord, Score

DIGEST = "sha256:" + "ab" * 32
TOP1 = {"full": 0.92, "head": 0.84, "class": 0.862, "memory-1": 0.882, "memory-5": 0.89, "memory-10": 0.893}
TOP1 |= {"memory-20": 0.891, "class-unmasked": 0.866, "memory-1-unmasked": 0.885, "memory-5-unmasked": 0.894}
TOP1 |= {"memory-10-unmasked": 0.895, "memory-20-unmasked": 0.894, "propagated-5": 0.872, "additive-5": 0.876}


def run(column: str = "memory-5", **changes: Any) -> RunRecord:
    """A record of one run, chosen and tested unless told otherwise."""
    found = find_column(column)
    values: dict[str, Any] = dict(
        backbone="models/dinov2-small",
        fingerprint="sha256:" + "01" * 32,
        image_size=(98, 98),
        data="cifar100",
        split={"kind": "official", "digest": DIGEST},
        column=column,
        regime=found.regime,
        cells=found.cells or 0,
        learning_rate=0.1,
        seed=0,
        recipe="paper",
        steps=20_000,
        batch_size=512,
        chosen=True,
        validation=Score(top1=0.8, images=5_000),
        test=Score(top1=0.8, top5=0.95, images=10_000),
        trained_parameters=38_500 + 12 * 384 * (found.cells or 0),
        total_parameters=21_600_000,
        seconds=120.5,
        together=8,
        versions={"memtok": "0.1.0", "torch": "2.15.0"},
    )
    if changes.get("chosen") is False:
        changes.setdefault("test", None)
    return RunRecord(**(values | changes))


def grid(
    data: str = "cifar100",
    *,
    seeds: int = 3,
    shift: float = 0.0,
    columns: tuple[str, ...] = EVERY_COLUMN,
    **changes: Any,
) -> list[RunRecord]:
    """All runs of a grid over three rates, chosen with the first seed, with noise of a quarter of a point."""
    draw = random.Random(f"{data}/{shift}")
    records = []
    for column in columns:
        for seed in range(seeds):
            for rate, loss in ((0.03, 0.01), (0.1, 0.0), (0.3, 0.02)):
                if seed and rate != 0.1:
                    continue
                top1 = TOP1[column] + shift + draw.gauss(0, 0.0025)
                score = Score(top1=top1, top5=min(1.0, top1 + 0.08), images=10_000)
                changes |= {"validation": Score(top1=top1 - loss, images=5_000), "learning_rate": rate, "seed": seed}
                records.append(
                    run(column, data=data, chosen=rate == 0.1, test=score if rate == 0.1 else None, **changes)
                )
    return records
