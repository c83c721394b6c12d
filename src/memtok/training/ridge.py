"""A linear classifier in closed form: ridge regression onto one-hot labels, no gradient step.

With Xc the centred features and Yc the centred one-hot labels, the weight minimises |Xc W^T - Yc|^2 + penalty |W|^2,
so W^T = (Xc^T Xc + penalty I)^-1 Xc^T Yc. The bias is not penalised. All arithmetic is in float64. Where images have
weights w, means are weighted and the rows of Xc and Yc are multiplied by sqrt(w): weighted least squares.

The strength. penalty = strength * spread, where spread is the mean squared distance of an image from the mean of all.
Cross-fitting chooses it on a sample of at most SAMPLE images, with the same penalty that all images get afterwards.
That penalty is noise variance over prior variance of a weight (Lindley and Smith, JRSS B 1972), and neither
depends on how many images there are: from sample to all images it goes over as it is.

The scale. Outputs of the regression lie about in [0, 1] and as logits give nearly uniform probabilities. Weight and
bias are therefore multiplied by one positive number, at which the cross-fitted outputs have the least cross-entropy.
The models cross-fitted on a sample are weaker than the one fitted to all, whose answers then are a little off.

Cost, with s = min(n, F), m = min(n, SAMPLE), t = min(m, F), in floating-point operations, all of float64:
- choice: 2 m F t for a Gram matrix, about 9 t^3 for one eigendecomposition, 2 m^2 t / FOLDS + 4 m t C per strength
- s <= LARGEST: 2 n F s for a Gram matrix, s^3 / 3 for its Cholesky factor, 2 to 6 n F C for products with features
- s > LARGEST: no Gram matrix, but (4 n + 4 m) F C for each iteration of conjugate gradients
Memory beside the features, in bytes: about 50 m t for the choice (0.4 GB at m = t = SAMPLE); then 16 s^2 (1 GB at
s = LARGEST), 16 t^2 if s > LARGEST; 8 (6 F + 4 min(n, LARGEST)) C for what has a column per class; a copy of the sample
in the type of the features unless it is all images; some 300 MB for blocks of BLOCK numbers.

Letters for shapes: n images, F features, C classes; m images of the sample, t principal coordinates; B a block's rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from memtok.errors import Argument, MemtokError

STRENGTHS = tuple(10 ** (half / 2) for half in range(-8, 7))  # 1e-4 ... 1e3
WEAKEST = 1e-6  # below it rounding shows in the solution
FOLDS = 5
SAMPLE = 3000  # images for cross-fitting and for the preconditioner, at most
LARGEST = 8000  # rows of a Gram matrix: 512 MB, and as much for its Cholesky factor
BLOCK = 2**23  # numbers that are float64 at a time: 64 MB
TOLERANCE = 1e-7  # of conjugate gradients: |residual| / |right side| of each class
ITERATIONS = 500  # of conjugate gradients, at most
DAMPING = 0.3  # strength added to the preconditioner: a sample overrates the directions that its noise lies in
SCALES = (1e-2, 1e4)
NOTHING = 1e-6  # of the largest outputs in any direction: smaller ones are rounding


@dataclass(frozen=True, kw_only=True)
class Ridge:
    """Logits are `features.float() @ weight.T + bias`: weight (C, F), bias (C,), float32, on the features' device.

    strength: the chosen one. scale: what weight and bias of the regression were multiplied by. scores: {strength:
    cross-fitted balanced accuracy in [0, 1]}; empty if no class had two groups of images, then nothing was measured,
    the strength is the middle one and the scale 1. outputs, labels: (m, C) cross-fitted outputs of the regression and
    (m,) the labels of these images. prior: (C,) the share of each class in all images. residual: of the normal
    equations, relative to their right side, the largest of all classes: 0 if they were solved directly, above TOLERANCE
    only if ITERATIONS ended the solution early.
    """

    weight: Tensor
    bias: Tensor
    strength: float
    scale: float
    scores: dict[float, float]
    outputs: Tensor
    labels: Tensor
    prior: Tensor
    residual: float

    @torch.no_grad()
    def reduced(self, rank: int) -> tuple[Tensor, Tensor, Tensor]:
        """`up` (C, k), `down` (k, F) and bias (C,): a classifier through k numbers, k being `rank` at most.

        The outputs are projected onto the k directions U in which cross-fitted outputs and labels vary together most.
        Alone that favours the classes that lie in these directions, so each class answers by its own direction among
        them, a row of U, as long as that of every other class: docs/results.md, "Many classes". The logits are scaled
        as those of the whole regression are.
        """
        outputs, one_hot = self.outputs.double(), F.one_hot(self.labels, len(self.bias)).double()
        if len(outputs):
            outputs = outputs - outputs.mean(dim=0)
            together = outputs.T @ one_hot
        else:  # nothing was cross-fitted
            together = self.weight.double() @ self.weight.double().T
        u = torch.linalg.eigh(together + together.T).eigenvectors.flip(1)[:, :rank]  # (C, k)
        sizes = (outputs @ u).square().mean(dim=0).sqrt() if len(outputs) else torch.ones_like(u[0])
        some = sizes > NOTHING * sizes.max()  # not the direction in which the outputs of all classes are one
        u, sizes = u[:, some], sizes[some]
        up = F.normalize(u, dim=1)
        alike = torch.ones_like(one_hot[:, :1])
        scale = calibrated(outputs @ u @ up.T, one_hot, alike) if len(outputs) else 1.0
        down = (u / sizes).T @ (self.weight.double() / self.scale)
        shift = u.T @ (self.bias.double() / self.scale - self.prior)  # that of the mean of the features
        return (scale * up * sizes).float(), down.float(), (scale * up @ shift).float()


@torch.no_grad()
def fit_ridge(
    features: Tensor,
    labels: Tensor,
    classes: int,
    *,
    seed: int = 0,
    groups: Tensor | None = None,
    strengths: Sequence[float] = STRENGTHS,
    weights: Tensor | None = None,
) -> Ridge:
    """Fits a linear classifier to features (n, F), of any floating type and on any device, and labels (n,) of integers.

    seed: of sample and folds; no global generator is used. groups: (n,) integers; rows of one group, such as views of
    one image, are always in the same fold. strengths: those to choose from, at least WEAKEST. weights: (classes,) of
    the squared error of an image of each class, above 0 for classes that occur; all count alike by default.
    Raises MemtokError if shapes, types, labels, strengths or weights do not fit, or if a feature is not finite.
    """
    check(features, labels, classes, groups, strengths)
    check_weights(weights, labels, classes)
    rows, folds = sampled(labels, classes, groups, seed)
    labels = labels.to(features.device, torch.int64)
    by_row = None if weights is None else weights.to(features.device, torch.float64)[labels]
    everything = Centred(features, by_row)
    if len(rows) == len(features):
        sample, sample_labels = everything, labels
    else:
        rows = rows.to(features.device)
        sample = Centred(features[rows], None if by_row is None else by_row[rows])
        sample_labels = labels[rows]
    gram = sample.gram()
    penalties = {strength: strength * everything.spread for strength in strengths}
    strength, scale, scores, outputs, scored = choose(sample, gram, sample_labels, classes, folds, penalties)
    weight, residual = solve(everything, sample, gram, labels, classes, penalties[strength])  # (F, C)
    prior = everything.shares(labels, classes)  # the mean of the one-hot labels
    bias = prior - everything.mean @ weight
    return Ridge(
        weight=(scale * weight.T).float().contiguous(),
        bias=(scale * bias).float(),
        strength=strength,
        scale=scale,
        scores=scores,
        outputs=outputs.float(),
        labels=scored,
        prior=prior,
        residual=residual,
    )


def check(features: Tensor, labels: Tensor, classes: int, groups: Tensor | None, strengths: Sequence[float]) -> None:
    """MemtokError unless all arguments of `fit_ridge` fit; whether features are finite, `Centred` finds out."""
    if features.dim() != 2 or 0 in features.shape or not features.is_floating_point():
        found = f"{tuple(features.shape)} of {features.dtype}"
        raise MemtokError(
            f"expected {Argument('features')} (images, features) of a floating type, neither of them 0, found {found}; "
            "pass one row per image"
        )
    for name, value in (("labels", labels), ("groups", labels if groups is None else groups)):
        if value.shape != features.shape[:1] or value.is_floating_point() or value.dtype == torch.bool:
            raise MemtokError(
                f"expected {Argument(name)} ({len(features)},) of integers, as there are rows of features, found "
                f"{tuple(value.shape)} of {value.dtype}; pass one per row"
            )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise MemtokError(
            f"expected {Argument('labels')} from 0 to {classes - 1}, found {low} to {high}; "
            "number the classes from 0 or pass how many there are"
        )
    wrong = [strength for strength in strengths if not WEAKEST <= strength < math.inf]
    if wrong or not strengths:
        raise MemtokError(
            f"expected {Argument('strengths')}, at least one, finite and from {WEAKEST:g} on, found "
            f"{wrong[0] if wrong else 'none'}; leave them out for {STRENGTHS[0]:g} to {STRENGTHS[-1]:g}"
        )


def check_weights(weights: Tensor | None, labels: Tensor, classes: int) -> None:
    """MemtokError unless the weights of `fit_ridge` fit."""
    if weights is None:
        return
    fits = weights.shape == (classes,) and bool((weights[labels.to(weights.device)] > 0).all())
    if not fits or not bool(weights.isfinite().all()):
        raise MemtokError(
            f"expected {Argument('weights')} ({classes},), finite and above 0 for classes that occur, found "
            f"{tuple(weights.shape)} from {float(weights.min()):g}; leave them out where all images count alike"
        )


class Centred:
    """Features (n, F) minus their mean, as float64 in blocks of at most BLOCK numbers (or one row or column).

    weights: (n,) float64, or None; then means are weighted, and each row is multiplied by the root of its weight.
    mean: (F,). spread: the mean squared distance of a row from it; 1 if all rows are equal, where any serves. roots:
    (n, 1), or None.
    """

    def __init__(self, features: Tensor, weights: Tensor | None = None) -> None:
        self.features = features
        self.total = len(features) if weights is None else float(weights.sum())
        self.roots: Tensor | None = None
        first = features[0].double()  # differences from it: a constant feature has no spread, not that of rounding
        total, squares = torch.zeros_like(first), torch.zeros_like(first)
        self.mean = torch.zeros_like(first)  # that `rows` subtracts; the real one follows from this pass
        for part, block in self.rows():
            own = 1.0 if weights is None else weights[part, None]
            total += (own * (block - first)).sum(dim=0)
            squares += (own * (block - first).square()).sum(dim=0)
        shift = total / self.total
        self.mean = first + shift
        self.roots = None if weights is None else weights.sqrt().unsqueeze(1)
        wrong = (~self.mean.isfinite()).nonzero()
        if len(wrong):
            raise MemtokError(
                f"expected finite {Argument('features')}, found NaN or infinity in {len(wrong)} of "
                f"{features.shape[1]} columns, first in column {int(wrong[0])}; leave out those images or features"
            )
        spread = float((squares / self.total - shift.square()).clamp(min=0).sum())
        self.spread = spread if spread > 0 else 1.0

    def rows(self) -> Iterator[tuple[slice, Tensor]]:
        """Blocks (B, F) with the rows that they are."""
        n, width = self.features.shape
        step = max(1, BLOCK // width)
        for start in range(0, n, step):
            part = slice(start, start + step)
            yield part, self.scaled(self.features[part].double() - self.mean, part)

    def scaled(self, rows: Tensor, part: slice = slice(None)) -> Tensor:
        """Rows (B, k), one of each image of a part of all, times the roots of their weights."""
        return rows if self.roots is None else rows * self.roots[part]

    def shares(self, labels: Tensor, classes: int) -> Tensor:
        """(C,): the share of each class in the images, or in their weights."""
        weights = None if self.roots is None else self.roots[:, 0].square()
        return labels.bincount(weights, minlength=classes).double() / self.total

    @property
    def dual(self) -> bool:
        """Whether images are fewer than features, so that the smaller Gram matrix is that of images."""
        return self.features.shape[0] < self.features.shape[1]

    def gram(self) -> Tensor:
        """Xc Xc^T (n, n) if `dual`, else Xc^T Xc (F, F)."""
        n, width = self.features.shape
        gram = self.mean.new_zeros(min(n, width), min(n, width))
        if not self.dual:
            for _, block in self.rows():
                gram.addmm_(block.T, block)
            return gram
        step = max(1, BLOCK // n)
        for start in range(0, width, step):
            part = slice(start, start + step)
            block = self.scaled(self.features[:, part].double() - self.mean[part])  # (n, columns)
            gram.addmm_(block, block.T)
        return gram

    def times(self, weight: Tensor) -> Tensor:
        """Xc weight (n, k) of a weight (F, k)."""
        return torch.cat([block @ weight for _, block in self.rows()])

    def sums(self, columns: int, values: Callable[[slice, Tensor], Tensor]) -> Tensor:
        """Xc^T V (F, columns); `values` gives the rows of V that belong to a block, (B, columns)."""
        total = self.mean.new_zeros(len(self.mean), columns)
        for part, block in self.rows():
            total.addmm_(block.T, values(part, block))
        return total

    def normal(self, weight: Tensor) -> Tensor:
        """Xc^T Xc weight (F, k) of a weight (F, k), in one pass over the features."""
        return self.sums(weight.shape[1], lambda _, block: block @ weight)


def sampled(labels: Tensor, classes: int, groups: Tensor | None, seed: int) -> tuple[Tensor, Tensor]:
    """Rows (m,) of the sample in ascending order, and the fold (m,) of each, both on the CPU.

    Whole groups are drawn: two of each class as long as there is room, then the share of each class in all groups. The
    groups of a class are dealt out to the folds in turn. A group whose labels differ is of the class of one of them.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randperm(classes, generator=generator)[labels.cpu().long()]  # or the first classes come first
    names = np.arange(len(labels)) if groups is None else groups.cpu().numpy()
    group = torch.from_numpy(np.unique(names, return_inverse=True)[1])  # (n,) from 0 to G - 1
    sizes = group.bincount()  # (G,)
    of_group = torch.full_like(sizes, classes).scatter_reduce_(0, group, labels, "amin")  # (G,) labels
    order = torch.randperm(len(sizes), generator=generator)
    order = order[of_group[order].argsort(stable=True)]  # by class, at random within
    counts = of_group.bincount(minlength=classes)
    rank = torch.arange(len(order)) - (counts.cumsum(0) - counts)[of_group[order]]  # within its class, 0 is the first
    order = order[((rank - 1).clamp(min=0) / counts[of_group[order]]).argsort(stable=True)]
    order = order[: max(1, int((sizes[order].cumsum(0) <= SAMPLE).sum()))]
    order = order[of_group[order].argsort(stable=True)]
    fold_of = torch.full_like(sizes, -1)
    fold_of[order] = torch.arange(len(order)) % FOLDS
    folds = fold_of[group]
    rows = (folds >= 0).nonzero()[:SAMPLE, 0]  # a first group larger than a sample is cut
    return rows, folds[rows]


def choose(
    sample: Centred, gram: Tensor, labels: Tensor, classes: int, folds: Tensor, penalties: dict[float, float]
) -> tuple[float, float, dict[float, float], Tensor, Tensor]:
    """The strength, scale, `scores`, `outputs` and `labels` of `Ridge`; gram: of the sample, penalties: by strength.

    The best balanced accuracy counts, then the least (weighted) squared error, then the stronger one. Images whose
    class no other fold has are not scored: no strength answers them right.
    """
    folds = folds.to(labels.device)
    one_hot = F.one_hot(labels, classes).double()  # (m, C)
    in_fold = F.one_hot(folds).double().T @ one_hot  # (folds, C) images
    scored = (in_fold.sum(dim=0) - in_fold)[folds, labels] > 0  # (m,)
    if not scored.any():
        return sorted(penalties)[len(penalties) // 2], 1.0, {}, one_hot[:0], labels[:0]
    eigenvalues, vectors = torch.linalg.eigh(gram)
    eigenvalues.clamp_(min=0)
    coordinates = vectors * eigenvalues.sqrt() if sample.dual else sample.times(vectors)  # (m, t)
    right, counted = one_hot[scored], sample.scaled(sample.scaled(torch.ones_like(one_hot[:, :1])))[scored]
    scores: dict[float, float] = {}
    best: tuple[tuple[float, float, float], Tensor] | None = None
    for strength, penalty in penalties.items():
        outputs = cross_fitted(sample, coordinates, eigenvalues, one_hot, folds, penalty)[scored]
        scores[strength] = balanced_accuracy(outputs, labels[scored], classes)
        error = float(((outputs - right).square() * counted).sum(dim=1).mean())
        key = (round(scores[strength], 9), -round(error, 9), strength)
        if best is None or key > best[0]:
            best = key, outputs
    assert best is not None
    return best[0][2], calibrated(best[1], right, counted), scores, best[1], labels[scored]


def cross_fitted(
    sample: Centred, coordinates: Tensor, eigenvalues: Tensor, one_hot: Tensor, folds: Tensor, penalty: float
) -> Tensor:
    """Outputs (m, C) for each image of the regression fitted to the other folds, intercept included.

    One decomposition serves all folds. With H the hat matrix of the fit to all folds and r its residuals, the residuals
    of a fold left out are (I - H_ff)^-1 r_f: Allen's PRESS (Technometrics 1974), for a fold in place of one image.
    coordinates (m, t): Xc in the basis of its principal directions, where Xc^T Xc is the diagonal eigenvalues (t,).
    """
    ones = sample.scaled(torch.ones_like(one_hot[:, :1]))  # (m, 1), what the intercept multiplies
    shrunk = coordinates / (eigenvalues + penalty)
    centred = sample.scaled(one_hot - sample.scaled(ones * one_hot).sum(dim=0) / sample.total)
    residuals = centred - shrunk @ (coordinates.T @ centred)
    outputs = one_hot.clone()
    for fold in range(int(folds.max()) + 1):
        part = (folds == fold).nonzero()[:, 0]
        own = -(ones[part] @ ones[part].T) / sample.total - shrunk[part] @ coordinates[part].T
        own.diagonal().add_(1)
        outputs[part] -= torch.linalg.solve(own, residuals[part]) / ones[part]
    return outputs


def balanced_accuracy(outputs: Tensor, labels: Tensor, classes: int) -> float:
    """The mean recall of the classes that occur in labels (m,); outputs (m, C)."""
    images = labels.bincount(minlength=classes)
    right = labels[outputs.argmax(dim=1) == labels].bincount(minlength=classes)
    return float((right[images > 0].double() / images[images > 0]).mean())


def calibrated(outputs: Tensor, one_hot: Tensor, counted: Tensor) -> float:
    """The number within SCALES that outputs (m, C) are multiplied by for the least cross-entropy, weighted (m, 1).

    The targets are those of m images and one more whose class is unknown (after Platt 1999), so that there is a least
    one even if every image is answered right. The cross-entropy is convex in the scale: bisection of its slope.
    """
    unknown = 1 / (len(one_hot) + 1)
    targets = (1 - unknown) * one_hot + unknown / one_hot.shape[1]
    low, high = math.log(SCALES[0]), math.log(SCALES[1])
    for _ in range(40):
        middle = (low + high) / 2
        slope = ((math.exp(middle) * outputs).softmax(dim=1) - targets).mul_(counted * outputs).sum()
        low, high = (middle, high) if slope < 0 else (low, middle)
    return math.exp((low + high) / 2)


def solve(
    x: Centred, sample: Centred, gram: Tensor, labels: Tensor, classes: int, penalty: float
) -> tuple[Tensor, float]:
    """(Xc^T Xc + penalty I)^-1 Xc^T Yc (F, C) and its `residual`; gram: that of the sample, which is overwritten."""
    # That Xc is centred is enough.
    right = x.sums(classes, lambda part, _: x.scaled(F.one_hot(labels[part], classes).double(), part))
    if min(x.features.shape) <= LARGEST:
        return inverse(x, gram if sample is x else x.gram(), penalty)(right), 0.0
    share = len(sample.features) / len(x.features)  # Xc^T Xc is about that of the sample / share
    return conjugate_gradients(x, right, penalty, inverse(sample, gram, share * penalty + DAMPING * sample.spread))


def inverse(x: Centred, gram: Tensor, penalty: float) -> Callable[[Tensor], Tensor]:
    """The function R -> (Xc^T Xc + penalty I)^-1 R of R (F, C), from the Gram matrix of x, which is overwritten."""
    gram.diagonal().add_(penalty)
    factor = torch.linalg.cholesky(gram)
    if not x.dual:
        return lambda right: torch.cholesky_solve(right, factor)

    def apply(right: Tensor) -> Tensor:
        """Woodbury: (R - Xc^T (Xc Xc^T + penalty I)^-1 Xc R) / penalty."""
        inner = torch.cholesky_solve(x.times(right), factor)  # (n, C)
        return (right - x.sums(right.shape[1], lambda part, _: inner[part])) / penalty

    return apply


def conjugate_gradients(
    x: Centred, right: Tensor, penalty: float, precondition: Callable[[Tensor], Tensor]
) -> tuple[Tensor, float]:
    """(Xc^T Xc + penalty I)^-1 R and the largest relative residual; the columns of R (F, C) are solved side by side.

    precondition: the inverse for a sample, which holds the directions of large variance, those that iterations without
    it are spent on (Frangella, Tropp and Udell, arXiv:2110.02820, with a sample of rows in place of a random sketch).
    """
    sizes = right.norm(dim=0)  # (C,)
    solution, residual = torch.zeros_like(right), right.clone()
    direction = step = precondition(residual)
    product = (residual * step).sum(dim=0)  # (C,)
    for _ in range(ITERATIONS):
        if bool((residual.norm(dim=0) <= TOLERANCE * sizes).all()):
            break
        applied = x.normal(direction) + penalty * direction
        length = ratio(product, (direction * applied).sum(dim=0))
        solution += length * direction
        residual -= length * applied
        step = precondition(residual)
        before, product = product, (residual * step).sum(dim=0)
        direction = step + ratio(product, before) * direction
    return solution, float(ratio(residual.norm(dim=0), sizes).max())


def ratio(above: Tensor, below: Tensor) -> Tensor:
    """above / below, 0 where below is 0: a class without images is solved from the start."""
    return torch.where(below > 0, above / below, 0.0)
