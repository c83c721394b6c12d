"""The images in a folder, found in one way for all commands.

An image is a file with an extension of an image (`IMAGE_EXTENSIONS`), in the folder or below it. Hidden files and files
that systems create are ignored. Links are followed; a folder that is reached twice counts once, under its own name
rather than that of a link. What looks like an image or may hold some and cannot be reached is left out and named.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from memtok.data.images import IMAGE_EXTENSIONS, LeftOut, shown
from memtok.errors import MemtokError
from memtok.regular import special_kind

# What file managers, network storage and operating systems leave in folders; all of it in small letters. Names that
# begin with a dot (.DS_Store, .ipynb_checkpoints, ._name.jpg) are ignored too.
# fmt: off
CLUTTER = frozenset({
    "@eadir", "#recycle", "@recycle", "@recently-snapshot", "#snapshot", "@tmp",  # Synology, QNAP
    "__macosx", "icon\r", "network trash folder", "temporary items",  # macOS
    "$recycle.bin", "recycler", "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini",  # Windows
    "lost+found", "__pycache__",
})
# fmt: on


@dataclass
class Inside:
    """The content of a folder: folders and images by name, and what was left out."""

    folders: list[Path] = field(default_factory=list)
    images: list[Path] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def is_clutter(name: str) -> bool:
    """Whether a file or folder of this name is neither an image nor a class."""
    return name.startswith(".") or name.casefold() in CLUTTER


def look_into(folder: Path) -> Inside:
    """The folders and images directly in `folder`. Raises OSError if it cannot be read."""
    inside = Inside()
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if is_clutter(entry.name):
                continue
            ending = os.path.splitext(entry.name)[1].lower()
            wanted = ending in IMAGE_EXTENSIONS or (not ending and entry.is_symlink())  # which may lead to a folder
            try:
                if entry.is_dir():
                    inside.folders.append(Path(entry.path))
                elif ending in IMAGE_EXTENSIONS and entry.is_file():
                    inside.images.append(Path(entry.path))
                elif wanted and (kind := _special_kind(entry.path)):
                    inside.left_out.append(LeftOut(str(Path(entry.path)), kind))
            except OSError as error:  # a link to itself, or without permission
                if wanted:
                    inside.left_out.append(LeftOut(str(Path(entry.path)), _system_reason(error)))
    return inside


def walk(folder: Path) -> Iterator[Inside]:
    """The content of `folder` and of each folder below it, each once. A folder that cannot be read is left out."""
    # A link to a parent folder would add the images of other classes.
    seen = {_identity(above) for above in (*folder.absolute().parents, *folder.resolve().parents)}
    waiting, linked = [folder], list[Path]()
    while waiting or linked:
        place = waiting.pop() if waiting else linked.pop(0)
        try:
            here = _identity(place)
            if here in seen:
                continue
            seen.add(here)
            inside = look_into(place)
        except OSError as error:
            yield Inside(left_out=[LeftOut(str(place), f"folder: {_system_reason(error)}")])
            continue
        for child in inside.folders:
            (linked if child.is_symlink() else waiting).append(child)
        linked.sort()
        yield inside


def images_below(folder: Path) -> tuple[list[Path], list[LeftOut]]:
    """All images in and below `folder`, and what was left out, both sorted."""
    found = list(walk(folder))
    images = [image for inside in found for image in inside.images]
    return sorted(images), sorted(one for inside in found for one in inside.left_out)


def find_images(paths: Iterable[str | Path]) -> tuple[list[str], list[LeftOut]]:
    """The files among `paths`, and the images in and below the folders, sorted, each once; and what was left out.

    A file that is named is read whatever its extension. Raises MemtokError for a missing path, for a folder without
    images, and for no paths.
    """
    found: dict[str, None] = {}
    left_out: dict[LeftOut, None] = {}
    for path in map(Path, paths):
        if path.is_dir():
            inside, lost = images_below(path)
            left_out |= dict.fromkeys(lost)
            if not inside:
                why = f" ({summary(lost)})" if lost else ""
                raise MemtokError(
                    f"expected images in the folder {shown(path)}, found none{why}; name another", argument="images"
                )
            found |= dict.fromkeys(map(str, inside))
        elif os.path.lexists(path):  # a broken link fails when it is read
            found[str(path)] = None
        else:
            raise MemtokError(
                f"expected an image or a folder of images at {shown(path)}, found nothing; check the path",
                argument="images",
            )
    if not found:
        raise MemtokError("expected images, found no path; name files or folders", argument="images")
    return list(found), list(left_out)


def holds_images(folder: Path) -> bool:
    """Whether there is an image in or below `folder`."""
    return any(inside.images for inside in walk(folder))


def summary(left_out: Sequence[LeftOut], most: int = 3) -> str:
    """`left out: 3 (2 broken link, 1 permission denied), the first one PATH`."""
    counted = Counter(one.reason for one in left_out).most_common()
    reasons = [f"{count} {reason}" for reason, count in counted[:most]]
    if len(counted) > most:
        reasons.append(f"{sum(count for _, count in counted[most:])} for other reasons")
    return f"left out: {len(left_out)} ({', '.join(reasons)}), the first one {shown(left_out[0].path)}"


def _special_kind(path: str) -> str:
    """The kind of a `path` that is neither a file nor a folder, "" if it is one."""
    try:
        return special_kind(path)
    except FileNotFoundError:
        return "broken link"


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _system_reason(error: OSError) -> str:
    return (error.strerror or str(error) or type(error).__name__).lower()
