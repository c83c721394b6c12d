"""What happens to a picture before the model sees it. It belongs to the weights and is stored with every task.

Sizes are (height, width) in pixels. The steps, in this order: resize, centre crop, scale to [0, 1], subtract `mean`
and divide by `std` per channel (red, green, blue). `position_resize` is no step on the picture: it says how the
position embeddings of the checkpoint are resized when `image_size` is not the size that they were trained for.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from memtok.errors import Argument, MemtokError

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
POSITION_RESIZES = ("timm", "transformers")


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How pictures become the model's input.

    image_size: (height, width) that the model receives.
    resize: a number: the shorter side becomes this, the proportions stay; a pair: exactly this (height, width).
    crop: cut `image_size` out of the centre after the resize. Without it, `resize` is `image_size`.
    interpolation: "nearest", "bilinear", "bicubic" or "lanczos", each as Pillow does it.
    mean, std: per channel, for pixels in [0, 1].
    position_resize: "timm" (bicubic, antialiased) or "transformers" (bicubic, not antialiased).
    pixel_range: of images with more than 8 bits, the values that become black and white: (0, 4095) for 12 bits. Without
        it 16 bits are taken as such.

    Raises MemtokError for values outside these.
    """

    image_size: tuple[int, int]
    resize: tuple[int, int] | int
    crop: bool
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    position_resize: str
    pixel_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", size_pair(self.image_size, f"{Argument('image_size')}"))
        if not isinstance(self.resize, int):
            object.__setattr__(self, "resize", size_pair(self.resize, f"{Argument('resize')}"))
        if isinstance(self.resize, bool) or (isinstance(self.resize, int) and self.resize < 1):
            raise MemtokError(
                f"expected resize as pixels, 1 or more, found {self.resize!r}; give a whole number", argument="resize"
            )
        if not isinstance(self.crop, bool):
            raise MemtokError(f"expected crop as true or false, found {self.crop!r}; give one of them", argument="crop")
        if self.interpolation not in INTERPOLATIONS:
            raise MemtokError(
                f"expected an interpolation out of {', '.join(INTERPOLATIONS)}, found {self.interpolation!r}; take one",
                argument="interpolation",
            )
        if self.position_resize not in POSITION_RESIZES:
            raise MemtokError(
                f"expected position_resize out of {', '.join(POSITION_RESIZES)}, found {self.position_resize!r}; "
                "take one",
                argument="position_resize",
            )
        object.__setattr__(self, "mean", _channels(self.mean, "mean"))
        object.__setattr__(self, "std", _channels(self.std, "std"))
        if min(self.std) <= 0:
            raise MemtokError(f"expected a std above 0 in each channel, found {self.std}; correct it", argument="std")
        if self.pixel_range is not None:
            object.__setattr__(self, "pixel_range", check_range(self.pixel_range))
        self._check_crop()

    def _check_crop(self) -> None:
        height, width = self.image_size
        available = (self.resize, self.resize) if isinstance(self.resize, int) else self.resize
        if not self.crop and self.resize != self.image_size:
            raise MemtokError(
                f"expected resize to be the image size {self.image_size} where nothing is cropped, found "
                f"{self.resize}; set crop",
                argument="resize",
            )
        if available[0] < height or available[1] < width:
            raise MemtokError(
                f"expected a resize no smaller than the crop {self.image_size}, found {self.resize}; make it larger",
                argument="resize",
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` reads it back. Without a pixel range it is as versions wrote it that knew none."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        if self.pixel_range is None:
            del values["pixel_range"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The reverse of `to_dict`. MemtokError for a missing or unknown key and for values that make no sense."""
        if not isinstance(values, Mapping):
            raise MemtokError(f"expected preprocessing as a table of settings, found {values!r}; write it again")
        names = {field.name for field in fields(cls)}
        for problem, keys in (("missing", names - values.keys() - {"pixel_range"}), ("unknown", values.keys() - names)):
            if keys:
                raise MemtokError(
                    f"expected the preprocessing settings {', '.join(sorted(names))}, found {problem}: "
                    f"{', '.join(sorted(map(str, keys)))}; correct them"
                )
        return cls(**dict(values))

    def difference(self, other: Preprocessing) -> str:
        """Where the two differ, for people: "mean (0.5, 0.5, 0.5) and (0.4, 0.4, 0.4)"; "" when they are equal."""
        pairs = ((field.name, getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return ", ".join(f"{name} {mine} and {theirs}" for name, mine, theirs in pairs if mine != theirs)

    def with_image_size(self, image_size: int | tuple[int, int]) -> Preprocessing:
        """The same for another image size: the resize keeps its proportion to the crop (256/224 stays 256/224)."""
        new = size_pair(image_size, f"{Argument('image_size')}")
        if new == self.image_size:
            return self
        ratios = (new[0] / self.image_size[0], new[1] / self.image_size[1])
        if not self.crop:
            return replace(self, image_size=new, resize=new)
        if isinstance(self.resize, int):
            # The larger ratio, so that a square picture still covers the crop when the proportions change.
            return replace(self, image_size=new, resize=max(round(self.resize * max(ratios)), *new))
        height, width = (
            max(round(old * ratio), side) for old, ratio, side in zip(self.resize, ratios, new, strict=True)
        )
        return replace(self, image_size=new, resize=(height, width))


def size_pair(value: Any, name: str) -> tuple[int, int]:
    """(height, width) of a size given as one number or two; MemtokError, with `name`, unless whole and above 0."""
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    whole = all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in pair)
    if len(pair) != 2 or not whole:
        raise MemtokError(
            f"expected {name} as one number of pixels or (height, width), found {value!r}; give whole numbers above 0"
        )
    return pair[0], pair[1]


def check_range(value: Any) -> tuple[float, float]:
    """A pixel range as (black, white); MemtokError unless it is two finite numbers, the smaller one first."""
    numbers = tuple(value) if isinstance(value, tuple | list) else ()
    usable = all(is_finite(one) and not isinstance(one, bool) for one in numbers)
    if len(numbers) != 2 or not usable or numbers[0] >= numbers[1]:
        raise MemtokError(
            f"expected {Argument('pixel_range')} as two numbers, the values of black and of white, found {value!r}; "
            "give for example 0 and 4095"
        )
    return float(numbers[0]), float(numbers[1])


def _channels(value: Any, name: str) -> tuple[float, float, float]:
    numbers = tuple(value) if isinstance(value, tuple | list) else ()
    usable = all(map(is_finite, numbers))
    if len(numbers) != 3 or not usable:
        raise MemtokError(f"expected {Argument(name)} as three numbers, one per colour, found {value!r}; correct it")
    red, green, blue = (float(item) for item in numbers)
    return red, green, blue


def is_finite(value: Any) -> bool:
    """Whether it is a number that a float can hold; JSON has whole numbers of any length."""
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max
