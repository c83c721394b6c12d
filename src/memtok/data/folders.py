"""`folder:PATH`: one folder of images per class, split as the folder says or as a seed says.

Three layouts: class folders directly in PATH; or PATH/train with class folders, beside it PATH/val (also `valid`,
`validation`), PATH/test, both or neither. Where no part for validation is given, one is drawn and written down.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from memtok.data.images import (
    IMAGE_EXTENSIONS,
    Progress,
    UnreadableImageError,
    check_cache_file,
    shown,
    unreadable_images,
)
from memtok.data.sources import DataSource, FileStore, ImageSet, listing
from memtok.data.splits import (
    EIGHTY_TWENTY,
    OFFICIAL,
    SPLIT_FILE,
    SPLIT_FILE_80_20,
    TEST,
    TEST_FRACTION,
    TRAIN,
    VALIDATION,
    written_split,
)
from memtok.errors import MemtokError

logger = logging.getLogger("memtok")

VALIDATION_FRACTION = 0.2
PART_FOLDERS = {
    "train": TRAIN,
    "val": VALIDATION,
    "valid": VALIDATION,
    "validation": VALIDATION,
    "test": TEST,
}

Files = dict[str, int]
"""{path relative to PATH, with forward slashes: label}, in the order in which the images are numbered."""


def open_folder(
    path: str,
    *,
    data_dir: Path,
    split: str | None = None,
    seed: int | None,
    validation_fraction: float | None,
    on_bad_image: str,
    progress: Progress | None,
) -> DataSource:
    """Opens PATH as described in this module's docstring; see `open_data`.

    `split`: "official" asks for part folders; "80-20" draws all parts from the images of all folders, and writes that
    down apart.
    """
    root = _existing_folder(path)
    try:
        classes, parts = _list_parts(root)
    except OSError as error:
        raise MemtokError(
            f"expected folders that can be read in {shown(root)}, found {shown(error.filename or root)} "
            f"({error.strerror}); change its permissions"
        ) from error
    if split == OFFICIAL and len(parts) == 1:
        raise MemtokError(
            f"expected the official split in {shown(root)}, a folder train/ with test/ or val/ beside it, found only "
            "class folders; use the 80-20 split"
        )
    if split == EIGHTY_TWENTY:
        parts = {TRAIN: {name: label for files in parts.values() for name, label in files.items()}}
    listed = [name for files in parts.values() for name in files]
    bad = unreadable_images(root, listed, cache=check_cache_file(data_dir / "checked", root), progress=progress)
    if bad and on_bad_image == "fail":
        raise _too_bad(root, bad)
    readable = {
        part: {name: label for name, label in files.items() if name not in bad} for part, files in parts.items()
    }
    _check_trainable(root, classes, readable[TRAIN])
    kind, drawn_seed, fraction = split or "folders", None, None
    if VALIDATION not in readable:
        written = written_split(
            root,
            data_dir / "splits",
            readable[TRAIN],
            listed=parts[TRAIN],
            seed=seed,
            fraction=validation_fraction,
            default_fraction=VALIDATION_FRACTION,
            test_fraction=TEST_FRACTION if split == EIGHTY_TWENTY else None,
        )
        whole = readable[TRAIN]
        for part in (TRAIN, VALIDATION, *([TEST] if split == EIGHTY_TWENTY else [])):
            readable[part] = {name: label for name, label in whole.items() if written.parts[name] == part}
        kind, drawn_seed, fraction = split or "drawn", written.seed, written.fraction
        _check_drawn(root, classes, readable, SPLIT_FILE_80_20 if split == EIGHTY_TWENTY else SPLIT_FILE)
    hashes = check_cache_file(data_dir / "content", root)
    sets = {part: _image_set(root, files, hashes) for part, files in readable.items()}
    return DataSource(
        spec=f"folder:{path}",
        name=root.resolve().name or "folder",
        classes=classes,
        train=sets[TRAIN],
        validation=sets[VALIDATION],
        test=sets.get(TEST, sets[VALIDATION]),
        split_kind=kind,
        seed=drawn_seed,
        fraction=fraction,
        skipped=tuple(str(root / name) for name in bad),
    )


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sorts names as people do: `class2` before `class10`, capitals among the small letters."""
    pieces = re.split(r"([0-9]+)", name)
    key = [(0, int(piece), "") if piece.isdecimal() else (1, 0, piece.casefold()) for piece in pieces if piece]
    return [*key, (2, 0, name)]


def _existing_folder(path: str) -> Path:
    root = Path(path).expanduser()
    if not root.exists():
        raise MemtokError(f"expected a folder of images, found nothing at {shown(root)}; check the path")
    if not root.is_dir():
        raise MemtokError(
            f"expected a folder with one folder of images per class, found the file {shown(root)}; name the folder"
        )
    return root


def _list_parts(root: Path) -> tuple[tuple[str, ...], dict[str, Files]]:
    """The class names and the images of each part; without part folders all images are in `train`."""
    part_folders = _part_folders(root)
    train = part_folders[TRAIN]
    classes = _class_names(train)
    parts: dict[str, Files] = {}
    for part, folder in part_folders.items():
        if folder != train:
            _check_same_classes(train, classes, folder)
        parts[part] = _list_files(root, folder, classes)
    return classes, parts


def _part_folders(root: Path) -> dict[str, Path]:
    """{"train": ..., "validation": ..., "test": ...} as far as they are there; {"train": root} if there are no parts.

    A folder called `train` that holds images itself is a class (of vehicles, say), unless there is nothing beside it
    but other names of parts.
    """
    folders = _folders(root)
    named: dict[str, Path] = {}
    for folder in folders:
        part = PART_FOLDERS.get(folder.name.casefold())
        if part in named:
            raise MemtokError(
                f"expected one folder for {part} in {shown(root)}, found {named[part].name}/ and {folder.name}/; "
                "keep one of them"
            )
        if part is not None:
            named[part] = folder
    if not named or not (len(named) == len(folders) or (TRAIN in named and _holds_classes(named[TRAIN]))):
        return {TRAIN: root}
    if TRAIN not in named:
        raise MemtokError(
            f"expected train/ beside {next(iter(named.values())).name}/ in {shown(root)}, found none; put the "
            "training images there, one folder per class"
        )
    if TEST in named and not _folders(named[TEST]) and any(_images(named[TEST], deep=False)):
        logger.warning("%s has no class folders, so its images have no labels: left out", named.pop(TEST))
    return named


def _holds_classes(folder: Path) -> bool:
    return bool(_folders(folder)) and not any(_images(folder, deep=False))


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(child.name for child in _folders(folder))
    if not names:
        found = "images but no folders" if any(_images(folder, deep=False)) else "no folders"
        raise MemtokError(
            f"expected one folder of images per class in {shown(folder)}, found {found}; make a folder per class"
        )
    if len(names) == 1:
        raise MemtokError(
            f"expected at least two class folders in {shown(folder)}, found only {names[0]!r}; add another class"
        )
    return names


def _check_same_classes(train: Path, classes: tuple[str, ...], folder: Path) -> None:
    names = [child.name for child in _folders(folder)]
    if not any(_images(folder)):
        raise MemtokError(
            f"expected images in {shown(folder)}, found none; fill it, or remove it and let a part be drawn"
        )
    missing = [name for name in classes if name not in names]
    extra = [name for name in names if name not in classes]
    if missing or extra:
        found = f"no {missing[0]!r}" if missing else f"{extra[0]!r} too"
        raise MemtokError(
            f"expected the classes of {shown(train)} in {shown(folder)}, found {found} ({len(missing)} missing, "
            f"{len(extra)} unknown); give both the same folders"
        )


def _list_files(root: Path, folder: Path, classes: tuple[str, ...]) -> Files:
    files: Files = {}
    for label, name in enumerate(classes):
        images = sorted(image.relative_to(root).as_posix() for image in _images(folder / name))
        if not images:
            raise MemtokError(
                f"expected images in every class folder, found none in {shown(folder / name)}; add images "
                f"({listing(sorted(IMAGE_EXTENSIONS), 40)}) or remove the folder"
            )
        files.update(dict.fromkeys(images, label))
    return files


def _folders(folder: Path) -> list[Path]:
    """The folders in `folder` in natural order, without hidden ones and what macOS leaves in archives."""
    children = [
        child
        for child in folder.iterdir()
        if child.is_dir() and not child.name.startswith(".") and child.name != "__MACOSX"
    ]
    return sorted(children, key=lambda child: natural_key(child.name))


def _images(folder: Path, deep: bool = True, above: tuple[tuple[int, int], ...] = ()) -> Iterator[Path]:
    """The image files in `folder` and, if `deep`, in the folders within; links are followed, circles are not."""
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):  # also `._name.jpg`, which macOS writes beside name.jpg
                continue
            if entry.is_dir():
                if deep:
                    yield from _images(Path(entry.path), deep, (*above, here))
            elif os.path.splitext(entry.name)[1].lower() in IMAGE_EXTENSIONS:
                yield Path(entry.path)


def _too_bad(root: Path, bad: Mapping[str, str]) -> MemtokError:
    name, reason = next(iter(bad.items()))
    error = UnreadableImageError(root / name, reason)
    if len(bad) == 1:
        return error
    return MemtokError(
        f"expected readable images, found {len(bad)} that are not, the first one {shown(root / name)} ({reason}); mend "
        "or remove them, or leave bad images out with on_bad_image='skip'"
    )


def _check_trainable(root: Path, classes: tuple[str, ...], files: Files) -> None:
    """Raises MemtokError if a class has no readable image left."""
    without = set(range(len(classes))) - set(files.values())
    if without:
        raise MemtokError(
            f"expected a readable image in every class of {shown(root)}, found none for {classes[min(without)]!r}; "
            "add images or remove the folder"
        )


def _check_drawn(root: Path, classes: tuple[str, ...], parts: Mapping[str, Files], written: str) -> None:
    """Raises MemtokError if the drawn split leaves nothing to validate on or a class without training images."""
    if not parts[VALIDATION]:
        raise MemtokError(
            f"expected images to validate on in {shown(root)}, found none (every class has one image, or its "
            f"validation images were removed); add images, or delete {written} if there is one"
        )
    without = set(range(len(classes))) - set(parts[TRAIN].values())
    if without:
        raise MemtokError(
            f"expected training images of every class in {shown(root)}, found none of {classes[min(without)]!r} (those "
            f"of the written split are gone); add images, or delete {written} to draw a new split"
        )


def _image_set(root: Path, files: Files, hashes: Path) -> ImageSet:
    labels = np.fromiter(files.values(), dtype=np.int64, count=len(files))
    return ImageSet(FileStore(root, tuple(files), hashes), np.arange(len(files)), labels)
