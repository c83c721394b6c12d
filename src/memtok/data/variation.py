"""One's own augmentation: a callable that varies training images in the place of memtok's. Brings no torch along."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from memtok.errors import Argument, MemtokError, one_line

SHOWN = 80  # characters of a name in a message


@dataclass(frozen=True)
class Variation:
    """transform: takes a picture, gives one. name: what stands for it in records and in the keys of caches."""

    transform: Callable[[Any], Any]
    name: str


class VariationError(Exception):
    """A transform of the user failed, for the reason that the message says; who knows the image names it."""


def make_variation(transform: Callable[[Any], Any], name: str | None) -> Variation:
    """The variation of a callable, named by what Python shows of it unless told; MemtokError where that tells nothing.

    A function that can be imported is named by where it is, anything else by its repr, as torchvision's transforms are.
    """
    if not callable(transform):
        raise MemtokError(
            f"expected {Argument('transform')} as a callable, found {one_line(transform)}; give a function"
        )
    if name is not None:
        if not (isinstance(name, str) and name.strip() and name.isprintable()):
            raise MemtokError(
                f"expected {Argument('name')} of a transform as printable text, found {name!r}; change it"
            )
        return Variation(transform, name)
    if isinstance(transform, FunctionType):
        found = f"{transform.__module__}.{transform.__qualname__}"
    else:
        found = " ".join(repr(transform).split())
    if " at 0x" in found or "<locals>" in found or "<lambda>" in found or "<function" in found:
        raise MemtokError(
            f"expected a transform whose repr tells it from others, found {one_line(found, SHOWN)}; name it: "
            "data.varied(transform, name=...)",
            argument="transform",
        )
    return Variation(transform, found)
