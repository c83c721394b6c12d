"""Counting right answers, against scikit-learn and by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, recall_score, top_k_accuracy_score

from memtok.errors import MemtokError
from memtok.metrics import Tally, ranks


def tally_of(logits: torch.Tensor, labels: torch.Tensor, batch: int = 7) -> Tally:
    tally = Tally([f"class {number}" for number in range(logits.shape[1])])
    for part, numbers in zip(logits.split(batch), labels.split(batch), strict=True):
        tally.add(part, numbers)
    return tally


@pytest.mark.parametrize("classes", [6, 11])
def test_equals_scikit_learn(classes: int, print_seed: Callable[[int | None], int]) -> None:
    generator = torch.Generator().manual_seed(print_seed(None))
    logits = torch.randn(100, classes, generator=generator)
    labels = torch.randint(classes, (100,), generator=generator)
    score = tally_of(logits, labels).score()
    answers = logits.argmax(dim=1)
    for top, found in ((1, score.top1), (5, score.top5)):
        assert found == pytest.approx(top_k_accuracy_score(labels, logits, k=top, labels=range(classes)))
    assert list(score.recall.values()) == pytest.approx(list(recall_score(labels, answers, average=None)))
    assert sum(row.images for row in score.per_class) == score.images == 100
    assert score.balanced == pytest.approx(balanced_accuracy_score(labels, answers))
    assert score.confusion().tolist() == confusion_matrix(labels, answers, labels=range(classes)).tolist()


def test_per_class_counts_by_hand() -> None:
    logits = torch.eye(7)[[0, 1, 1, 2]]
    score = tally_of(logits, torch.tensor([0, 0, 1, 1]), batch=3).score()
    assert (score.top1, score.images) == (0.5, 4)
    assert [(row.name, row.images, row.top1) for row in score.per_class[:3]] == [
        ("class 0", 2, 0.5),
        ("class 1", 2, 0.5),
        ("class 2", 0, None),
    ]
    assert dict(score) == {"top1": 0.5, "top5": score.top5, "images": 4, "balanced": 0.5}


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
    assert (score.top1, score.top5, score.balanced) == (0.5, 0.5, 0.5)
    assert score.confusion().tolist() == [[1, 0], [0, 0]]
    assert score.confusions == ((0, -1, 1), (0, 0, 1))


def test_balanced_accuracy_counts_every_class_that_has_images_the_same() -> None:
    labels = torch.tensor([0] * 90 + [1] * 6 + [2] * 4)
    score = tally_of(torch.eye(4)[torch.zeros(100, dtype=torch.int64)], labels, batch=64).score()
    assert (score.top1, score.balanced) == (0.9, pytest.approx(1 / 3))
    assert score.recall == {"class 0": 1.0, "class 1": 0.0, "class 2": 0.0, "class 3": None}
    assert score.confusion().tolist() == [[90, 0, 0, 0], [6, 0, 0, 0], [4, 0, 0, 0], [0, 0, 0, 0]]
    one, missed = score.warnings()
    assert "'class 0'" in one
    assert "'class 1' (0 of 6), 'class 2' (0 of 4)" in missed


def test_with_as_many_images_of_each_class_balanced_is_exactly_top1(print_seed: Callable[[int | None], int]) -> None:
    """Else rounding, not the loss, would decide between two states that answer as many images right."""
    generator = torch.Generator().manual_seed(print_seed(None))
    for classes, each in ((3, 7), (10, 13), (7, 30)):
        labels = torch.arange(classes).repeat(each)
        score = tally_of(torch.randn(len(labels), classes, generator=generator), labels).score()
        assert score.balanced == score.top1


def test_a_good_score_has_no_warnings() -> None:
    assert tally_of(torch.eye(3), torch.arange(3)).score().warnings() == []
    one_class = tally_of(torch.eye(3)[[1, 1]], torch.tensor([1, 1])).score()  # no other was asked for
    assert (one_class.balanced, one_class.warnings()) == (1.0, [])


def test_what_does_not_fit_is_an_error() -> None:
    tally = Tally(["cat", "dog"])
    with pytest.raises(MemtokError) as error:
        tally.add(torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64))
    assert error.value.argument == "logits"
    with pytest.raises(MemtokError) as error:
        tally.add(torch.zeros(2, 2), torch.tensor([0, 2]))
    assert error.value.argument == "labels"
    with pytest.raises(MemtokError, match="image"):
        tally.score()
