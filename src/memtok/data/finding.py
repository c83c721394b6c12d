"""The images in a folder, found in one way for all commands.

An image is a file that ends as images do (`IMAGE_EXTENSIONS`), in the folder or below it. Hidden files and what systems
leave behind are no images. Links are followed; a folder that is reached twice counts once, under its own name rather
than that of a link. What looks like an image or may hold some and cannot be reached is left out and named.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from memtok.data.images import IMAGE_EXTENSIONS, LeftOut, shown
from memtok.regular import special_kind

# What file managers, network storage and operating systems leave in folders; all of it in small letters. What begins
# with a dot (.DS_Store, .ipynb_checkpoints, ._name.jpg) is left behind too.
# fmt: off
LEAVINGS = frozenset({
    "@eadir", "#recycle", "@recycle", "@recently-snapshot", "#snapshot", "@tmp",  # Synology, QNAP
    "__macosx", "icon\r", "network trash folder", "temporary items",  # macOS
    "$recycle.bin", "recycler", "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini",  # Windows
    "lost+found", "__pycache__",
})
# fmt: on


@dataclass
class Inside:
    """What lies directly in a folder: folders and images by name, and {path: reason} of what was left out."""

    folders: list[Path] = field(default_factory=list)
    images: list[Path] = field(default_factory=list)
    left_out: dict[Path, str] = field(default_factory=dict)


def is_leaving(name: str) -> bool:
    """Whether a file or folder of this name is neither an image nor a class."""
    return name.startswith(".") or name.casefold() in LEAVINGS


def look_into(folder: Path) -> Inside:
    """The folders and images directly in `folder`. Raises OSError if it cannot be read."""
    inside = Inside()
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if is_leaving(entry.name):
                continue
            ending = os.path.splitext(entry.name)[1].lower()
            wanted = ending in IMAGE_EXTENSIONS or (not ending and entry.is_symlink())  # which may be one to a folder
            try:
                if entry.is_dir():
                    inside.folders.append(Path(entry.path))
                elif ending in IMAGE_EXTENSIONS and entry.is_file():
                    inside.images.append(Path(entry.path))
                elif wanted:
                    inside.left_out |= _no_file(entry)
            except OSError as error:  # a link to itself, or to what may not be read
                if wanted:
                    inside.left_out[Path(entry.path)] = _system_reason(error)
    return inside


def walk(folder: Path) -> Iterator[Inside]:
    """What lies in `folder` and in each folder below it, each once. A folder that cannot be read is left out."""
    # A link to a folder above would bring in what lies beside `folder`: the images of other classes.
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
            yield Inside(left_out={place: f"folder: {_system_reason(error)}"})
            continue
        for child in inside.folders:
            (linked if child.is_symlink() else waiting).append(child)
        linked.sort()
        yield inside


def images_below(folder: Path) -> tuple[list[Path], dict[Path, str]]:
    """All images in and below `folder`, sorted, and {path: reason} of what was left out."""
    images: list[Path] = []
    left_out: dict[Path, str] = {}
    for inside in walk(folder):
        images += inside.images
        left_out |= inside.left_out
    return sorted(images), dict(sorted(left_out.items()))


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


def _no_file(entry: os.DirEntry[str]) -> dict[Path, str]:
    """{path: reason} of an entry that is no folder and can be read no more than a file; {} for a file."""
    try:
        kind = special_kind(entry.path)
    except FileNotFoundError:
        kind = "broken link"
    return {Path(entry.path): kind} if kind else {}


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _system_reason(error: OSError) -> str:
    return (error.strerror or str(error) or type(error).__name__).lower()
