"""PNG files whose text is larger than Pillow unpacks: the pixels are intact, so the text is dropped."""

from __future__ import annotations

import zlib

from PIL import PngImagePlugin

# PNG specification, third edition, chapters 5.2 and 5.3: the signature; then chunks of length (4 bytes), type (4),
# data and checksum (4).
SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXT = (b"tEXt", b"zTXt", b"iTXt")
COLOUR_PROFILE = b"iCCP"
WITH_ORIENTATION = (b"XML:com.adobe.xmp", b"Raw profile type exif")
"""The keywords of the texts in which Pillow looks for the rotation of an image."""


def without_text(content: bytes) -> bytes:
    """A PNG file without its texts and its colour profile, which memtok does not apply. What says its rotation stays.

    The same bytes for a file that is no PNG.
    """
    if not content.startswith(SIGNATURE):
        return content
    kept, at = [SIGNATURE], len(SIGNATURE)
    while at < len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        kind, data = content[at + 4 : at + 8], content[at + 8 : end - 4]
        if kind != COLOUR_PROFILE and (kind not in TEXT or _turns(kind, data)):
            kept.append(content[at:end])
        at = end
    return b"".join(kept)


def _turns(kind: bytes, data: bytes) -> bool:
    """Whether a text may say how the image is rotated, and is no larger than Pillow unpacks."""
    keyword, _, rest = data.partition(b"\0")
    if keyword not in WITH_ORIENTATION:
        return False
    if kind == b"iTXt":  # compressed or not, method, language, keyword in that language, text
        packed, text = rest[:1] == b"\1", rest[2:].split(b"\0", 2)[-1]
    else:
        packed, text = kind == b"zTXt", rest[1:]
    most = PngImagePlugin.MAX_TEXT_CHUNK
    try:
        return not packed or len(zlib.decompressobj().decompress(text, most + 1)) <= most
    except zlib.error:
        return False
