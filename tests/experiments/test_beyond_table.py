"""The table of `reproduce beyond`: bootstrap intervals on known cases, cells, and what is written."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from memtok.intervals import Right
from memtok_experiments.beyond.records import AnswersRecord, Found, TrialRecord
from memtok_experiments.beyond.table import bootstrap, make_cells, save, to_markdown


def answers(wrong: int, images: int = 1000) -> Right:
    """All right but the first `wrong` ones."""
    return np.arange(images) >= wrong


def found(column: str, wrong: int, *, seed: int = 0, rate: float | None = 0.01, validation: float = 0.5) -> Found:
    record = TrialRecord(
        row="digits",
        column=column,
        seed=seed,
        rate=rate,
        strength=None if rate else 0.1,
        varied=False,
        steps=10,
        timed=False,
        train_images=10,
        validation_images=10,
        validation=validation,
        diverged=False,
        parameters=100,
        bytes=400,
        seconds=2.0,
        trunk_seconds=1.0,
        together=1,
        cost=0.5,
        backbone="tiny",
        fingerprint="sha256:1",
        image_size=32,
        split="sha256:2",
        content="sha256:3",
        device="cpu",
        versions={},
    )
    return Found(record, AnswersRecord.of(answers(wrong), np.arange(1000) % 2))


def test_the_bootstrap_of_known_cases() -> None:
    same = bootstrap([answers(300)], [answers(300)])
    assert (same.value, same.low, same.high) == (0, 0, 0)
    # 100 of 1,000 images differ, all in favour of the first: the share of 100 has the error of a binomial.
    one = bootstrap([answers(200)], [answers(300)])
    error = math.sqrt(0.1 * 0.9 / 1000)
    assert one.value == pytest.approx(0.1)
    assert one.low == pytest.approx(0.1 - 1.96 * error, abs=0.002)
    assert one.high == pytest.approx(0.1 + 1.96 * error, abs=0.002)
    # Unpaired errors of 200 and 300 in 1,000 would be twice as large.
    assert one.high - one.low < 2 * 1.96 * math.sqrt(0.2 * 0.8 / 1000 + 0.3 * 0.7 / 1000) * 0.6
    assert bootstrap([answers(200)], [answers(300)]) == one  # the same draws
    halves = bootstrap([answers(200), answers(300)], [answers(300), answers(300)])
    assert halves.value == pytest.approx(0.05)
    assert halves.high - halves.low == pytest.approx((one.high - one.low) / 2, rel=0.01)


def test_cells_and_files(tmp_path: Path) -> None:
    everything = [
        found("head", 400, seed=0),
        found("head", 420, seed=1),
        found("full", 200, seed=0),
        found("full", 100, seed=0, rate=0.1, validation=0.4),  # was not chosen
        found("ridge", 300, seed=0, rate=None),
    ]
    cells, paths = save(everything, 0, tmp_path)
    by_column = {cell.column: cell for cell in cells}
    assert [cell.column for cell in cells] == ["head", "ridge", "full"]
    head, ridge, full = (by_column[name] for name in ("head", "ridge", "full"))
    assert head.mean == pytest.approx(0.59)
    assert head.std == pytest.approx(math.sqrt(0.0002))
    assert full.mean == pytest.approx(0.8)
    assert full.tried == 2
    assert full.compared["head"].value == pytest.approx(0.2)  # of seed 0, which both have
    assert set(ridge.compared) == {"head", "full"}
    assert (ridge.rate, ridge.strength, ridge.seconds) == (None, 0.1, 3.0)
    with open(paths[1], encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["column"] for row in rows] == ["head", "ridge", "full"]
    assert (rows[0]["minus_head"], rows[1]["minus_full"], rows[1]["strength"]) == ("", "-0.1000", "0.1")
    with open(paths[3], encoding="utf-8", newline="") as file:
        trials = list(csv.DictReader(file))
    assert len(trials) == 5
    assert trials[0]["test"] == "0.6000"
    assert "59.0 ± 1.4 (2)" in to_markdown(cells)


def test_without_a_reference_there_is_nothing_to_compare_with() -> None:
    (cell,) = make_cells([found("ridge", 1, rate=None)], 0)
    assert cell.compared == {}
    assert cell.std is None
    assert make_cells([found("head", 1, seed=1)], 0) == []  # nothing was chosen yet


def test_bits_of_answers() -> None:
    right = np.array([True, False, True, True, False, False, False, True, True])
    record = AnswersRecord.of(right, np.array([0, 0, 0, 0, 1, 1, 1, 1, 1]))
    assert record.bits.tolist() == right.tolist()
    assert record.top1 == pytest.approx(5 / 9)
    assert record.balanced == pytest.approx((3 / 4 + 2 / 5) / 2)
