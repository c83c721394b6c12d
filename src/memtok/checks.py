"""Checks of the values that people give for a task, each with one line that says what is wrong."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence

from memtok.errors import Argument, MemtokError
from memtok.values import Whole


def check_name(name: str) -> str:
    """A task's name: printable, not empty, and not `base`, which names the backbone's own answer."""
    if not isinstance(name, str) or not name.strip() or not name.isprintable() or len(name) > 200:
        raise MemtokError(
            f"expected a printable task name of 1 to 200 characters, found {name!r}; choose another name",
            argument="name",
        )
    if name == "base":
        raise MemtokError(
            "expected a task name other than 'base', which means the backbone's own answer; rename the task",
            argument="name",
        )
    return name


def check_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """Class names in order, at least one, no two alike: what a task has, also one from a file of an earlier version."""
    if isinstance(classes, str) or not isinstance(classes, Sequence) or not all(isinstance(c, str) for c in classes):
        raise MemtokError(
            f"expected class names as a list of strings, found {classes!r}; write ['cat', 'dog']", argument="classes"
        )
    names = tuple(classes)
    for name in names:
        if not name.isascii() and name.encode("utf-8", "replace").decode() != name:
            raise MemtokError(
                f"expected class names that UTF-8 can write, found {name!r}; rename that class", argument="classes"
            )
    if not names:
        raise MemtokError("expected at least one class name, found none; name the classes in order", argument="classes")
    if len(set(names)) != len(names):
        twice = next(item for item, count in Counter(names).items() if count > 1)
        raise MemtokError(f"expected different class names, found {twice!r} twice; rename one", argument="classes")
    return names


def new_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """Class names that are given to something new: as `check_classes`, and each one line of text, `composed`."""
    for name in check_classes(classes):
        if not name.strip():
            raise MemtokError(
                f"expected class names with a letter in them, found {name!r}; rename that class", argument="classes"
            )
        if any(unicodedata.category(char) in ("Cc", "Zl", "Zp") for char in name):
            raise MemtokError(
                f"expected class names without line ends and control characters, found {name!a}; rename that class",
                argument="classes",
            )
    return check_classes([composed(name) for name in classes])


def composed(name: str) -> str:
    """A name in the one form (Unicode's NFC) in which names that look alike are equal, such as the two of café."""
    return unicodedata.normalize("NFC", name)


def check_choice(what: str, value: str, choices: tuple[str, ...]) -> str:
    """`value` if it is one of `choices`."""
    if value not in choices:
        raise MemtokError(f"expected {Argument(what)} {', '.join(choices)}, found {value!r}; choose one of these")
    return value


def check_count(what: str, value: int, least: int) -> None:
    """MemtokError unless `value` is a whole number of at least `least`."""
    Whole(least).check(what, value)
