"""The drawings of the docs: no text touches the frame that it stands in, and each is drawn anew by its script."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

ROOM = 3.0  # points between a text and its frame


def script(root: Path, name: str) -> ModuleType:
    """A script of docs/images as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_images_{name}", root / "docs" / "images" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def cramped(figure: Figure) -> list[str]:
    """Texts in the middle of a frame that come nearer to its left or right edge than `ROOM`, or cross it."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    room = ROOM * figure.dpi / 72
    found = []
    for axes in figure.axes:
        frames = [patch.get_window_extent(renderer) for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
        for text in axes.texts:
            extent = text.get_window_extent(renderer)
            middle = (extent.x0 + extent.x1) / 2, (extent.y0 + extent.y1) / 2
            around = [frame for frame in frames if frame.contains(*middle)]
            for frame in around:
                if extent.x0 - frame.x0 < room or frame.x1 - extent.x1 < room or extent.height > frame.height:
                    found.append(text.get_text())
    return found


@pytest.mark.parametrize(
    ("name", "function"),
    [("overview", "draw"), ("method", "draw_layer"), ("method", "draw_variants"), ("method", "draw_masks")],
)
def test_no_text_touches_its_frame(root: Path, name: str, function: str) -> None:
    figure = getattr(script(root, name), function)()
    assert cramped(figure) == []


def test_a_text_that_touches_is_found(root: Path) -> None:
    module = script(root, "overview")
    figure = Figure(figsize=(4, 2))
    axes = figure.subplots()
    axes.set(xlim=(0, 4), ylim=(0, 2))
    module.box(axes, 1, 1, 1, 0.5, "white", "short")
    assert cramped(figure) == []
    module.box(axes, 1, 0, 1, 0.5, "white", "a text that is wider than its frame")
    assert cramped(figure) == ["a text that is wider than its frame"]
