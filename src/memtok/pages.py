"""Pages: one HTML file that holds all it shows, readable in light and in dark, printable, without scripts.

A page is a template of jinja2 in `memtok/templates` that extends `page.html`, with the macros of `macros.html` for
tables, charts and commands. Every text is escaped. Charts are drawn twice, for light and for dark.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy import uint8
from numpy.typing import NDArray
from PIL import Image

from memtok.display import percent, shown_bytes
from memtok.files import write_text
from memtok.plots import DARK, LIGHT, new_figure, png_bytes


def write_page(path: str | Path, template: str, **values: Any) -> None:
    """Writes what a template makes of `values`, atomically."""
    templates = Environment(
        loader=PackageLoader("memtok"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value.replace(" %", "\N{NO-BREAK SPACE}%") if isinstance(value, str) else value,
    )
    templates.filters.update(percent=percent, bytes=shown_bytes, picture=picture)
    write_text(path, templates.get_template(template).render(light=LIGHT, dark=DARK, **values))


def chart(width: float, height: float, draw: Callable[..., None], *values: Any) -> dict[str, str]:
    """`draw(figure, theme, *values)`, in inches, as {"light": address, "dark": address} of PNGs."""
    found = {}
    for name, theme in (("light", LIGHT), ("dark", DARK)):
        with new_figure(width, height, theme) as figure:
            draw(figure, theme, *values)
            found[name] = address(png_bytes(figure))
    return found


def picture(pixels: NDArray[uint8] | Image.Image) -> str:
    """The address of a picture, (height, width) or (height, width, 3)."""
    stream = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(stream, format="PNG")
    return address(stream.getvalue())


def address(png: bytes) -> str:
    """A `data:` address, with which the page holds the picture itself."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
