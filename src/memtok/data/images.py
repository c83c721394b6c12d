"""Reading images upright and in RGB, and finding the files that cannot be read.

Whatever a file holds (grey, palette, transparency, CMYK, 16 bit, a camera's rotation), the model receives upright
8-bit RGB. Embedded colour profiles are not applied: the usual pre-trained models were trained without them.
"""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from memtok.data.file_cache import read_cached
from memtok.data.png import without_text
from memtok.errors import Argument, MemtokError, one_line
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

# EXIF 2.32, tag 0x0112: how the stored pixels have to be rotated to be upright.
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

DARK = 2**14 - 1
"""16-bit images with no value above this one were most likely recorded with fewer bits: a quarter of white."""

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


Read = TypeVar("Read")


def read_in_batches(
    names: Sequence[str],
    read: Callable[[str], Read],
    batch_size: int,
    on_bad_image: str,
    left_out: list[LeftOut],
) -> Iterator[list[tuple[str, Read]]]:
    """Batches of (name, what `read` makes of it), read in threads, for decoding releases the interpreter lock.

    Images that cannot be read, for which `read` raises UnreadableImageError, are added to `left_out`; with
    on_bad_image "fail" the error is raised.
    """

    def attempt(name: str) -> tuple[Read | None, UnreadableImageError | None]:
        try:
            return read(name), None
        except UnreadableImageError as error:
            return None, error

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(names), batch_size):
            part = names[start : start + batch_size]
            batch: list[tuple[str, Any]] = []
            for name, (found, error) in zip(part, pool.map(attempt, part), strict=True):
                if error is None:
                    batch.append((name, found))
                elif on_bad_image == "fail":
                    raise error
                else:
                    left_out.append(LeftOut(name, error.reason))
            if batch:
                yield batch


class LeftOut(NamedTuple):
    """Something that could not be read, and why."""

    path: str
    reason: str


def shown(path: str | Path) -> str:
    """A path for a message: quoted if it contains a line break or another character that does not print."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


def read_image(path: str | Path) -> Image.Image:
    """Reads the (first) image of a file: upright, RGB, 8 bit, transparent parts on white.

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
    """A PIL image of any mode as RGB, 8 bit, composed on white where it is transparent. It is not rotated.

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
    """Result of checking images: {name: reason} of those that cannot be read, and the largest `peak` of all others."""

    unreadable: dict[str, str]
    peak: float | None


def look_at_images(
    root: Path, names: Sequence[str], *, cache: Path | None = None, progress: Progress | None = None
) -> Looked:
    """Decodes every file `root/name`; those that fail are named in the order of `names`.

    With `cache`, a JSON file, files whose size and times are those of an earlier check are not decoded again.
    """
    Image.init()  # registers Pillow's formats once, before the threads would do it side by side
    made_by = {"version": 2, "pillow": PIL.__version__}  # another Pillow may read other files
    with _quiet():
        seen = read_cached(root, names, _look, cache=cache, made_by=made_by, progress=progress)
    unreadable = {name: reason for name, (reason, _) in seen.items() if reason}
    return Looked(unreadable, max((highest for _, highest in seen.values() if highest is not None), default=None))


def peak(image: Image.Image) -> float | None:
    """The largest value of an image whose values are taken as 16 bits, None for others."""
    if not is_deep(image):
        return None
    low, high = _extremes(_values(image))
    return high if _as_sixteen_bits(image.mode, low, high) else None


def warn_if_dark(highest: float | None, preprocessing: Preprocessing, where: str) -> None:
    """Logs a warning if images with this `peak` become nearly black, because they hold fewer than 16 bits."""
    if highest and highest <= DARK and preprocessing.pixel_range is None:
        top = 2 ** int(highest).bit_length() - 1
        logger.warning(
            "images with more than 8 bits in %s have no value above %d of 65535, so they are nearly black; for values "
            "of 0 to %d, train with --pixel-range 0 %d (pixel_range=(0, %d) in the preprocessing)",
            where, highest, top, top, top,
        )  # fmt: skip


@contextmanager
def guarded(path: str | Path) -> Iterator[None]:
    """Around the work on one image: every exception becomes an UnreadableImageError that names it."""
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
    """Hides Pillow's warnings of large images and of broken metadata; neither matters for training."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _decode(path: str | Path) -> Image.Image:
    """`read_upright` without changing the warning filters, which all threads of the process share."""
    with guarded(path):
        if kind := special_kind(path):  # opening a pipe may block forever
            raise UnreadableImageError(path, kind)
        try:
            return _upright(path)
        except ValueError:
            content = Path(path).read_bytes()
            slim = without_text(content)
            if slim == content:
                raise
            return _upright(io.BytesIO(slim))


def open_upright(
    stream: io.BytesIO, name: str, check: Callable[[Image.Image], None], formats: Sequence[str] = FORMATS
) -> Image.Image:
    """`read_upright` of bytes. `check` may refuse an image by its header, before its pixels are unpacked.

    name: of the image, for the UnreadableImageError of one that cannot be read, or was refused by an exception.
    formats: those of FORMATS that are read.
    """
    with guarded(name):
        try:
            return _upright(stream, check, formats)
        except ValueError:
            content = stream.getvalue()
            slim = without_text(content)
            if slim == content:
                raise
            return _upright(io.BytesIO(slim), check, formats)


def _upright(
    source: str | Path | io.BytesIO,
    check: Callable[[Image.Image], None] = lambda image: None,
    formats: Sequence[str] = FORMATS,
) -> Image.Image:
    with Image.open(source, formats=_formats(formats)) as image:
        check(image)
        turned = upright(image)
        return turned if is_deep(turned) else as_rgb(turned)


def upright(image: Image.Image) -> Image.Image:
    """A copy of an image, rotated according to its metadata. It loads the pixels."""
    image.load()  # before the orientation: PNG may store it behind the pixels, TIFF is turned on loading
    try:
        turn = ORIENTATIONS.get(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # broken metadata does not make the pixels unreadable
        turn = None
    return image.copy() if turn is None else image.transpose(turn)


def _formats(formats: Sequence[str]) -> list[str]:
    """Those of the formats that this build of Pillow can read."""
    Image.init()
    return [name for name in formats if name in Image.OPEN]


def _reason(error: Exception) -> str:
    """Why Pillow failed, in one line without the path."""
    if isinstance(error, PIL.UnidentifiedImageError):
        return "not an image that Pillow can read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return one_line(error)


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
    if isinstance(transparent, int):  # PNG names one grey value that is transparent
        pixels[values == transparent] = 255
    return Image.fromarray(pixels).convert("RGB")


def _look(path: Path) -> list[Any]:
    """Why an image cannot be read ("" when it can), and its `peak`."""
    try:
        with guarded(path):
            return ["", peak(_decode(path))]
    except UnreadableImageError as error:
        return [error.reason, None]
