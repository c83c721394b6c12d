"""Counting right answers, against torchmetrics and by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy

from memtok.errors import MemtokError
from memtok.metrics import Tally, ranks


def tally_of(logits: torch.Tensor, labels: torch.Tensor, batch: int = 7) -> Tally:
    tally = Tally([f"class {number}" for number in range(logits.shape[1])])
    for part, numbers in zip(logits.split(batch), labels.split(batch), strict=True):
        tally.add(part, numbers)
    return tally


@pytest.mark.parametrize("classes", [6, 11])
def test_equals_torchmetrics(classes: int, print_seed: Callable[[int | None], int]) -> None:
    generator = torch.Generator().manual_seed(print_seed(None))
    logits = torch.randn(100, classes, generator=generator)
    labels = torch.randint(classes, (100,), generator=generator)
    score = tally_of(logits, labels).score()
    for top, found in ((1, score.top1), (5, score.top5)):
        expected = MulticlassAccuracy(classes, top_k=top, average="micro")(logits, labels)
        assert found == pytest.approx(float(expected))
    each = MulticlassAccuracy(classes, average="none")(logits, labels)
    for row, expected in zip(score.per_class, each.tolist(), strict=True):
        assert row.top1 is not None
        assert row.top1 == pytest.approx(expected)
    assert sum(row.images for row in score.per_class) == score.images == 100


def test_per_class_counts_by_hand() -> None:
    logits = torch.eye(7)[[0, 1, 1, 2]]
    score = tally_of(logits, torch.tensor([0, 0, 1, 1]), batch=3).score()
    assert (score.top1, score.images) == (0.5, 4)
    assert [(row.name, row.images, row.top1) for row in score.per_class[:3]] == [
        ("class 0", 2, 0.5),
        ("class 1", 2, 0.5),
        ("class 2", 0, None),
    ]
    assert dict(score) == {"top1": 0.5, "top5": score.top5, "images": 4}


def test_of_equal_logits_the_first_class_wins_as_in_argmax() -> None:
    logits = torch.tensor([[1.0, 1.0, 0.0]])
    for label, rank in ((0, 0), (1, 1), (2, 2)):
        assert ranks(logits, torch.tensor([label])).tolist() == [rank]


def test_fewer_than_six_classes_are_all_among_the_first_five() -> None:
    assert tally_of(torch.eye(4), torch.tensor([1, 2, 3, 0])).score().top5 == 1.0


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_an_answer_that_is_not_finite_is_wrong(broken: float) -> None:
    logits = torch.tensor([[1.0, broken], [1.0, 0.0]])
    score = tally_of(logits, torch.tensor([0, 0])).score()
    assert (score.top1, score.top5) == (0.5, 0.5)


def test_what_does_not_fit_is_an_error() -> None:
    tally = Tally(["cat", "dog"])
    with pytest.raises(MemtokError, match=r"expected logits \(batch, 2\)"):
        tally.add(torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(MemtokError, match="expected labels of 0 to 1, found 0 to 2"):
        tally.add(torch.zeros(2, 2), torch.tensor([0, 2]))
    with pytest.raises(MemtokError, match="expected at least one image"):
        tally.score()
