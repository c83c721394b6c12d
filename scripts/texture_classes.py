"""A folder of many classes: random crops of the pictures in a zip, such as Debian's openarena-081-textures.

Each picture is a class. Its crops for training come from its left half, those for validation and test from its right
half, so that no two parts share a pixel.

    apt-get download openarena-081-textures
    dpkg -x openarena-081-textures_*.deb openarena
    python scripts/texture_classes.py openarena/usr/share/games/openarena/baseoa/pak4-textures.pk3 textures
"""

from __future__ import annotations

import argparse
import io
import random
import zipfile
from pathlib import Path

from PIL import Image

SIDE = 256  # pixels of a picture, at least
CROP, SAVED = 112, 64  # pixels of a crop, before and after it is resized


def main() -> None:
    """Reads the command line and writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zip", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--classes", type=int, default=400)
    parser.add_argument("--train", type=int, default=6)
    parser.add_argument("--validation", type=int, default=4)
    parser.add_argument("--test", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(0)
    with zipfile.ZipFile(options.zip) as archive:
        names = sorted(name for name in archive.namelist() if name.lower().endswith((".jpg", ".tga", ".png")))
        draw.shuffle(names)
        done = 0
        for name in names:
            picture = Image.open(io.BytesIO(archive.read(name))).convert("RGB")
            if done == options.classes or min(picture.size) < SIDE or deviation(picture) < 12:
                continue
            parts = {"train": options.train, "val": options.validation, "test": options.test}
            write(picture, options.out, f"class-{done:04}", parts, draw)
            done += 1
    print(f"{done} classes in {options.out}")


def deviation(picture: Image.Image) -> float:
    """The standard deviation of the brightness, over all pixels."""
    levels = picture.convert("L").resize((64, 64)).histogram()
    total = sum(levels)
    mean = sum(level * count for level, count in enumerate(levels)) / total
    return float((sum((level - mean) ** 2 * count for level, count in enumerate(levels)) / total) ** 0.5)


def write(picture: Image.Image, out: Path, name: str, parts: dict[str, int], draw: random.Random) -> None:
    """The crops of one picture."""
    width, height = picture.size
    for part, count in parts.items():
        folder = out / part / name
        folder.mkdir(parents=True, exist_ok=True)
        low, high = (0, width // 2 - CROP) if part == "train" else (width // 2, width - CROP)
        for number in range(count):
            left, top = draw.randint(low, high), draw.randint(0, height - CROP)
            crop = picture.crop((left, top, left + CROP, top + CROP)).resize((SAVED, SAVED), Image.Resampling.BICUBIC)
            crop.save(folder / f"{number}.png")


if __name__ == "__main__":
    main()
