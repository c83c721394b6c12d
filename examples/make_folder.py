"""Writes handwritten digits as a folder of images, one folder per class: `even` and `odd`.

    python examples/make_folder.py FOLDER [PART [IMAGES]]

It stands in for your own folder. The digits come with memtok; PART is train (the default), validation or test.
"""

from __future__ import annotations

import sys
from pathlib import Path

import memtok


def make_folder(folder: str | Path, part: str = "train", images: int = 600) -> Path:
    """Writes `images` PNG files of one part of the digits below `folder`/even and `folder`/odd; returns `folder`."""
    folder = Path(folder)
    digits = getattr(memtok.open_data("digits"), part).take(images)
    for index in range(len(digits)):
        image, label = digits[index]
        path = folder / ("odd" if label % 2 else "even") / f"{index:04}-digit-{label}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return folder


if __name__ == "__main__":
    folder, part, images = (*sys.argv[1:], *("photos", "train", "600")[len(sys.argv) - 1 :])
    print(make_folder(folder, part, int(images)))
