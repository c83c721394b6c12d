"""`folder:PATH`: one folder of images per class, split by its part folders or by a seed.

Three layouts: class folders directly in PATH; or PATH/train with class folders, and PATH/val, PATH/test, both or
neither (parts.py has their other names). If there is no part for validation, one is drawn and written to a file.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from memtok.checks import composed, new_classes
from memtok.data.file_cache import cache_file
from memtok.data.finding import holds_images, images_below, look_into, summary
from memtok.data.images import (
    IMAGE_EXTENSIONS,
    LeftOut,
    Progress,
    UnreadableImageError,
    look_at_images,
    shown,
)
from memtok.data.parts import part_folders
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
from memtok.errors import Argument, MemtokError

logger = logging.getLogger("memtok")

VALIDATION_FRACTION = 0.2
Files = dict[str, int]
"""{path relative to PATH, with forward slashes: label}, in the order in which the images are numbered."""

ClassFolders = dict[str, list[Path]]
"""{class name: its folders} in natural order; two folders whose names differ only in Unicode's form are one class."""


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

    `split`: "official" asks for part folders; "80-20" draws all parts from the images of all folders, and writes
    the split to another file.
    """
    root = _existing_folder(path)
    try:
        classes, parts, left_out = _list_parts(root)
    except OSError as error:
        raise MemtokError(
            f"expected folders that can be read in {shown(root)}, found {shown(error.filename or root)} "
            f"({error.strerror}); change its permissions"
        ) from error
    if split == OFFICIAL and len(parts) == 1:
        raise MemtokError(
            f"expected the official split in {shown(root)}, a folder train/ with test/ or val/ beside it, found only "
            "class folders; use the 80-20 split",
            argument="split",
        )
    if split == EIGHTY_TWENTY:
        parts = {TRAIN: {name: label for files in parts.values() for name, label in files.items()}}
    listed = [name for files in parts.values() for name in files]
    bad, peak = look_at_images(root, listed, cache=cache_file(data_dir / "checked", root), progress=progress)
    left_out += [LeftOut(str(root / name), reason) for name, reason in bad.items()]
    if left_out and on_bad_image == "fail":
        raise _too_bad(left_out)
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
    hashes = cache_file(data_dir / "content", root)
    sets = {part: _image_set(root, files, hashes) for part, files in readable.items()}
    if left_out:
        logger.warning("%s: %s", shown(root), summary(left_out))
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
        left_out=tuple(left_out),
        peak=peak,
    )


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sorts names in natural order: `class2` before `class10`, capitals among the small letters."""
    pieces = re.split(r"([0-9]+)", name)
    key = [(0, int(piece), "") if piece.isdecimal() else (1, 0, piece.casefold()) for piece in pieces if piece]
    return [*key, (2, 0, name)]


def _existing_folder(path: str) -> Path:
    root = Path(path).expanduser()
    if not root.exists():
        raise MemtokError(
            f"expected a folder of images, found nothing at {shown(root)}; check the path", argument="spec"
        )
    if not root.is_dir():
        raise MemtokError(
            f"expected a folder with one folder of images per class, found the file {shown(root)}; name the folder",
            argument="spec",
        )
    return root


def _list_parts(root: Path) -> tuple[tuple[str, ...], dict[str, Files], list[LeftOut]]:
    """The class names, the images of each part, and what was left out; without parts all images are in `train`."""
    places = part_folders(root, sorted(look_into(root).folders, key=lambda child: natural_key(child.name)))
    left_out = _lost_folders(root)
    folders: dict[str, ClassFolders] = {}
    for part, place in places.items():
        folders[part] = _class_folders(place)
        left_out += _lost_folders(place)
    classes = _class_names(places[TRAIN], folders[TRAIN])
    parts: dict[str, Files] = {}
    for part, place in places.items():
        if part != TRAIN:
            _check_same_classes(places[TRAIN], classes, place, tuple(folders[part]))
        parts[part], unread = _list_files(root, place, classes, folders[part])
        left_out += unread
    return classes, parts, list(dict.fromkeys(left_out))


def _lost_folders(place: Path) -> list[LeftOut]:
    """Broken links that may have led to class folders. Images beside class folders have no class."""
    return [one for one in look_into(place).left_out if not Path(one.path).suffix]


def _class_folders(place: Path) -> ClassFolders:
    folders: ClassFolders = {}
    for child in look_into(place).folders:
        folders.setdefault(composed(child.name), []).append(child)
    return {name: folders[name] for name in sorted(folders, key=natural_key)}


def _class_names(place: Path, folders: ClassFolders) -> tuple[str, ...]:
    names = tuple(folders)
    if not names:
        found = "images but no folders" if look_into(place).images else "no folders"
        raise MemtokError(
            f"expected one folder of images per class in {shown(place)}, found {found}; make a folder per class"
        )
    if len(names) == 1:
        raise MemtokError(
            f"expected at least two class folders in {shown(place)}, found only {names[0]!r}; add another class"
        )
    alike: dict[str, list[str]] = {}
    for name in new_classes(names):
        alike.setdefault(name.casefold(), []).append(name)
    for twins in (twins for twins in alike.values() if len(twins) > 1):
        logger.warning("classes of %s that differ in capitals only: %s", shown(place), listing(twins))
    return names


def _check_same_classes(train: Path, classes: tuple[str, ...], place: Path, names: tuple[str, ...]) -> None:
    if not holds_images(place):
        raise MemtokError(
            f"expected images in {shown(place)}, found none; fill it, or remove it and let a part be drawn"
        )
    missing = [name for name in classes if name not in names]
    extra = [name for name in names if name not in classes]
    if missing or extra:
        found = f"no {missing[0]!r}" if missing else f"{extra[0]!r} too"
        raise MemtokError(
            f"expected the classes of {shown(train)} in {shown(place)}, found {found} ({len(missing)} missing, "
            f"{len(extra)} unknown); give both the same folders"
        )


def _list_files(
    root: Path, place: Path, classes: tuple[str, ...], folders: ClassFolders
) -> tuple[Files, list[LeftOut]]:
    """The images of all classes in one part, and what was left out."""
    files: Files = {}
    left_out: list[LeftOut] = []
    for label, name in enumerate(classes):
        images: list[str] = []
        unread: list[LeftOut] = []
        for folder in folders[name]:
            found, lost = images_below(folder)
            images += [image.relative_to(root).as_posix() for image in found]
            unread += lost
        left_out += unread
        if not images:
            why = f" ({summary(unread)})" if unread else ""
            raise MemtokError(
                f"expected images in every class folder, found none in {shown(folders[name][0])}{why}; add images "
                f"({listing(sorted(IMAGE_EXTENSIONS), 40)}) or remove the folder"
            )
        files.update(dict.fromkeys(sorted(images), label))
    return files, left_out


def _too_bad(left_out: Sequence[LeftOut]) -> MemtokError:
    first = left_out[0]
    if len(left_out) == 1:
        return UnreadableImageError(first.path, first.reason)
    return MemtokError(
        f"expected readable images, found {len(left_out)} that are not, the first one {shown(first.path)} "
        f"({first.reason}); mend or remove them, or use {Argument('on_bad_image', 'skip')}"
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
    return ImageSet.whole(FileStore(root, tuple(files), hashes), labels)
