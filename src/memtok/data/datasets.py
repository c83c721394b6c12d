"""Opening data: sets by name, and folders."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memtok.data.choices import ON_BAD_IMAGE, SPLITS
from memtok.data.folders import open_folder
from memtok.data.images import Progress, shown
from memtok.data.published import VALIDATION_FRACTION, in_parts, without_unreadable
from memtok.data.registry import DATASETS
from memtok.data.sources import DataSource
from memtok.data.splits import check_fraction, check_seed
from memtok.data.variation import make_variation
from memtok.errors import Argument, MemtokError


def default_data_dir() -> Path:
    """The folder of named data sets: $MEMTOK_DATA, else ~/.cache/memtok/data."""
    return Path(os.environ.get("MEMTOK_DATA") or "~/.cache/memtok/data").expanduser()


def open_data(
    spec: str,
    *,
    data_dir: str | Path | None = None,
    split: str | None = None,
    seed: int | None = None,
    validation_fraction: float | None = None,
    on_bad_image: str = "fail",
    progress: Progress | None = None,
    transform: Callable[[Any], Any] | None = None,
) -> DataSource:
    """Opens a data set by name (one of `DATASETS`) or `folder:PATH`.

    `data_dir`: where named sets are, or are downloaded to (default: $MEMTOK_DATA, else ~/.cache/memtok/data).
    `split`: "official", the published training and test parts (of a folder: its own train/ and test/ or val/), or
    "80-20", a test part of 20 % of all labelled images, drawn per class; None means official where one exists (for
    inaturalist2017 and sun397: where its lists are at hand), else 80-20; for a folder, see docs/data.md. In both,
    validation is drawn from the training part. `seed`: of the split, not of the training; None means 0, or for a
    folder the seed of the split that is written there. `validation_fraction`: the share of the training images that
    validates, by default 0.1 for named sets and 0.2 for folders.
    `on_bad_image`: "fail" raises with the path of an unreadable image, "skip" leaves such images out and lists them in
    `skipped`. For this every file of a folder is read once when it is opened; the files of named sets only with
    "skip". `progress` is called with (checked, in all) meanwhile.
    `transform`: an augmentation of training images of your own, in place of memtok's: see `DataSource.varied`.

    Raises MemtokError for an unknown name, missing or damaged files, a download that fails, a folder that is not made
    of classes, and bad arguments.
    """
    if on_bad_image not in ON_BAD_IMAGE:
        raise MemtokError(
            f"expected {Argument('on_bad_image')} 'fail' or 'skip', found {on_bad_image!r}; choose one of them"
        )
    check_spec(spec)
    check_split(split)
    if seed is not None:
        seed = check_seed(seed)
    if validation_fraction is not None:
        validation_fraction = check_fraction(validation_fraction)
    if transform is not None:
        make_variation(transform, None)  # before anything is read
    folder = default_data_dir() if data_dir is None else Path(data_dir).expanduser()
    if spec.startswith("folder:"):
        data = open_folder(
            spec.removeprefix("folder:"),
            data_dir=folder,
            split=split,
            seed=seed,
            validation_fraction=validation_fraction,
            on_bad_image=on_bad_image,
            progress=progress,
        )
        return data if transform is None else data.varied(transform)
    row = DATASETS[spec]
    data = in_parts(
        spec,
        row.read(folder),
        augment=row.augment,
        flip=row.flip,
        split=split,
        seed=0 if seed is None else seed,
        fraction=VALIDATION_FRACTION if validation_fraction is None else validation_fraction,
    )
    if on_bad_image == "skip":
        data = without_unreadable(data, folder, progress)
    return data if transform is None else data.varied(transform)


def check_spec(spec: str) -> str:
    """Returns `spec` if it is the name of a data set or folder:PATH, without opening anything; else MemtokError."""
    if spec in DATASETS or (spec.startswith("folder:") and spec != "folder:"):
        return spec
    if spec == "folder:":
        advice = "write for example folder:photos"
    elif Path(spec).is_dir():
        advice = f"write folder:{shown(spec)}"
    else:
        advice = "use one of these, or folder:PATH"
    raise MemtokError(
        f"expected a data set ({', '.join(DATASETS)}, folder:PATH), found {spec!r}; {advice}", argument="spec"
    )


def check_split(split: str | None) -> None:
    """Raises MemtokError unless `split` is None or one of `SPLITS`."""
    if split is not None and split not in SPLITS:
        raise MemtokError(
            f"expected the split {' or '.join(SPLITS)}, found {split!r}; choose one of them", argument="split"
        )


def refuse_split(split: str | None, given: object) -> None:
    """Raises MemtokError if there is a `split` for data that were opened already."""
    if split is not None:
        raise MemtokError(
            f"expected split only with data given by name, found {split!r} with a {type(given).__name__}; "
            "give it to open_data",
            argument="split",
        )
