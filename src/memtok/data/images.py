"""Reading images as people see them, and finding the files that cannot be read.

Whatever a file holds (grey, palette, transparency, CMYK, 16 bit, a camera's rotation), the model receives upright
8-bit RGB. Embedded colour profiles are not applied: the usual pre-trained models were trained without them.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from memtok.errors import MemtokError
from memtok.files import atomic_write

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
"""Called with (images looked at, images in all)."""

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
# less than this many seconds before it was looked at is therefore looked at again the next time.
FRESH_SECONDS = 2.0


class UnreadableImageError(MemtokError):
    """A file that does not hold a readable image. `path` and `reason` say which, and why."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(
            f"expected a readable image, found {shown(path)} ({reason}); mend or remove it, or leave bad images "
            "out with on_bad_image='skip'"
        )
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type[UnreadableImageError], tuple[str, str]]:
        return type(self), (self.path, self.reason)  # by its own arguments, so that it can cross processes


def shown(path: str | Path) -> str:
    """A path as it stands in a message: quoted where a line break or an odd byte would garble the line."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


def read_image(path: str | Path) -> Image.Image:
    """Reads the (first) picture of a file: upright, RGB, 8 bit, transparent parts on white.

    Raises UnreadableImageError (a MemtokError) for a file that is missing, cut short, not an image, or that would
    unpack to more than twice `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    if Path(path).exists() and not Path(path).is_file():
        raise UnreadableImageError(path, "not a regular file")  # a named pipe would never answer
    with _quiet():
        return _decode(path)


def as_rgb(image: Image.Image) -> Image.Image:
    """A PIL image of any mode as RGB, 8 bit; transparency is laid on white. Its rotation is left alone."""
    if image.mode.startswith("I") or image.mode == "F":
        return _grey_as_rgb(image)
    if image.mode in ("La", "RGBa"):  # premultiplied alpha
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def unreadable_images(
    root: Path,
    names: Sequence[str],
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
    threads: int | None = None,
) -> dict[str, str]:
    """Decodes every file `root/name` and returns those that fail: {name: reason}, in the order of `names`.

    With `cache`, a JSON file, files whose size and times are those of an earlier look are not decoded again. A cache
    that cannot be read or written is done without.
    """
    known = _read_cache(cache)
    marks = {name: _mark(root / name) for name in names}
    pending = [name for name in names if marks[name] is None or known.get(name, [None])[:-1] != marks[name]]
    reasons = {name: str(known[name][-1]) for name in names if name in known}
    done = len(names) - len(pending)
    if progress is not None:
        progress(done, len(names))
    started = time.time()
    Image.init()  # registers Pillow's formats once, before the threads would do it side by side
    with _quiet(), ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(pending), 512):  # in parts, or a million files would be a million pending jobs
            part = pending[start : start + 512]
            for name, reason in zip(part, pool.map(_failure, [root / name for name in part]), strict=True):
                reasons[name] = reason
                done += 1
                if progress is not None:
                    progress(done, len(names))
    settled = {name: mark for name, mark in marks.items() if mark is not None and _settled(mark, started)}
    if cache is not None:
        fresh = {name: [*mark, reasons[name]] for name, mark in settled.items()}
        if fresh != known:
            _write_cache(cache, fresh)
    return {name: reasons[name] for name in names if reasons[name]}


def check_cache_file(folder: Path, root: Path) -> Path:
    """Where the look at the images under `root` is remembered: one file in `folder`, named by the resolved path."""
    return folder / f"{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:24]}.json"


@contextmanager
def _quiet() -> Iterator[None]:
    """Pillow warns of large images and of broken metadata; neither is news to somebody who trains a model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _decode(path: str | Path) -> Image.Image:
    """`read_image` without touching the filters of warnings, which belong to the process, not to the thread."""
    try:
        with Image.open(path, formats=_formats()) as image:
            image.load()  # before the orientation: PNG may store it behind the pixels, TIFF is turned on loading
            turn = ORIENTATIONS.get(_orientation(image))
            upright = image if turn is None else image.transpose(turn)
            return as_rgb(upright)
    except MemoryError as error:
        raise UnreadableImageError(path, "does not fit into memory") from error
    # Pillow's readers raise nearly anything on a broken file: OSError, SyntaxError, ValueError, struct.error,
    # zlib.error, IndexError, DecompressionBombError ...
    except Exception as error:
        raise UnreadableImageError(path, _reason(error)) from error


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


def _grey_as_rgb(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits (modes I;16*, I, F) as RGB; 65535 becomes 255, so nothing is clipped.

    Mode I holds 16-bit values in most files; where it does not, and in mode F, the range is that of the values:
    within [0, 1], within [0, 255], within [0, 65535], else stretched from the smallest to the largest.
    """
    values = np.nan_to_num(np.asarray(image).astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    transparent = image.info.get("transparency")
    low, high = float(values.min()), float(values.max())
    if image.mode != "F" and low >= 0 and high <= 65535:
        grey = values / 257
    elif low >= 0 and high <= 65535:
        grey = values * 255 if high <= 1 else values if high <= 255 else values / 257
    else:
        grey = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
    pixels: NDArray[np.uint8] = np.rint(grey).astype(np.uint8)
    if isinstance(transparent, int):  # PNG names one grey value that is to be seen through
        pixels[values == transparent] = 255
    return Image.fromarray(pixels).convert("RGB")


def _failure(path: Path) -> str:
    """Why `path` cannot be read; "" when it can."""
    try:
        _decode(path)
    except UnreadableImageError as error:
        return error.reason
    return ""


def _mark(path: Path) -> list[int] | None:
    """What changes when the file does: size and times; None for a file that cannot be looked at."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _settled(mark: list[int], now: float) -> bool:
    return max(mark[1:]) / 1e9 < now - FRESH_SECONDS


def _read_cache(cache: Path | None) -> dict[str, list[object]]:
    if cache is None:
        return {}
    try:
        content = json.loads(cache.read_text(encoding="utf-8"))
        # Another Pillow may read other files.
        if content["version"] == 1 and content["pillow"] == PIL.__version__:
            return {name: [*row[:3], str(row[3])] for name, row in content["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        pass
    return {}


def _write_cache(cache: Path, files: dict[str, list[object]]) -> None:
    try:
        with atomic_write(cache) as temporary:
            content = {"version": 1, "pillow": PIL.__version__, "files": files}
            temporary.write_text(json.dumps(content), encoding="utf-8")
    except (MemtokError, OSError):
        pass
