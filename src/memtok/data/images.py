"""Reading images as people see them, and finding the files that cannot be read.

Whatever a file holds (grey, palette, transparency, CMYK, 16 bit, a camera's rotation), the model receives upright
8-bit RGB. Embedded colour profiles are not applied: the usual pre-trained models were trained without them.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from memtok.data.png import without_text
from memtok.errors import Argument, MemtokError
from memtok.files import atomic_write
from memtok.preprocessing import Preprocessing
from memtok.regular import special_kind

# fmt: off
IMAGE_EXTENSIONS = frozenset({
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".ico", ".j2k", ".jfif", ".jp2", ".jpc",
    ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".mpo", ".pbm", ".pcx", ".pgm", ".png",
    ".pnm", ".ppm", ".qoi", ".sgi", ".tga", ".tif", ".tiff", ".webp", ".xbm", ".xpm",
})
# fmt: on
"""The endings (in lower case) of the files that count as images; others in a class folder are ignored."""

# A file is read by its content, not by its ending. Formats that would start another program (EPS) or that Pillow
# only recognises (HDF5, GRIB, MPEG) are not among these.
# fmt: off
FORMATS = (
    "PNG", "JPEG", "MPO", "GIF", "BMP", "DIB", "TIFF", "WEBP", "AVIF",
    "JPEG2000", "PPM", "ICO", "PCX", "TGA", "SGI", "XBM", "XPM", "QOI",
)
# fmt: on

Progress = Callable[[int, int], None]
"""Called with (images checked, images in all)."""

# EXIF 2.32, tag 0x0112: how the stored pixels have to be turned to stand upright.
ORIENTATION_TAG = 0x0112
ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Two changes within one tick of the file system's clock cannot be told apart by their time. A file that changed
# less than this many seconds before it was checked is therefore checked again the next time.
FRESH_SECONDS = 2.0

DARK = 2**14 - 1
"""A largest value of 16-bit images that tells that they were taken with fewer bits: a quarter of white."""

logger = logging.getLogger("memtok")


class UnreadableImageError(MemtokError):
    """A file that does not hold a readable image. `path` and `reason` say which, and why."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(
            f"expected a readable image, found {shown(path)} ({reason}); mend or remove it, or use "
            f"{Argument('on_bad_image', 'skip')}"
        )
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type[UnreadableImageError], tuple[str, str]]:
        return type(self), (self.path, self.reason)  # by its own arguments, so that it can cross processes


class LeftOut(NamedTuple):
    """Something that could not be read, and why."""

    path: str
    reason: str


def shown(path: str | Path) -> str:
    """A path as it stands in a message: quoted where a line break or an odd byte would garble the line."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


def read_image(path: str | Path) -> Image.Image:
    """Reads the (first) picture of a file: upright, RGB, 8 bit, transparent parts on white.

    Raises UnreadableImageError (a MemtokError) for a file that is missing, cut short, not an image, or that would
    unpack to more than twice `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    with guarded(path):
        return as_rgb(read_upright(path))


def read_upright(path: str | Path) -> Image.Image:
    """The same, but grey of more than 8 bits keeps its values (modes I;16, I, F), for `as_rgb` with their range."""
    with _quiet():
        return _decode(path)


def is_deep(image: Image.Image) -> bool:
    """Whether an image is grey of more than 8 bits."""
    return image.mode.startswith("I") or image.mode == "F"


def as_rgb(image: Image.Image, pixel_range: tuple[float, float] | None = None) -> Image.Image:
    """A PIL image of any mode as RGB, 8 bit; transparency is laid on white. Its rotation is left alone.

    pixel_range: which values become black and white in grey of more than 8 bits; see `Preprocessing`.
    """
    if is_deep(image):
        return _grey_as_rgb(image, pixel_range)
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode in ("La", "RGBa"):  # premultiplied alpha
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


class Looked(NamedTuple):
    """Result of checking images: {name: reason} of those that cannot be read, and the `peak` of all others."""

    unreadable: dict[str, str]
    peak: float | None


def look_at_images(
    root: Path,
    names: Sequence[str],
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
    threads: int | None = None,
) -> Looked:
    """Decodes every file `root/name`; those that fail are named in the order of `names`.

    With `cache`, a JSON file, files whose size and times are those of an earlier check are not decoded again. A cache
    that cannot be read or written is done without.
    """
    known = _read_cache(cache)
    marks = {name: _mark(root / name) for name in names}
    pending = [name for name in names if marks[name] is None or name not in known or known[name][0] != marks[name]]
    seen = {name: known[name][1] for name in names if name in known}
    done = len(names) - len(pending)
    if progress is not None:
        progress(done, len(names))
    started = time.time()
    Image.init()  # registers Pillow's formats once, before the threads would do it side by side
    with _quiet(), ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(pending), 512):  # in parts, or a million files would be a million pending jobs
            part = pending[start : start + 512]
            for name, found in zip(part, pool.map(_look, [root / name for name in part]), strict=True):
                seen[name] = found
                done += 1
                if progress is not None:
                    progress(done, len(names))
    settled = {name: mark for name, mark in marks.items() if mark is not None and _settled(mark, started)}
    if cache is not None:
        fresh = {name: (mark, seen[name]) for name, mark in settled.items()}
        if fresh != known:
            _write_cache(cache, fresh)
    peaks = [seen[name].peak for name in names]
    return Looked(
        {name: seen[name].reason for name in names if seen[name].reason},
        max((peak for peak in peaks if peak is not None), default=None),
    )


def peak(image: Image.Image) -> float | None:
    """The largest value of an image whose values are taken as 16 bits, None for others."""
    if not is_deep(image):
        return None
    low, high = _extremes(_values(image))
    return high if _as_sixteen_bits(image.mode, low, high) else None


def warn_if_dark(highest: float | None, preprocessing: Preprocessing, where: str) -> None:
    """Says so if images with this `peak` become nearly black, because their values are of fewer bits than 16."""
    if highest and highest <= DARK and preprocessing.pixel_range is None:
        top = 2 ** int(highest).bit_length() - 1
        logger.warning(
            "images with more than 8 bits in %s have no value above %d of 65535, so they are nearly black; for values "
            "of 0 to %d, train with --pixel-range 0 %d (pixel_range=(0, %d) in the preprocessing)",
            where, highest, top, top, top,
        )  # fmt: skip


def check_cache_file(folder: Path, root: Path) -> Path:
    """Where the check of the images under `root` is cached: one file in `folder`, named by the resolved path."""
    return folder / f"{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:24]}.json"


@contextmanager
def guarded(path: str | Path) -> Iterator[None]:
    """Around all that is done with one image: whatever goes wrong becomes an UnreadableImageError that names it."""
    try:
        yield
    except MemtokError:
        raise
    except MemoryError as error:
        raise UnreadableImageError(path, "does not fit into memory") from error
    # Pillow's readers raise nearly anything on a broken file: OSError, SyntaxError, ValueError, struct.error,
    # zlib.error, IndexError, DecompressionBombError ...
    except Exception as error:
        raise UnreadableImageError(path, _reason(error)) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Pillow warns of large images and of broken metadata; neither matters for training."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _decode(path: str | Path) -> Image.Image:
    """`read_image` without touching the filters of warnings, which belong to the process, not to the thread."""
    with guarded(path):
        if kind := special_kind(path):  # which may be waited for without end
            raise UnreadableImageError(path, kind)
        try:
            return _upright(path)
        except ValueError:
            content = Path(path).read_bytes()
            slim = without_text(content)
            if slim == content:
                raise
            return _upright(io.BytesIO(slim))


def _upright(source: str | Path | io.BytesIO) -> Image.Image:
    with Image.open(source, formats=_formats()) as image:
        image.load()  # before the orientation: PNG may store it behind the pixels, TIFF is turned on loading
        turn = ORIENTATIONS.get(_orientation(image))
        upright = image.copy() if turn is None else image.transpose(turn)
        return upright if is_deep(upright) else as_rgb(upright)


def _formats() -> list[str]:
    """The formats of FORMATS that this build of Pillow can read."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _reason(error: Exception) -> str:
    """Why Pillow failed, in one line without the path."""
    if isinstance(error, PIL.UnidentifiedImageError):
        return "not an image that Pillow can read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split()) or type(error).__name__


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # broken metadata does not make the pixels unreadable
        return 1


def _values(image: Image.Image) -> NDArray[np.float64]:
    return np.nan_to_num(np.asarray(image).astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)


def _extremes(values: NDArray[np.float64]) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _as_sixteen_bits(mode: str, low: float, high: float) -> bool:
    """Whether grey values are taken as 16 bits. Mode I holds those in most files, floats do if they are that large."""
    return low >= 0 and high <= 65535 and (mode != "F" or high > 255)


def _grey_as_rgb(image: Image.Image, pixel_range: tuple[float, float] | None) -> Image.Image:
    """Grey of more than 8 bits (modes I;16*, I, F) as RGB; 65535 becomes 255, so nothing is clipped.

    Other values: within [0, 1] or [0, 255] as such, else stretched from the smallest to the largest. With a
    `pixel_range` that decides, and what is beyond it is clipped.
    """
    values = _values(image)
    transparent = image.info.get("transparency")
    low, high = _extremes(values)
    if pixel_range is not None:
        low, high = pixel_range
        grey = (values.clip(low, high) - low) * (255 / (high - low))
    elif _as_sixteen_bits(image.mode, low, high):
        grey = values / 257
    elif low >= 0 and high <= 255:
        grey = values * 255 if high <= 1 else values
    else:
        grey = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
    pixels: NDArray[np.uint8] = np.rint(grey).astype(np.uint8)
    if isinstance(transparent, int):  # PNG names one grey value that is to be seen through
        pixels[values == transparent] = 255
    return Image.fromarray(pixels).convert("RGB")


class _Seen(NamedTuple):
    """What is known of one image: why it cannot be read ("" when it can), and its `peak`."""

    reason: str
    peak: float | None


def _look(path: Path) -> _Seen:
    try:
        with guarded(path):
            return _Seen("", peak(_decode(path)))
    except UnreadableImageError as error:
        return _Seen(error.reason, None)


def _mark(path: Path) -> list[int] | None:
    """What changes when the file does: size and times; None for a file that cannot be inspected."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _settled(mark: list[int], now: float) -> bool:
    return max(mark[1:]) / 1e9 < now - FRESH_SECONDS


def _read_cache(cache: Path | None) -> dict[str, tuple[list[int], _Seen]]:
    if cache is None:
        return {}
    try:
        content = json.loads(cache.read_text(encoding="utf-8"))
        # Another Pillow may read other files. Version 1 took large texts for damage.
        if content["version"] == 2 and content["pillow"] == PIL.__version__:
            return {name: (row[:3], _Seen(str(row[3]), row[4])) for name, row in content["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        pass
    return {}


def _write_cache(cache: Path, files: dict[str, tuple[list[int], _Seen]]) -> None:
    try:
        with atomic_write(cache) as temporary:
            rows = {name: [*mark, *seen] for name, (mark, seen) in files.items()}
            content = {"version": 2, "pillow": PIL.__version__, "files": rows}
            temporary.write_text(json.dumps(content), encoding="utf-8")
    except (MemtokError, OSError):
        pass
