"""Odd images load as people see them, broken ones are named."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from memtok.data import file_cache
from memtok.data import images as module
from memtok.data.file_cache import cache_file
from memtok.data.images import UnreadableImageError, as_rgb, look_at_images, read_image
from memtok.errors import MemtokError
from tests.clocks import with_the_old_time

# Rows 2, columns 3, all colours different.
UPRIGHT = np.array(
    [[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[255, 255, 0], [0, 255, 255], [10, 20, 30]]], dtype=np.uint8
)

# EXIF 2.32: what the first row and the first column of the stored pixels are in the upright picture.
STORED = {
    1: UPRIGHT,  # top, left
    2: UPRIGHT[:, ::-1],  # top, right
    3: UPRIGHT[::-1, ::-1],  # bottom, right
    4: UPRIGHT[::-1],  # bottom, left
    5: UPRIGHT.transpose(1, 0, 2),  # left, top
    6: UPRIGHT.transpose(1, 0, 2)[::-1],  # right, top
    7: UPRIGHT.transpose(1, 0, 2)[::-1, ::-1],  # right, bottom
    8: UPRIGHT.transpose(1, 0, 2)[:, ::-1],  # left, bottom
}


def options_of(ending: str) -> dict[str, Any]:
    """What keeps the pixels as they are."""
    if ending == "webp":
        return {"lossless": True, "exact": True}
    return {"quality": 100} if ending == "jpg" else {}


def pixels_of(path: Path) -> NDArray[np.uint8]:
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
def test_exif_rotation_is_applied(tmp_path: Path, orientation: int, ending: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"image.{ending}"
    image = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    image.save(path, exif=exif, **options_of(ending))
    assert np.array_equal(pixels_of(path), UPRIGHT)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_of_a_jpeg(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    blocks = STORED[orientation].repeat(16, axis=0).repeat(16, axis=1)
    Image.fromarray(blocks).save(tmp_path / "image.jpg", exif=exif, quality=100, subsampling=0)
    seen = pixels_of(tmp_path / "image.jpg")[8::16, 8::16]
    assert np.abs(seen.astype(int) - UPRIGHT).max() <= 4


def test_broken_exif_does_not_hide_the_pixels(tmp_path: Path) -> None:
    Image.fromarray(UPRIGHT).save(tmp_path / "image.png", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7fgarbage")
    assert np.array_equal(pixels_of(tmp_path / "image.png"), UPRIGHT)


def test_palette(tmp_path: Path) -> None:
    image = Image.fromarray(UPRIGHT).quantize(8, dither=Image.Dither.NONE)
    assert image.mode == "P"
    image.save(tmp_path / "image.png")
    assert np.array_equal(pixels_of(tmp_path / "image.png"), UPRIGHT)


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 128])])
def test_palette_with_transparency_is_laid_on_white(tmp_path: Path, transparency: int | bytes) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    image.putdata([0, 1, 2])
    image.save(tmp_path / "image.png", transparency=transparency)
    half = [0, 0, 200] if isinstance(transparency, int) else [127, 127, 227]
    assert pixels_of(tmp_path / "image.png").tolist() == [[[200, 0, 0], [255, 255, 255], half]]


def test_palette_with_its_own_alpha() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 0, 0, 255, 0, 200, 0, 0], "RGBA")
    image.putdata([0, 1])
    assert np.asarray(as_rgb(image)).tolist() == [[[200, 0, 0], [255, 255, 255]]]


@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
def test_rgba_is_laid_on_white(tmp_path: Path, ending: str) -> None:
    image = Image.new("RGBA", (3, 1))
    image.putdata([(10, 20, 30, 255), (10, 20, 30, 0), (0, 0, 0, 128)])
    image.save(tmp_path / f"image.{ending}", **options_of(ending))
    assert pixels_of(tmp_path / f"image.{ending}").tolist() == [[[10, 20, 30], [255, 255, 255], [127, 127, 127]]]


def test_grey_with_alpha_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.new("LA", (3, 1))
    image.putdata([(10, 255), (10, 0), (0, 128)])
    image.save(tmp_path / "image.png")
    assert pixels_of(tmp_path / "image.png")[0, :, 0].tolist() == [10, 255, 127]


@pytest.mark.parametrize(("mode", "transparent"), [("RGB", (1, 2, 3)), ("L", 7), ("1", 0)])
def test_one_transparent_colour_is_white(tmp_path: Path, mode: str, transparent: tuple[int, int, int] | int) -> None:
    image = Image.new(mode, (2, 1), transparent)
    image.putpixel((1, 0), (9, 9, 9) if mode == "RGB" else 1)
    image.save(tmp_path / "image.png", transparency=transparent)
    assert pixels_of(tmp_path / "image.png")[0, 0].tolist() == [255, 255, 255]
    assert pixels_of(tmp_path / "image.png")[0, 1, 0] == {"RGB": 9, "L": 1, "1": 255}[mode]


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA"])
def test_rare_transparent_modes(mode: str) -> None:
    if mode == "PA":
        image = Image.new("PA", (1, 1))
        image.putpalette([100, 100, 100])
        image.putpixel((0, 0), (0, 0))
        assert as_rgb(image).getpixel((0, 0)) == (255, 255, 255)
        return
    straight = Image.new("LA" if mode == "La" else "RGBA", (1, 1), (100, 128) if mode == "La" else (100, 100, 100, 128))
    expected = round(100 * 128 / 255 + 255 * 127 / 255)
    for channel in as_rgb(straight.convert(mode)).getpixel((0, 0)):  # type: ignore[union-attr]
        assert abs(channel - expected) <= 2


def test_one_bit_and_grey(tmp_path: Path) -> None:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "image.png")
    assert pixels_of(tmp_path / "image.png").tolist() == [[[0, 0, 0], [255, 255, 255]]]
    Image.fromarray(np.array([[0, 77, 255]], dtype=np.uint8)).save(tmp_path / "grey.bmp")
    assert pixels_of(tmp_path / "grey.bmp").tolist() == [[[value] * 3 for value in (0, 77, 255)]]


@pytest.mark.parametrize("ending", ["jpg", "tif"])
def test_cmyk(tmp_path: Path, ending: str) -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan, full magenta and yellow: red
    image.save(tmp_path / f"image.{ending}", **options_of(ending))
    assert np.abs(pixels_of(tmp_path / f"image.{ending}")[8, 8].astype(int) - [255, 0, 0]).max() <= 3


def test_ycck(tmp_path: Path) -> None:
    # Pillow does not write YCCK. A CMYK file whose first three channels are Y, Cb and Cr of the inks is one, once the
    # transform flag at the end of its Adobe marker says so. Adobe stores inks inverted: 255 is no black.
    inks = (255 - 200, 255 - 100, 255 - 50)
    ycc = np.asarray(Image.new("RGB", (16, 16), inks).convert("YCbCr"))
    stored = np.dstack([ycc, np.full((16, 16), 255, dtype=np.uint8)])
    buffer = io.BytesIO()
    Image.frombytes("CMYK", (16, 16), (255 - stored).tobytes()).save(buffer, "JPEG", quality=100, subsampling=0)
    content = bytearray(buffer.getvalue())
    flag = content.index(b"Adobe") + 11
    assert content[flag] == 0
    content[flag] = 2
    (tmp_path / "image.jpg").write_bytes(content)
    seen = pixels_of(tmp_path / "image.jpg")[8, 8].astype(int)
    assert np.abs(seen - [200, 100, 50]).max() <= 4


SIXTEEN = np.array([[0, 257, 256 * 128, 65535]], dtype=np.uint16)
EIGHT = [0, 1, 128, 255]


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, ending: str) -> None:
    Image.fromarray(SIXTEEN).save(tmp_path / f"image.{ending}")
    seen = pixels_of(tmp_path / f"image.{ending}")
    assert [seen[0, :, channel].tolist() for channel in range(3)] == [EIGHT] * 3


def test_sixteen_bits_in_all_modes() -> None:
    big = Image.frombytes("I;16B", (4, 1), SIXTEEN.astype(">u2").tobytes())
    assert np.asarray(as_rgb(big))[0, :, 0].tolist() == EIGHT
    assert np.asarray(as_rgb(Image.fromarray(SIXTEEN.astype(np.int32))))[0, :, 0].tolist() == EIGHT
    assert np.asarray(as_rgb(Image.fromarray(SIXTEEN.astype(np.float32))))[0, :, 0].tolist() == EIGHT


def test_sixteen_bits_with_a_transparent_value(tmp_path: Path) -> None:
    Image.fromarray(SIXTEEN).save(tmp_path / "image.png", transparency=257)
    assert pixels_of(tmp_path / "image.png")[0, :, 0].tolist() == [0, 255, 128, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 0.5, 1], [0, 128, 255]),
        ([0, 7, 255], [0, 7, 255]),
        ([-1, 0, 1], [0, 128, 255]),
        ([0, 1e6, 2e6], [0, 128, 255]),
        ([5, 5, 5], [5, 5, 5]),
        ([-5, -5, -5], [0, 0, 0]),
        ([np.nan, 0, 1], [0, 0, 255]),
    ],
)
def test_float_pixels(tmp_path: Path, values: list[float], expected: list[int]) -> None:
    Image.fromarray(np.array([values], dtype=np.float32)).save(tmp_path / "image.tif")
    assert np.abs(pixels_of(tmp_path / "image.tif")[0, :, 0].astype(int) - expected).max() <= 1


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_a_pixel_range_decides_what_is_black_and_white(mode: str) -> None:
    values = np.array([[0, 1000, 1500, 2000, 60000]])
    kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    image = Image.fromarray(values.astype(kind))
    assert image.mode == mode
    found = np.asarray(as_rgb(image, (1000, 2000)))
    assert found[0, :, 1].tolist() == [0, 0, 128, 255, 255]
    grey = Image.fromarray(np.array([[0, 7, 255]], dtype=np.uint8))
    assert np.asarray(as_rgb(grey, (1000, 2000)))[0, :, 0].tolist() == [0, 7, 255]


@pytest.mark.parametrize("ending", ["gif", "png", "webp"])
def test_the_first_picture_of_an_animation(tmp_path: Path, ending: str) -> None:
    red, blue = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    red.save(tmp_path / f"image.{ending}", save_all=True, append_images=[blue], duration=100, **options_of(ending))
    with Image.open(tmp_path / f"image.{ending}") as image:
        assert image.n_frames == 2  # type: ignore[attr-defined]
    assert pixels_of(tmp_path / f"image.{ending}")[0, 0].tolist() == [255, 0, 0]


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    whole = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(whole, "PNG")
    (tmp_path / "cut.png").write_bytes(whole.getvalue()[:2000])
    jpeg = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(jpeg, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(jpeg.getvalue()[:-300])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    # A file that would start another program is not opened whatever it is called.
    (tmp_path / "program.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    for name in ("cut.png", "cut.jpg", "text.png", "empty.jpg", "folder.png", "program.jpg", "missing.png"):
        with pytest.raises(UnreadableImageError) as error:
            read_image(tmp_path / name)
        assert error.value.path == str(tmp_path / name)
        assert error.value.reason
        assert error.value.reason in str(error.value)
        assert "\n" not in str(error.value)


def test_bombs_are_unreadable_and_large_images_are_no_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (50, 50)).save(tmp_path / "image.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    assert read_image(tmp_path / "image.png").size == (50, 50)  # a warning would fail this test
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UnreadableImageError) as error:
        read_image(tmp_path / "image.png")
    assert "decompression bomb" in error.value.reason


def test_a_name_with_a_line_break_stays_one_line(tmp_path: Path) -> None:
    with pytest.raises(MemtokError) as caught:
        read_image(tmp_path / "two\nlines.png")
    assert "\n" not in str(caught.value)


def test_the_error_crosses_processes() -> None:
    error = pickle.loads(pickle.dumps(UnreadableImageError("a.png", "cut short")))
    assert (error.path, error.reason) == ("a.png", "cut short")
    assert "a.png (cut short)" in str(error)


def make(path: Path, good: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if good:
        Image.new("RGB", (4, 4), (1, 2, 3)).save(path)
    else:
        path.write_bytes(b"no")


def test_looking_at_all_files(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(600)]  # more than one part of the work
    make(tmp_path / "0.png")
    for name in names[1:]:
        (tmp_path / name).write_bytes((tmp_path / "0.png").read_bytes())
    make(tmp_path / "7.png", good=False)
    make(tmp_path / "599.png", good=False)
    calls: list[tuple[int, int]] = []
    found = look_at_images(
        tmp_path, [*names, "gone.png"], progress=lambda done, all_: calls.append((done, all_))
    ).unreadable
    assert list(found) == ["7.png", "599.png", "gone.png"]
    assert found["7.png"] == "not an image that Pillow can read"
    assert found["gone.png"] == "no such file or directory"
    assert calls == [(done, 601) for done in range(602)]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were really decoded; files count as settled at once."""
    seen: list[str] = []
    decode = module._decode

    def record(path: str | Path) -> Image.Image:
        seen.append(Path(path).name)
        return decode(path)

    monkeypatch.setattr(module, "_decode", record)
    monkeypatch.setattr(file_cache, "FRESH_SECONDS", -3600.0)
    return seen


@pytest.mark.twice
def test_a_second_look_is_remembered_and_not_stale(tmp_path: Path, decoded: list[str]) -> None:
    root, cache = tmp_path / "images", cache_file(tmp_path / "cache", tmp_path / "images")
    make(root / "a.png")
    make(root / "b.png", good=False)
    assert list(look_at_images(root, ["a.png", "b.png"], cache=cache).unreadable) == ["b.png"]
    assert sorted(decoded) == ["a.png", "b.png"]
    decoded.clear()
    assert list(look_at_images(root, ["a.png", "b.png"], cache=cache).unreadable) == ["b.png"]
    assert decoded == []
    # The same size and the same time of modification, and yet another file.
    before = (root / "a.png").stat()
    (root / "a.png").write_bytes(b"x" * before.st_size)
    with_the_old_time(root / "a.png", before)
    make(root / "b.png")
    assert list(look_at_images(root, ["a.png", "b.png"], cache=cache).unreadable) == ["a.png"]
    assert sorted(decoded) == ["a.png", "b.png"]


def test_files_that_have_just_changed_are_looked_at_again(
    tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_cache, "FRESH_SECONDS", 3600.0)
    make(tmp_path / "a.png")
    for _ in range(2):
        look_at_images(tmp_path, ["a.png"], cache=tmp_path / "cache.json")
    assert decoded == ["a.png", "a.png"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"version": 1}',
        '{"version": 1, "pillow": "1.0", "files": {"a.png": 3}}',
        '{"version": 2, "files": 3}',
    ],
)
def test_a_foreign_cache_is_done_without(tmp_path: Path, decoded: list[str], content: str) -> None:
    make(tmp_path / "a.png")
    cache = tmp_path / "cache.json"
    cache.write_text(content)
    assert look_at_images(tmp_path, ["a.png"], cache=cache).unreadable == {}
    assert decoded == ["a.png"]


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    make(tmp_path / "a.png")
    (tmp_path / "file").write_text("")
    assert look_at_images(tmp_path, ["a.png"], cache=tmp_path / "file" / "cache.json").unreadable == {}


# Text in PNG files


def with_text(path: Path, turned: str, **profile: Any) -> None:
    """A PNG of 3 MB of text in every form, and the information that it lies on its side in one of them."""
    large = "x" * 3_000_000
    info = PngImagePlugin.PngInfo()
    info.add_text("plain", large)
    info.add_text("packed", large, zip=True)
    info.add_itxt("international", large, zip=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    hexed = f"\nexif\n{len(exif.tobytes())}\n{exif.tobytes().hex()}"
    if turned == "xmp":
        info.add_itxt("XML:com.adobe.xmp", xmp)
    elif turned == "packed xmp":
        info.add_itxt("XML:com.adobe.xmp", xmp, zip=True)
    elif turned == "packed profile":
        info.add_text("Raw profile type exif", hexed, zip=True)
    options = {"exif": exif} if turned == "exif" else {}
    Image.fromarray(np.ascontiguousarray(STORED[6])).save(path, pnginfo=info, **options, **profile)


@pytest.mark.parametrize("turned", ["exif", "xmp", "packed xmp", "packed profile"])
def test_large_texts_do_not_hide_the_pixels(tmp_path: Path, turned: str) -> None:
    with_text(tmp_path / "image.png", turned)
    assert np.array_equal(pixels_of(tmp_path / "image.png"), UPRIGHT)
    assert look_at_images(tmp_path, ["image.png"]).unreadable == {}


def test_a_large_colour_profile_does_not_hide_the_pixels(tmp_path: Path) -> None:
    Image.fromarray(UPRIGHT).save(tmp_path / "image.png", icc_profile=bytes(3_000_000))
    assert np.array_equal(pixels_of(tmp_path / "image.png"), UPRIGHT)


def test_a_text_that_says_the_rotation_and_is_too_large_is_done_without(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", "x" * 3_000_000, zip=True)
    Image.fromarray(UPRIGHT).save(tmp_path / "image.png", pnginfo=info)
    assert np.array_equal(pixels_of(tmp_path / "image.png"), UPRIGHT)


def test_a_png_with_large_texts_that_is_cut_short_is_unreadable(tmp_path: Path) -> None:
    with_text(tmp_path / "image.png", "exif")
    content = (tmp_path / "image.png").read_bytes()
    for end in (len(content) - 30, content.index(b"IDAT") + 6):
        (tmp_path / "image.png").write_bytes(content[:end])
        with pytest.raises(UnreadableImageError):
            read_image(tmp_path / "image.png")


# What is no regular file


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UnreadableImageError) as error:
        read_image(tmp_path / "pipe.png")
    assert error.value.reason == "named pipe"
    assert look_at_images(tmp_path, ["pipe.png"]).unreadable == {"pipe.png": "named pipe"}


def test_links_are_followed_and_those_that_lead_nowhere_are_named(tmp_path: Path) -> None:
    make(tmp_path / "a.png")
    (tmp_path / "good.png").symlink_to("a.png")
    (tmp_path / "broken.png").symlink_to("gone.png")
    (tmp_path / "self.png").symlink_to("self.png")
    (tmp_path / "device.png").symlink_to(os.devnull)
    found = look_at_images(tmp_path, ["good.png", "broken.png", "self.png", "device.png"]).unreadable
    assert set(found) == {"broken.png", "self.png", "device.png"}
    assert found["device.png"] == "device"
