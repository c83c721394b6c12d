"""The split that a task was trained with, restored when the task is evaluated.

The record in a task file names the training data and their split. Evaluation opens the same data with the same split;
another split is refused if its test images include training images of the task.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from memtok.data.datasets import check_split, open_data
from memtok.data.images import Progress
from memtok.data.sources import DataSource
from memtok.data.splits import EIGHTY_TWENTY, OFFICIAL, SPLIT_FILE, SPLIT_FILE_80_20, SPLITS, check_fraction, check_seed
from memtok.errors import MemtokError

logger = logging.getLogger("memtok")

FOLDER = "folder:"


@dataclass(frozen=True)
class Trained:
    """The training data of a record and their split. seed and fraction are None where the split was not drawn."""

    spec: str
    kind: str
    seed: int | None
    fraction: float | None
    digest: str

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of `open_data` for the same split. The split file of a folder holds seed and fraction."""
        split = self.kind if self.kind in SPLITS else None
        if self.spec.startswith(FOLDER):
            return {"split": split}
        return {"split": split, "seed": self.seed, "validation_fraction": self.fraction}


def trained_on(record: Mapping[str, Any]) -> Trained | None:
    """The training data in the record of a task, or of a whole model; None if the record has none."""
    try:
        data = record["data"]
        split = data["split"]
        seed, fraction = split["seed"], split["fraction"]
        return Trained(
            spec=str(data["spec"]),
            kind=str(split["kind"]),
            seed=None if seed is None else check_seed(seed),
            fraction=None if fraction is None else check_fraction(fraction),
            digest=str(split["digest"]),
        )
    except (KeyError, TypeError, MemtokError):  # an old or foreign record
        return None


def opening_key(spec: str, record: Mapping[str, Any]) -> tuple[str, Trained | None]:
    """Two tasks for which this is equal get the same images from `open_as_trained`."""
    trained = trained_on(record)
    same = trained is not None and (same_data(spec, trained) or _moved_folder(spec, trained))
    return spec, trained if same else None


def open_as_trained(
    spec: str,
    record: Mapping[str, Any],
    *,
    who: str,
    classes: Sequence[str],
    part: str | None,
    split: str | None = None,
    data_dir: str | Path | None = None,
    on_bad_image: str = "fail",
    progress: Progress | None = None,
) -> DataSource:
    """Opens `spec` with the split that `record` names, if the record is about the same data; else as `open_data`.

    `who` names the task in messages, `classes` are its own, `part` is what will be used: "test", "validation",
    "train" or None, see `DataSource.measured_part`. `split` asks for a split; MemtokError if the part then holds images
    that the task was trained on.
    """
    check_split(split)
    open_one = partial(open_data, spec, data_dir=data_dir, on_bad_image=on_bad_image, progress=progress)
    trained = trained_on(record)
    if trained is None or not same_data(spec, trained):
        if trained is not None and split is None and _moved_folder(spec, trained):
            data = open_one(split=EIGHTY_TWENTY)
            if _of(data, classes).split_digest == trained.digest:
                return data
        return open_one(split=split)
    if split in (None, trained.arguments["split"]):
        data = open_one(**trained.arguments)
        now = _of(data, classes).split_digest
        if now != trained.digest:
            logger.warning(
                "%s is not split as it was when %s was trained (%s then, %s now): images were added, removed or left "
                "out, so some of the %s part may have been trained on",
                spec,
                who,
                trained.digest[:19],
                now[:19],
                data.measured_part(part),
            )
        return data
    data = open_one(split=split)
    if part != "train":
        before = _of(open_one(**trained.arguments), classes)
        check_apart(before, _of(data, classes), data.measured_part(part), who=who)
    return data


def check_apart(trained: DataSource, tested: DataSource, part: str, *, who: str) -> None:
    """MemtokError if `part` of `tested` holds images of the training part of `trained`, or as a test of validation."""
    images = getattr(tested, part).identities
    looked_at = [("was not trained on", "training", trained.train)]
    if part == "test":
        looked_at.append(("was not chosen by", "validation", trained.validation))
    for what, kind, seen in looked_at:
        common = len(set(seen.identities).intersection(images))
        if common:
            raise MemtokError(
                f"expected a {part} part that {who} {what}, found {common:,} of its {kind} images (split "
                f"{trained.split_kind}) among the {len(images):,} of {tested.spec} (split {tested.split_kind}); leave "
                "the split out to take that of the training",
                argument="split",
            )


def recorded_spec(spec: str) -> str:
    """A spec as it is recorded: of a folder only the name, not its path on the machine that trained."""
    if not spec.startswith(FOLDER):
        return spec
    return FOLDER + Path(spec.removeprefix(FOLDER)).expanduser().resolve().name


def same_data(spec: str, trained: Trained) -> bool:
    """Whether `spec` names the data of a record. A folder is identified by its name and by the split in it.

    Version 0.1 recorded paths as they were typed; where that is more than a name, the path decides.
    """
    if not (spec.startswith(FOLDER) and trained.spec.startswith(FOLDER)):
        return spec == trained.spec
    given, recorded = (Path(one.removeprefix(FOLDER)).expanduser() for one in (spec, trained.spec))
    if given.resolve() == recorded.resolve():
        return True
    return len(recorded.parts) == 1 and given.resolve().name == recorded.name and _is_split(given, trained.kind)


def _is_split(folder: Path, kind: str) -> bool:
    """Whether a folder may have been split so before: a drawn split is written into it, if it can be written."""
    if kind == OFFICIAL or not os.access(folder, os.W_OK):
        return True
    return (folder / (SPLIT_FILE_80_20 if kind == EIGHTY_TWENTY else SPLIT_FILE)).is_file()


def _of(data: DataSource, classes: Sequence[str]) -> DataSource:
    """The images of these classes, which may be some of those in the data or all, in any order."""
    if set(classes) < set(data.classes) and len(classes) > 1:
        return data.only(classes)
    return data


def _moved_folder(spec: str, trained: Trained) -> bool:
    """Whether `spec` may be the folder of the record under another name: it contains an 80-20 split."""
    folders = spec.startswith(FOLDER) and trained.spec.startswith(FOLDER) and trained.kind == EIGHTY_TWENTY
    return folders and (Path(spec.removeprefix(FOLDER)).expanduser() / SPLIT_FILE_80_20).is_file()
