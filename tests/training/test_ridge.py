"""`fit_ridge` against literal float64 solutions; its folds, few images, calibration and errors.

`memtok.training.ridge` is mathematics without a caller on the command line: its function is its interface.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from memtok.errors import MemtokError
from memtok.training import ridge
from memtok.training.ridge import Ridge, fit_ridge

Seed = Callable[..., int]

WEIGHTS = torch.tensor([0.3, 4.0, 1.0, 0.1, 2.5, 0.0])  # of six classes, the last one without images

SHAPES = {"primal": (90, 30), "dual": (40, 120), "large": (150, 100), "large, wide": (90, 130)}


def classes_of(n: int, width: int, classes: int, seed: int, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Features (n, width) float32 around one centre per class and labels (n,): class i % classes, in random order."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=generator)
    labels = (torch.arange(n) % classes)[torch.randperm(n, generator=generator)]
    noise = torch.randn(n, width, generator=generator)
    decay = torch.arange(1, width + 1) ** -0.5  # variances that fall, as those of real features do
    return 0.5 + (centres[labels] + 3 * spread * noise) * decay, labels


def logits_of(fitted: Ridge, features: Tensor) -> Tensor:
    return features.double() @ fitted.weight.double().T + fitted.bias.double()


def literal(
    features: Tensor, labels: Tensor, classes: int, penalty: float, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Weight (classes, width) and bias of the regression: normal equations with an unpenalised column of ones.

    weights: (classes,) of the images of each class.
    """
    x = torch.cat([features.double(), torch.ones(len(features), 1, dtype=torch.float64)], dim=1)
    ridge = penalty * torch.eye(x.shape[1], dtype=torch.float64)
    ridge[-1, -1] = 0
    own = torch.ones(len(x), 1) if weights is None else weights[labels].double().unsqueeze(1)
    solution = torch.linalg.solve(x.T @ (own * x) + ridge, x.T @ (own * F.one_hot(labels, classes).double()))
    return solution[:-1].T, solution[-1]


def spread_of(features: Tensor, weights: Tensor | None = None) -> float:
    """weights: (n,) of the images."""
    x = features.double()
    own = torch.ones(len(x), 1) if weights is None else weights.double().unsqueeze(1)
    mean = (own * x).sum(dim=0) / own.sum()
    return float((own * (x - mean).square()).sum() / own.sum())


def far(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def lower_limits(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks of rows and columns; in the large cases a sample, no Gram matrix of all, conjugate gradients."""
    monkeypatch.setattr(ridge, "BLOCK", 1000)
    if case.startswith("large"):
        monkeypatch.setattr(ridge, "LARGEST", 50)
        monkeypatch.setattr(ridge, "SAMPLE", 60)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("strength", [1e-4, 1e-1, 1e2])
@pytest.mark.parametrize("case", SHAPES)
def test_the_literal_solution(
    case: str, strength: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, print_seed: Seed
) -> None:
    lower_limits(case, monkeypatch)
    features, labels = classes_of(*SHAPES[case], 5, print_seed())
    features = features.to(dtype)
    found = fit_ridge(features, labels, 6, strengths=[strength])  # the sixth class has no image
    weight, bias = literal(features, labels, 6, strength * spread_of(features))
    assert (found.weight.shape, found.weight.dtype, found.bias.dtype) == (weight.shape, torch.float32, torch.float32)
    assert far(found.weight, found.scale * weight) < 1e-4
    assert far(found.bias, found.scale * bias) < 1e-4
    assert found.strength == strength
    assert 0 < found.residual <= ridge.TOLERANCE if case.startswith("large") else found.residual == 0


@pytest.mark.parametrize("case", SHAPES)
def test_the_literal_solution_with_weights(case: str, monkeypatch: pytest.MonkeyPatch, print_seed: Seed) -> None:
    lower_limits(case, monkeypatch)
    features, labels = classes_of(*SHAPES[case], 5, print_seed())
    found = fit_ridge(features, labels, 6, strengths=[0.1], weights=WEIGHTS)
    weight, bias = literal(features, labels, 6, 0.1 * spread_of(features, WEIGHTS[labels]), WEIGHTS)
    assert far(found.weight, found.scale * weight) < 1e-4
    assert far(found.bias, found.scale * bias) < 1e-4


@pytest.mark.parametrize("case", SHAPES)
def test_what_scikit_learn_finds(case: str, monkeypatch: pytest.MonkeyPatch, print_seed: Seed) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    lower_limits(case, monkeypatch)
    features, labels = classes_of(*SHAPES[case], 5, print_seed())
    found = fit_ridge(features, labels, 5)
    peer = linear_model.Ridge(alpha=found.strength * spread_of(features))
    peer.fit(features.double().numpy(), F.one_hot(labels, 5).double().numpy())
    expected = found.scale * torch.from_numpy(peer.predict(features.double().numpy()))
    assert far(logits_of(found, features), expected) < 1e-4


@pytest.mark.parametrize("how", ["alone", "grouped", "weighted"])
@pytest.mark.parametrize("case", ["primal", "dual"])
def test_scores_and_scale_are_those_of_fits_without_a_fold(case: str, how: str, print_seed: Seed) -> None:
    """Each fold left out by fitting anew, each strength, and the scale from a fine grid."""
    seed = print_seed()
    features, labels = classes_of(*SHAPES[case], 4, seed)
    groups, weights = None, WEIGHTS[:4] if how == "weighted" else None
    if how == "grouped":  # two equal views of each image: in the dual case half the eigenvalues are 0
        groups = torch.arange(len(features)).repeat(2)
        features, labels = features[groups], labels[groups]
    rows, folds = ridge.sampled(labels, 4, groups, seed)
    assert rows.tolist() == list(range(len(features)))
    found = fit_ridge(features, labels, 4, seed=seed, groups=groups, weights=weights)
    counted = torch.ones(len(labels)) if weights is None else weights[labels]
    spread = spread_of(features, counted)
    keys: dict[float, tuple[float, float, float]] = {}
    outputs: dict[float, Tensor] = {}
    for strength in ridge.STRENGTHS:
        out = torch.zeros(len(features), 4, dtype=torch.float64)
        for fold in range(ridge.FOLDS):
            rest = folds != fold
            weight, bias = literal(features[rest], labels[rest], 4, strength * spread, weights)
            out[~rest] = features[~rest].double() @ weight.T + bias
        recalls = [float((out[labels == c].argmax(1) == c).double().mean()) for c in range(4)]
        assert found.scores[strength] == pytest.approx(sum(recalls) / 4)
        error = float(((out - F.one_hot(labels, 4)).square().sum(1) * counted).mean())
        keys[strength] = round(sum(recalls) / 4, 9), -round(error, 9), strength
        outputs[strength] = out
    assert found.strength == max(ridge.STRENGTHS, key=lambda strength: keys[strength])
    share = 1 / (len(labels) + 1)
    targets = (1 - share) * F.one_hot(labels, 4).double() + share / 4
    scales = 10 ** torch.arange(-2, 4, 0.005, dtype=torch.float64)
    best = outputs[found.strength]
    losses = [float(F.cross_entropy(scale * best, targets, reduction="none") @ counted.double()) for scale in scales]
    assert found.scale == pytest.approx(float(scales[losses.index(min(losses))]), rel=0.02)


def test_a_sample_has_every_class_and_whole_groups(monkeypatch: pytest.MonkeyPatch, print_seed: Seed) -> None:
    seed = print_seed()
    monkeypatch.setattr(ridge, "SAMPLE", 120)
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.tensor([200, 100, 20, 2, 1])  # groups of each class
    of_group = torch.arange(5).repeat_interleave(sizes)[torch.randperm(323, generator=generator)]
    groups = (torch.arange(323) * 7 - 100).repeat(3)[torch.randperm(969, generator=generator)]  # 3 views each
    labels = of_group[(groups + 100) // 7]
    rows, folds = ridge.sampled(labels, 5, groups, seed)
    assert len(rows) == 120
    assert rows.tolist() == sorted(set(rows.tolist()))
    for name in set(groups[rows].tolist()):
        assert int((groups[rows] == name).sum()) == 3
        assert len(set(folds[groups[rows] == name].tolist())) == 1
    per_class = labels[rows].bincount(minlength=5) / 3
    assert per_class[3:].tolist() == [2, 1]
    assert (per_class[:3] - 37 * sizes[:3] / 320).abs().max() <= 3
    for label in range(5):  # spread over the folds
        per_fold = folds[labels[rows] == label].bincount(minlength=ridge.FOLDS)
        assert per_fold.max() - per_fold.min() <= 3


def test_views_in_one_fold_do_not_vouch_for_each_other(print_seed: Seed) -> None:
    """Wrong labels on a third of the images: with a view of the image in another fold it pays to memorise them."""
    generator = torch.Generator().manual_seed(print_seed(0))  # of a hundred seeds, one or two are too noisy
    right = torch.arange(120) % 2
    images = torch.randn(120, 120, generator=generator) + 0.4 * (2 * right[:, None] - 1)
    labels = torch.where(torch.rand(120, generator=generator) < 0.3, 1 - right, right)
    groups = torch.arange(120).repeat(3)
    views = images[groups] + 0.01 * torch.randn(360, 120, generator=generator)
    apart = fit_ridge(views, labels[groups], 2)
    together = fit_ridge(views, labels[groups], 2, groups=groups)
    assert apart.scores[apart.strength] > 0.9
    assert together.scores[together.strength] < 0.88
    assert together.scores[apart.strength] < apart.scores[apart.strength] - 0.2
    assert together.strength > 10 * apart.strength


@pytest.mark.parametrize("case", SHAPES)
def test_order_of_images_does_not_matter(case: str, monkeypatch: pytest.MonkeyPatch, print_seed: Seed) -> None:
    seed = print_seed()
    lower_limits(case, monkeypatch)
    features, labels = classes_of(*SHAPES[case], 5, seed)
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    one = fit_ridge(features, labels, 5, strengths=[0.1])
    other = fit_ridge(features[order], labels[order], 5, strengths=[0.1])  # in other folds: another scale
    assert far(other.weight / other.scale, one.weight / one.scale) < 1e-6 + ridge.TOLERANCE * 100 * (one.residual > 0)


def test_the_same_seed_gives_the_same_bytes_and_global_generators_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, print_seed: Seed
) -> None:
    lower_limits("large", monkeypatch)
    features, labels = classes_of(150, 100, 5, print_seed())
    before = torch.get_rng_state()
    one, again, other = (fit_ridge(features, labels, 5, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.weight, again.weight)
    assert torch.equal(one.bias, again.bias)
    assert (one.strength, one.scale, one.scores) == (again.strength, again.scale, again.scores)
    assert one.scores != other.scores  # another sample


FEW: dict[str, tuple[list[int], int]] = {
    "one image": ([1], 2),
    "two images of two classes": ([0, 1], 2),
    "two images of one class": ([1, 1], 3),
    "one image of each class": ([0, 1, 2, 3], 4),
    "a class with one image": ([0, 0, 0, 1, 1, 1, 2], 3),
    "fewer images than folds": ([0, 0, 1, 1], 2),
    "one class": ([0] * 9, 1),
    "one class of three": ([2] * 9, 3),
}


@pytest.mark.parametrize("width", [2, 40])
@pytest.mark.parametrize("case", FEW)
def test_few_images(case: str, width: int, print_seed: Seed) -> None:
    labels, classes = torch.tensor(FEW[case][0]), FEW[case][1]
    generator = torch.Generator().manual_seed(print_seed())
    centres = torch.tensor([[3.0, 3], [-3, -3], [3, -3], [-3, 3]]).repeat(1, width // 2)
    features = centres[labels] + 0.1 * torch.randn(len(labels), width, generator=generator)
    found = fit_ridge(features, labels, classes)
    assert found.weight.shape == (classes, width)
    assert found.weight.isfinite().all()
    assert found.bias.isfinite().all()
    assert torch.equal(logits_of(found, features).argmax(1), labels)
    assert found.strength in ridge.STRENGTHS
    if case in ("one image", "two images of two classes", "one image of each class"):  # nothing to measure by
        assert (found.scores, found.scale) == ({}, 1)
    else:
        assert set(found.scores.values()) >= {1.0}


def test_one_group_measures_nothing(monkeypatch: pytest.MonkeyPatch, print_seed: Seed) -> None:
    lower_limits("large", monkeypatch)
    features, labels = classes_of(150, 100, 5, print_seed())
    found = fit_ridge(features, labels, 5, groups=torch.zeros(150, dtype=torch.int64))
    assert (found.scores, found.scale) == ({}, 1)
    weight, _ = literal(features, labels, 5, found.strength * spread_of(features))
    assert far(found.weight, weight) < 1e-4


@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("value", [0.0, 123456789.0])
def test_constant_features_do_nothing(
    case: str, value: float, monkeypatch: pytest.MonkeyPatch, print_seed: Seed
) -> None:
    lower_limits(case, monkeypatch)
    features, labels = classes_of(*SHAPES[case], 5, print_seed())
    constant = torch.full((len(features), 7), value)
    expected = fit_ridge(features, labels, 5)
    found = fit_ridge(torch.cat([constant, features], dim=1), labels, 5)
    assert found.strength == expected.strength
    assert not found.weight[:, :7].any()
    assert far(found.weight[:, 7:], expected.weight) < 1e-5


@pytest.mark.parametrize("value", [0.0, 1234.567])
def test_only_constant_features_give_the_shares_of_the_classes(value: float) -> None:
    labels = torch.tensor([0] * 30 + [1] * 10)
    found = fit_ridge(torch.full((40, 60), value), labels, 2)
    logits = logits_of(found, torch.full((1, 60), value))
    assert float(found.weight.abs().max()) == 0
    assert logits.softmax(1)[0].tolist() == pytest.approx([0.75, 0.25], abs=0.03)


def test_features_far_from_zero(print_seed: Seed) -> None:
    features, labels = classes_of(90, 30, 5, print_seed())
    expected = fit_ridge(features.double(), labels, 5)
    found = fit_ridge(1e4 + 100 * features.double(), labels, 5)  # neither mean nor unit matters
    assert found.strength == expected.strength
    assert far(100 * found.weight, expected.weight) < 1e-5


@pytest.mark.parametrize("spread", [0.1, 1.0])
def test_scale_lowers_the_cross_entropy_of_new_images_and_keeps_answers(spread: float, print_seed: Seed) -> None:
    features, labels = classes_of(1200, 50, 10, print_seed(0), spread)
    found = fit_ridge(features[:600], labels[:600], 10)
    assert found.scale > 1
    scaled = logits_of(found, features[600:])
    plain = scaled / found.scale
    assert torch.equal(scaled.argmax(1), plain.argmax(1))
    losses = {times: float(F.cross_entropy(times * scaled, labels[600:])) for times in (0.5, 0.7, 1, 1.4)}
    assert losses[1] < 0.8 * float(F.cross_entropy(plain, labels[600:]))
    if spread == 1:  # answers of which some are wrong are calibrated
        assert losses[1] < min(losses[0.5], losses[0.7] + 0.01, losses[1.4] + 0.01)


def broken(value: float) -> Tensor:
    features = torch.ones(6, 4)
    features[5, 2] = value
    return features


LABELS = torch.tensor([0, 1, 2, 0, 1, 2])

WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "NaN": ("features", {"features": broken(float("nan"))}),
    "infinity": ("features", {"features": broken(float("inf"))}),
    "infinity first": ("features", {"features": broken(float("-inf")).flip(0)}),
    "one row": ("features", {"features": torch.ones(6)}),
    "no images": ("features", {"features": torch.ones(0, 4), "labels": LABELS[:0]}),
    "no features": ("features", {"features": torch.ones(6, 0)}),
    "integers": ("features", {"features": torch.ones(6, 4, dtype=torch.int64)}),
    "fewer labels": ("labels", {"labels": LABELS[:5]}),
    "one-hot labels": ("labels", {"labels": F.one_hot(LABELS)}),
    "labels of numbers": ("labels", {"labels": LABELS.float()}),
    "a label too high": ("labels", {"labels": LABELS + 1}),
    "a label below 0": ("labels", {"labels": LABELS - 1}),
    "fewer groups": ("groups", {"groups": LABELS[:5]}),
    "groups of numbers": ("groups", {"groups": LABELS.float()}),
    "no strength": ("strengths", {"strengths": []}),
    "strength 0": ("strengths", {"strengths": [1.0, 0.0]}),
    "strength NaN": ("strengths", {"strengths": [float("nan")]}),
    "weights of images": ("weights", {"weights": torch.ones(6)}),
    "weight 0": ("weights", {"weights": torch.tensor([1.0, 1.0, 0.0])}),
    "weight NaN": ("weights", {"weights": torch.tensor([1.0, float("nan"), 1.0])}),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors(case: str) -> None:
    argument, changed = WRONG[case]
    arguments: dict[str, Any] = {"features": broken(1.5), "labels": LABELS, "classes": 3} | changed
    with pytest.raises(MemtokError, match=r"^expected .*found .*; ") as error:
        fit_ridge(**arguments)
    assert error.value.argument == argument
    assert "\n" not in str(error.value)
    fit_ridge(
        **arguments | {"features": broken(1.5), "labels": LABELS, "groups": LABELS, "strengths": [1.0], "weights": None}
    )


@pytest.mark.gpu
@pytest.mark.parametrize("case", SHAPES)
def test_on_a_gpu(case: str, monkeypatch: pytest.MonkeyPatch, print_seed: Seed) -> None:
    lower_limits(case, monkeypatch)
    features, labels = classes_of(*SHAPES[case], 5, print_seed())
    expected = fit_ridge(features, labels, 5)
    found = fit_ridge(features.cuda(), labels, 5)
    assert (found.weight.device.type, found.bias.device.type) == ("cuda", "cuda")
    assert found.strength == expected.strength
    assert far(found.weight.cpu(), expected.weight) < 1e-4


def test_through_few_numbers_it_tells_many_classes_apart(print_seed: Seed) -> None:
    """100 classes whose centres lie in 8 dimensions of 60."""
    generator = torch.Generator().manual_seed(print_seed(None))
    centres = torch.randn(100, 8, generator=generator) @ torch.randn(8, 60, generator=generator)
    labels = torch.arange(100).repeat(10)
    x, fresh = (centres[labels] + 4 * torch.randn(1000, 60, generator=generator) for _ in range(2))
    found = fit_ridge(x, labels, 100)
    up, down, bias = found.reduced(8)
    assert (up.shape, down.shape, bias.shape) == ((100, 8), (8, 60), (100,))
    logits = fresh @ (up @ down).T + bias

    def right(answers: Tensor) -> float:
        return float((answers.argmax(dim=1) == labels).float().mean())

    whole = logits_of(found, fresh)
    u, s, v = torch.linalg.svd(found.weight, full_matrices=False)
    assert right(logits) > right(whole) + 0.15  # a regression onto many classes lets some hide others
    assert right(logits) > right(fresh @ ((u * s)[:, :8] @ v[:8]).T + found.bias) + 0.15
    losses = [float(F.cross_entropy(scale * logits, labels)) for scale in (0.4, 1.0, 2.5)]
    assert losses[1] == min(losses)  # about as sure as it may be
    assert float(((x - x.mean(dim=0)) @ down.T).square().mean(dim=0).sqrt().sub(1).abs().max()) < 0.5


def test_of_as_many_numbers_as_classes_the_directions_are_those_of_the_whole(print_seed: Seed) -> None:
    x, labels = classes_of(80, 20, 6, print_seed(None))
    found = fit_ridge(x, labels, 6)
    up, down, _ = found.reduced(9)
    assert up.shape == (6, 5)  # centred answers of six classes have five directions
    product, centred = up @ down, found.weight - found.weight.mean(dim=0)
    assert float(F.cosine_similarity(product.flatten(), centred.flatten(), dim=0)) == pytest.approx(1, abs=1e-4)
    few = fit_ridge(x[:6], torch.arange(6), 6)  # nothing to cross-fit
    assert len(few.outputs) == 0
    assert all(each.isfinite().all() for each in few.reduced(3))
