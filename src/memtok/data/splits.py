"""Splits: which images train, validate and test. Drawn per class from a seed; written to a file for folders.

Nothing here uses a global random generator, and nothing depends on the order in which a file system lists files or on
the version of numpy: orders come from SHA-256 over seed and name, or from the raw output of PCG64. Training and
evaluation draw the same split, with a seed of its own that is not the seed of the training.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memtok.data.images import shown
from memtok.errors import MemtokError, one_line
from memtok.files import atomic_write

SPLIT_FILE = "memtok-split.json"
SPLIT_FILE_80_20 = "memtok-split-80-20.json"
FORMAT = "memtok-split"
VERSION = 1

TRAIN = "train"
VALIDATION = "validation"
TEST = "test"

OFFICIAL, EIGHTY_TWENTY = "official", "80-20"
SPLITS = (OFFICIAL, EIGHTY_TWENTY)
"""What can be asked for: the published training and test parts, or a drawn test part of 20 % of all images."""

TEST_FRACTION = 0.2

logger = logging.getLogger("memtok")

Indices = NDArray[np.int64]


def shuffled(count: int, *key: int) -> Indices:
    """A permutation of 0 .. count-1 drawn from `key` (numbers >= 0) alone, the same in every version of numpy."""
    # numpy promises the raw output of a bit generator for ever, that of Generator.permutation it does not (NEP 19).
    raw = np.random.PCG64(np.random.SeedSequence(key)).random_raw(count)
    return np.argsort(raw, kind="stable").astype(np.int64)


def check_seed(seed: int) -> int:
    """Returns `seed`, or raises MemtokError if it is not a whole number from 0 to 2**63 - 1."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**63:
        raise MemtokError(
            f"expected a seed that is a whole number from 0 to 2**63 - 1, found {seed!r}; choose another",
            argument="seed",
        )
    return int(seed)


def check_fraction(fraction: float) -> float:
    """Returns `fraction`, or raises MemtokError if it is not between 0 and 1, both excluded."""
    if not 0 < fraction < 1:
        raise MemtokError(
            f"expected a validation fraction between 0 and 1, found {fraction!r}; 0.2 sets one image in five aside",
            argument="validation_fraction",
        )
    return float(fraction)


def validation_count(images: int, fraction: float) -> int:
    """How many of a class's `images` validate: the fraction, but at least one in each part where there are two."""
    if images < 2:
        return 0
    return min(max(round(images * fraction), 1), images - 1)


def draw_validation(
    names: Sequence[str],
    labels: Sequence[int] | Indices,
    *,
    fraction: float,
    seed: int,
    assigned: Mapping[str, str] | None = None,
) -> set[str]:
    """The names of the validation part, drawn class by class.

    `assigned` {name: "train" | "validation"} stays as it is; of the other names so many are drawn that each class
    reaches its share. The draw depends on the seed and the names alone. A class of one image trains.
    """
    numbers = np.asarray(labels, dtype=np.int64)
    parts = [assigned.get(name) for name in names] if assigned else [None] * len(names)
    free = np.array([part is None for part in parts], dtype=bool)
    held = np.array([part == VALIDATION for part in parts], dtype=bool)
    first, second = _ranks(seed, names)
    # Class by class; in each the free ones first, by rank.
    order = np.lexsort((second, first, ~free, numbers))
    bounds = [*np.flatnonzero(np.diff(numbers[order], prepend=-1)), len(order)]
    chosen = [*np.flatnonzero(held)]
    for start, end in pairwise(bounds):
        images = order[start:end]
        held_here, free_here = int(held[images].sum()), int(free[images].sum())
        trained = len(images) - held_here - free_here
        wanted = validation_count(len(images), fraction) - held_here
        wanted = max(0, min(wanted, free_here - (trained == 0)))
        chosen += list(images[:wanted])
    return {names[position] for position in chosen}


def stratified_order(labels: Indices, seed: int) -> Indices:
    """Positions in an order of which every beginning is stratified: classes in proportion, each at least once.

    Member j of a class with c members is placed at (j + 1/2) / c, as in Webster's method of apportionment;
    first members come first. The members of a class are in random order, drawn from `seed`.
    """
    count = len(labels)
    order = shuffled(count, seed, 1)
    by_class = order[np.argsort(labels[order], kind="stable")]  # class by class, shuffled inside
    _, starts, sizes = np.unique(labels[by_class], return_index=True, return_counts=True)
    number = np.arange(count) - np.repeat(starts, sizes)  # j
    place = (number + 0.5) / np.repeat(sizes, sizes)
    tie = np.empty(count, dtype=np.int64)
    tie[order] = np.arange(count)
    return by_class[np.lexsort((tie[by_class], place, number > 0))]


def digest(parts: Mapping[str, Iterable[str]]) -> str:
    """`sha256:` over the sorted lines "part, tab, identity": the same for the same images in the same parts."""
    lines = sorted(f"{part}\t{identity}\n" for part, identities in parts.items() for identity in identities)
    return f"sha256:{hashlib.sha256(_bytes(''.join(lines))).hexdigest()}"


def draw_parts(
    names: Mapping[str, int],
    *,
    fraction: float,
    seed: int,
    test_fraction: float | None = None,
    assigned: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """{name: "train" | "validation" | "test"} of the images `names` {name: label}, drawn as by `draw_validation`.

    With a `test_fraction` the test part is drawn first, and validation from the rest. `assigned` stays as it is.
    """
    assigned = assigned or {}
    test: set[str] = set()
    if test_fraction is not None:
        held = {name: VALIDATION if part == TEST else TRAIN for name, part in assigned.items()}
        test = draw_validation(list(names), list(names.values()), fraction=test_fraction, seed=seed, assigned=held)
    rest = {name: label for name, label in names.items() if name not in test}
    validation = draw_validation(list(rest), list(rest.values()), fraction=fraction, seed=seed, assigned=assigned)
    return {name: TEST if name in test else VALIDATION if name in validation else TRAIN for name in names}


@dataclass(frozen=True)
class FolderSplit:
    """The split of a folder of images as its file holds it: {name: part}, with its seed and fraction."""

    seed: int
    fraction: float
    parts: Mapping[str, str]


def written_split(
    root: Path,
    fallback: Path,
    names: Mapping[str, int],
    *,
    listed: Iterable[str],
    seed: int | None,
    fraction: float | None,
    default_fraction: float,
    test_fraction: float | None = None,
) -> FolderSplit:
    """The split of the images `names` {name: label} under `root`: as written in its file, with new images drawn.

    The file is `root`/memtok-split.json, or in the folder `fallback` where `root` cannot be written. With a
    `test_fraction`, a test part is drawn too, and the file is memtok-split-80-20.json. Names that are no longer among
    `listed` are dropped; a name that is listed but not in `names` (unreadable today) keeps its part. `seed` and
    `fraction` of None mean "as written", else 0 and `default_fraction`; others than the written ones are an error,
    since training and evaluation would then see different splits.
    """
    home = root / (SPLIT_FILE if test_fraction is None else SPLIT_FILE_80_20)
    key = hashlib.sha256(_bytes(str(root.resolve()))).hexdigest()[:24]
    away = fallback / (f"{key}.json" if test_fraction is None else f"{key}-80-20.json")
    found = [(path, _read(path)) for path in (home, away) if path.is_file()]
    if found:
        path, first = found[0]
        _check_asked(path, first, seed, fraction)
        seed, fraction = first.seed, first.fraction
    else:
        seed = check_seed(0 if seed is None else seed)
        fraction = check_fraction(default_fraction if fraction is None else fraction)
    before: dict[str, str] = {}
    for _, split in reversed(found):  # the file beside the images takes precedence
        if (split.seed, split.fraction) == (seed, fraction):
            before.update(split.parts)
    present = set(listed)
    kept = {name: part for name, part in before.items() if name in present}
    drawn = draw_parts(names, fraction=fraction, seed=seed, test_fraction=test_fraction, assigned=kept)
    parts = dict(sorted({**kept, **drawn}.items()))
    if parts != before:
        _write(home, away, FolderSplit(seed, fraction, parts))
    return FolderSplit(seed, fraction, drawn)


def _ranks(seed: int, names: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The first 16 bytes of SHA-256 over seed and name, of each name, as two numbers: the order of the draw."""
    seeded = hashlib.sha256(_bytes(f"{seed}\t"))

    def rank(name: str) -> bytes:
        own = seeded.copy()
        own.update(_bytes(name))
        return own.digest()[:16]

    ranks = np.frombuffer(b"".join(map(rank, names)), dtype=">u8").reshape(-1, 2).astype(np.uint64)
    return ranks[:, 0], ranks[:, 1]


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _check_asked(path: Path, split: FolderSplit, seed: int | None, fraction: float | None) -> None:
    """Raises MemtokError if another split is asked for than the one that is written."""
    for argument, asked, written in (("seed", seed, split.seed), ("validation_fraction", fraction, split.fraction)):
        if asked is not None and asked != written:
            raise MemtokError(
                f"expected {argument.replace('_', ' ')} {written}, with which the split in {shown(path)} was drawn, "
                f"found {asked}; leave it out to use that split, or delete the file to draw a new one",
                argument=argument,
            )


def _read(path: Path) -> FolderSplit:
    try:
        return _parse(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise MemtokError(
            f"expected a split written by memtok in {shown(path)}, found something else "
            f"({one_line(error)}); delete it to draw a new split"
        ) from error


def _parse(content: dict[str, Any]) -> FolderSplit:
    if content["format"] != FORMAT or content["version"] != VERSION:
        raise ValueError(f"format {content['format']!r}, version {content['version']!r}")
    parts: dict[str, str] = {}
    for part in (TRAIN, VALIDATION, *([TEST] if TEST in content else [])):
        for name in content[part]:
            if not isinstance(name, str) or name in parts:
                raise ValueError(f"{name!r} stands in it twice" if isinstance(name, str) else f"a name {name!r}")
            parts[name] = part
    return FolderSplit(check_seed(content["seed"]), check_fraction(content["fraction"]), parts)


def _write(home: Path, away: Path, split: FolderSplit) -> None:
    """Writes the split beside the images, else into the user's cache; logs a warning where neither can be written."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "seed": split.seed,
        "fraction": split.fraction,
        TRAIN: [name for name, part in split.parts.items() if part == TRAIN],
        VALIDATION: [name for name, part in split.parts.items() if part == VALIDATION],
    }
    if TEST in split.parts.values():
        content[TEST] = [name for name, part in split.parts.items() if part == TEST]
    # ASCII, so that a file name with bytes that are not UTF-8 survives too.
    text = json.dumps(content, indent=1) + "\n"
    reason = ""
    for path in (home, away):
        try:
            with atomic_write(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
            return
        except (MemtokError, OSError) as error:
            reason = str(error)
    logger.warning("the split is not written down, so it may change when images are added: %s", reason)
