"""Image folders of other kinds than photographs of objects, made from Debian packages at need.

    python -m memtok_experiments.beyond.sets DIR [NAME ...]

writes DIR/NAME/train/CLASS/*.png and DIR/NAME/test/CLASS/*.png for each of `SETS`, and leaves folders that are there
as they are. Packages come from `apt-get download` and are unpacked by `dpkg -x` under DIR/packages; neither needs root
nor installs anything. The pictures follow from the packages and a fixed seed.

letters      200 typefaces as classes, three random letters each: many classes that differ in small things
symbols      icons by context, such as apps and places: coloured, centred, few pixels
drawings     clip art by topic: fine-grained and unequal, 20 to some 300 pictures per class
textures     200 pictures as classes, random parts of each: texture without alignment
photographs  the photographs that scikit-image ships as classes, random parts of each

Where a class is one picture, training and test parts come from different halves of it.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from memtok.errors import MemtokError

SEED = 0
CLASSES = 200  # of letters and textures
TRAIN, TEST = 25, 10  # images of a class that is drawn or cut
TEST_SHARE = 0.25  # of the pictures of a class that is collected
LEAST = 20  # pictures of a topic
SIDE = 96  # pixels
LEAST_SPREAD = 15  # of the values of a texture, from 0 to 255
LARGEST = 224  # pixels of a drawing's longer side
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
PHOTOGRAPHS = (
    *("astronaut", "brick", "camera", "chelsea", "coffee", "coins", "gravel", "grass", "hubble_deep_field", "ihc"),
    *("moon", "motorcycle_left", "page", "retina", "rocket", "text"),
)

Pictures = Iterator[tuple[str, str, Image.Image]]
"""Part (train or test), class, picture."""


@dataclass(frozen=True)
class Made:
    """A folder to make: from which packages, and how from the folder that they are unpacked to."""

    packages: tuple[str, ...]
    pictures: Callable[[Path], Pictures]


def letters(unpacked: Path) -> Pictures:
    """Three random letters in each of some typefaces, at random places and sizes, dark on light or light on dark."""
    faces = {path.stem: path for path in sorted(unpacked.rglob("*.[to]tf")) if has_letters(path)}
    for name in spread(sorted(faces), CLASSES):
        draw_from = generator(name)
        for index in range(TRAIN + TEST):
            yield "train" if index < TRAIN else "test", name, lettering(faces[name], draw_from)


def has_letters(path: Path) -> bool:
    """Whether a typeface draws all LETTERS, no two alike."""
    try:
        font = ImageFont.truetype(str(path), 32)
        drawn = [bytes(font.getmask(letter)) for letter in LETTERS[:26]]
    except OSError:
        return False
    return len({*drawn, b""}) == 27


def lettering(path: Path, draw_from: np.random.Generator) -> Image.Image:
    """(SIDE, SIDE) grey picture of three letters."""
    word = "".join(LETTERS[index] for index in draw_from.integers(0, len(LETTERS), 3))
    font = ImageFont.truetype(str(path), 64)
    left, top, right, bottom = font.getbbox(word)
    scale = draw_from.uniform(0.65, 0.95) * SIDE / max(right - left, bottom - top, 1)
    font = ImageFont.truetype(str(path), max(8, int(64 * scale)))
    left, top, right, bottom = font.getbbox(word)
    x = draw_from.uniform(0, max(1, SIDE - (right - left))) - left
    y = draw_from.uniform(0, max(1, SIDE - (bottom - top))) - top
    paper, ink = (255, 20) if draw_from.random() < 0.5 else (30, 240)
    picture = Image.new("L", (SIDE, SIDE), paper)
    ImageDraw.Draw(picture).text((x, y), word, font=font, fill=ink)
    return picture


def symbols(unpacked: Path) -> Pictures:
    """Icons of 64 pixels, their folders as classes."""
    (root,) = unpacked.rglob("base/64x64")
    yield from collected({folder.name: sorted(folder.glob("*.png")) for folder in sorted(root.iterdir())})


def drawings(unpacked: Path) -> Pictures:
    """Clip art; the folders with LEAST pictures of their own as classes."""
    (root,) = unpacked.rglob("openclipart/png")
    folders = sorted({path.parent for path in root.rglob("*.png")})
    topics = {"-".join(folder.relative_to(root).parts): sorted(folder.glob("*.png")) for folder in folders}
    yield from collected({name: paths for name, paths in topics.items() if len(paths) >= LEAST})


def textures(unpacked: Path) -> Pictures:
    """Random parts of the pictures in a game's archive of textures; flat ones are left out."""
    (archive,) = unpacked.rglob("*-textures.pk3")
    with zipfile.ZipFile(archive) as packed:
        files: dict[str, str] = {}
        for name in sorted(packed.namelist()):
            picture = readable(packed.read(name)) if name.lower().endswith((".jpg", ".tga")) else None
            if picture is not None and min(picture.size) >= 2 * SIDE and np.asarray(picture).std() > LEAST_SPREAD:
                files[name.rsplit(".", 1)[0].replace("/", "-")] = name
        for label in spread(sorted(files), CLASSES):
            chosen = readable(packed.read(files[label]))
            assert chosen is not None
            yield from parts_of(label, chosen, TRAIN, TEST)


def photographs(unpacked: Path) -> Pictures:
    """Random parts of the pictures in skimage/data."""
    for path in sorted(path for path in unpacked.rglob("skimage/data/*") if path.stem in PHOTOGRAPHS):
        picture = readable(path.read_bytes())
        if picture is not None:
            yield from parts_of(path.stem, picture, 4 * TRAIN, 4 * TEST)


SETS = {
    "letters": Made(("fonts-aenigma", "fonts-lato", "fonts-dejavu-core", "fonts-freefont-ttf"), letters),
    "symbols": Made(("oxygen-icon-theme",), symbols),
    "drawings": Made(("openclipart-png",), drawings),
    "textures": Made(("openarena-081-textures",), textures),
    "photographs": Made(("python3-skimage",), photographs),
}


def parts_of(name: str, picture: Image.Image, train: int, test: int) -> Pictures:
    """Random squares of the left half of a picture for training, and of the right half for testing."""
    draw_from, half = generator(name), picture.width // 2
    for index in range(train + test):
        left, width = (0, half) if index < train else (half, picture.width - half)
        side = int(min(width, picture.height) * draw_from.uniform(0.5, 0.9))
        x, y = (int(draw_from.integers(0, free + 1)) for free in (width - side, picture.height - side))
        box = left + x, y, left + x + side, y + side
        cut = picture.crop(box).resize((SIDE, SIDE), Image.Resampling.BICUBIC)  # with box= it looks beyond the box
        yield "train" if index < train else "test", name, cut


def collected(classes: dict[str, Sequence[Path]]) -> Pictures:
    """Pictures of classes, each content once; some of every class for testing. Broken links are left out."""
    seen: set[str] = set()
    for name, paths in classes.items():
        own = []
        for path in paths:
            content = path.read_bytes() if path.exists() else b""
            digest, picture = hashlib.sha256(content).hexdigest(), readable(content)
            if picture is not None and digest not in seen:
                seen.add(digest)
                own.append(picture)
        order = generator(name).permutation(len(own))
        tested = {int(place) for place in order[: round(TEST_SHARE * len(own))]}
        for place, picture in enumerate(own if len(own) >= LEAST else []):
            picture.thumbnail((LARGEST, LARGEST))
            yield "test" if place in tested else "train", name, picture


def readable(content: bytes) -> Image.Image | None:
    """The picture in RGB, what is transparent in white; None if it cannot be read, or is huge."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(content)).convert("RGBA")
    except (OSError, ValueError, Image.DecompressionBombWarning, Image.DecompressionBombError):
        return None
    paper = Image.new("RGBA", picture.size, "white")
    paper.alpha_composite(picture)
    return paper.convert("RGB")


def spread(names: Sequence[str], count: int) -> list[str]:
    """Up to `count` names, evenly spread over all."""
    places = np.linspace(0, len(names) - 1, min(count, len(names))).round()
    return [names[int(place)] for place in places]


def generator(name: str) -> np.random.Generator:
    """Random numbers of one class, whatever the other classes are."""
    return np.random.default_rng([SEED, *name.encode()])


def fetch(packages: Sequence[str], folder: Path) -> Path:
    """The folder that these Debian packages are unpacked to, downloaded where they are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for package in packages:
        place = folder / package
        if place.is_dir():
            continue
        try:
            subprocess.run(["apt-get", "download", package], cwd=folder, check=True, capture_output=True)
            (archive,) = folder.glob(f"{package}_*.deb")
            subprocess.run(["dpkg", "-x", archive.name, f"{package}.part"], cwd=folder, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError, ValueError) as error:
            raise MemtokError(
                f"expected the Debian package {package} from apt-get download, found: {error}; run apt-get update, or "
                f"unpack it to {place}"
            ) from error
        (folder / f"{package}.part").rename(place)
        archive.unlink()
    return folder


def make(name: str, out: Path) -> Path:
    """Makes one of `SETS` in `out`, unless it is there, and returns its folder."""
    folder, made = out / name, SETS[name]
    if folder.exists():
        return folder
    unpacked = fetch(made.packages, out / "packages" / name)
    half_made = out / f"{name}.part"
    shutil.rmtree(half_made, ignore_errors=True)  # left by a kill
    counts: Counter[tuple[str, str]] = Counter()
    for part, label, picture in made.pictures(unpacked):
        counts[part, label] += 1
        place = half_made / part / label
        place.mkdir(parents=True, exist_ok=True)
        picture.save(place / f"{counts[part, label]:04}.png")
    half_made.rename(folder)
    return folder


def main(words: Sequence[str]) -> int:
    """DIR and names, all of `SETS` without any."""
    unknown = [name for name in words[1:] if name not in SETS]
    if not words or unknown:
        print(__doc__, file=sys.stderr)
        return 2
    for name in words[1:] or SETS:
        try:
            folder = make(name, Path(words[0]))
        except MemtokError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
        for part in ("train", "test"):
            classes = list((folder / part).iterdir())
            images = sum(1 for path in classes for _ in path.iterdir())
            print(f"{folder / part}: {images:,} images in {len(classes)} classes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
