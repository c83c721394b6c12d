"""What the end of a run suggests to try, from what it measured on validation images: one line each."""

from __future__ import annotations

from statistics import median

from memtok.data.content import spread
from memtok.data.sources import DataSource
from memtok.display import percent
from memtok.metrics import MOST_NAMED, Score
from memtok.preprocessing import Preprocessing
from memtok.training.head_alone import HeadAlone

LOW = 0.5  # a balanced accuracy below it is worth a larger image size
LARGER = 2  # times the model's input along both sides, at the median, are images whose detail it may miss


def advise(
    data: DataSource, preprocessing: Preprocessing, augment: str, score: Score | None, head: HeadAlone | None
) -> tuple[str, ...]:
    """What to try where a class has recall 0, or the balanced accuracy is low; nothing where all is well.

    augment: how training images were varied. head: what a head alone gave, if that was looked at.
    """
    if score is None:
        return ()
    missed = [row.name for row in score.per_class if row.images and not row.top1]
    found = [on_variation(missed, augment, head) if missed else None]
    if missed or score.balanced < LOW:
        found.append(on_size(data, preprocessing, missed, score))
    return tuple(line for line in found if line is not None)


def on_variation(missed: list[str], augment: str, head: HeadAlone | None) -> str | None:
    """What recall 0 of these classes has to do with the variation of training images, as far as that can be told.

    A head alone tells it where it was trained on the same images without variation, so where no traces were kept.
    """
    if augment == "none":
        return None
    advice = "try --augment none (augment='none')" if not augment.startswith("transform ") else "try without it"
    if head is None or head.varied:
        return (
            f"recall is 0 for {listed(missed)}, and training images were varied ({augment}); this run cannot tell "
            f"whether that is why: {advice}"
        )
    known = [name for name in missed if head.recall[name]]
    if not known:
        return None  # without variation they are missed as well
    return (
        f"recall is 0 for {listed(known)} with training images varied ({augment}), and above 0 by a head alone trained "
        f"on the same images without: {advice}"
    )


def on_size(data: DataSource, preprocessing: Preprocessing, missed: list[str], score: Score) -> str | None:
    """That images are far larger than the model's input, where they are; of a torch Dataset the size is not known."""
    images = data.train
    if images.store.draws:
        return None
    chosen = spread(len(images))
    sizes = [images.as_stored(index)[0].size for index in chosen]
    width, height = (median(size[side] for size in sizes) for side in (0, 1))
    high, wide = preprocessing.image_size
    if width < LARGER * wide or height < LARGER * high:
        return None
    why = f"recall is 0 for {listed(missed)}" if missed else f"the balanced accuracy is {percent(score.balanced)}"
    side = LARGER * high if high == wide else (LARGER * high, LARGER * wide)
    return (
        f"{why}, and training images are {height:g} x {width:g} px (median of {len(sizes)}) where the model takes "
        f"{high} x {wide}: a larger image size is worth trying, --image-size {side} "
        f"(load_backbone(..., image_size={side})), at about {LARGER**2} times the cost"
    )


def listed(names: list[str]) -> str:
    """Names of classes, the first few of many."""
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    return ", ".join(map(repr, names[:MOST_NAMED])) + more
