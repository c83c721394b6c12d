"""The pieces of a report: escaped, self-contained, and charts that take the colours of the page."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pytest
from PIL import Image

from memtok import plots, report

NASTY = "<b>&\"'"


@pytest.fixture(scope="module")
def charts() -> dict[str, str]:
    return draw_charts()


def draw_charts() -> dict[str, str]:
    """One of each kind."""
    curve = ([1, 2, 3], [0.2, 0.5, 0.4])
    return {
        "curves": plots.curves({"one": curve, "two": curve}, {"one": curve, "two": curve}),
        "bars": plots.bars(["one", "two"], [0.25, 0.5], [(0.1, 0.3), (0.45, 0.6)], "Bars"),
        "mask": plots.mask(np.eye(3, 5, dtype=bool), [("a", 2), ("b", 1)], [("a", 2), ("b", 1), ("c", 2)]),
        "layers": plots.layer_shares({"left": {"x": [0.9, 0.5], "y": [0.1, 0.5]}, "right": {"x": [1.0], "y": [0.0]}}),
    }


@pytest.mark.parametrize("name", ["curves", "bars", "mask", "layers"])
def test_chart_is_an_svg_of_its_own(charts: dict[str, str], name: str) -> None:
    svg = charts[name]
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "width" not in root.attrib  # as wide as there is room
    assert root.attrib["viewBox"]
    ids = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
    assert len(ids) == len(set(ids))
    assert all(identity.startswith(f"{name}-") for identity in ids)
    references = re.findall(r'(?:href="|url\()#([^")]+)', svg)
    assert set(references) <= set(ids)
    assert "currentColor" in svg
    assert "DejaVu" not in svg
    # No mark of a colour is left, and no colour that would not follow the page, but white and black that paint nothing.
    assert not re.search(r"#010[ab]0\d", svg)
    assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) <= {"#000000", "#ffffff"}


def test_charts_show_their_values(charts: dict[str, str]) -> None:
    texts = {name: "".join(ElementTree.fromstring(svg).itertext()) for name, svg in charts.items()}
    assert "25.0 %" in texts["bars"]
    assert "50.0 %" in texts["bars"]
    assert "90" in texts["layers"]
    for label in ("one", "two"):
        assert label in texts["curves"]
        assert label in texts["bars"]


def test_mask_draws_one_square_per_pair() -> None:
    seen = np.zeros((3, 4), dtype=bool)
    seen[0, :2] = seen[2, 1:] = True
    groups = [("a", 2), ("b", 1)]

    def squares(mask: np.ndarray) -> int:
        return plots.mask(mask, groups, [*groups, ("c", 1)]).count("<path")

    assert squares(seen) - squares(np.zeros_like(seen)) == seen.sum()


@pytest.mark.twice
def test_charts_are_the_same_every_time_and_leave_matplotlib_as_it_was(charts: dict[str, str]) -> None:
    before = dict(matplotlib.rcParams)
    assert draw_charts() == charts
    assert dict(matplotlib.rcParams) == before


def test_no_pyplot() -> None:
    code = "import sys, memtok.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_png_is_the_picture_enlarged() -> None:
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    head, data = plots.png(pixels, 32).split(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert np.array_equal(np.asarray(image)[::4, ::4], pixels)


def test_a_heat_map_is_darkest_where_the_heat_is() -> None:
    heat = np.zeros((4, 4), dtype=np.float32)
    heat[1, 2] = 0.01  # what counts is which place is the strongest, not how strong it is
    heat[3, 3] = 0.004
    light = plots.heat_map(heat).astype(int).sum(axis=2)
    assert light.shape == (4, 4)
    assert light[1, 2] < light[3, 3] < light[0, 0] == light.max()
    assert (plots.heat_map(np.zeros_like(heat)) == plots.heat_map(heat)[0, 0]).all()


def test_page_escapes_everything() -> None:
    picture = report.image("data:,", NASTY)
    pieces = [
        report.paragraph(NASTY),
        report.table([NASTY], [[NASTY]]),
        report.figure("<svg/>", NASTY, NASTY),
        report.commands([NASTY]),
        report.card("data:,", NASTY, [report.answer(NASTY, NASTY, 0.5)]),
        report.picture_grid([NASTY], [[("data:,", NASTY)]], NASTY),
        picture,
    ]
    page = report.page(NASTY, NASTY, [report.section(NASTY, *pieces)])
    assert "<b>" not in page
    assert page.count("&lt;b&gt;&amp;&quot;&#x27;") == 17


def test_page_is_whole() -> None:
    page = report.page("Title", "Lead.", [report.section("One"), report.section("Two")])
    assert page.startswith("<!DOCTYPE html>")
    assert page.index("<h1>Title") < page.index("Lead.") < page.index("<h2>One") < page.index("<h2>Two")
    assert "prefers-color-scheme: dark" in page
    for word in ("<script", "http:", "https:", "@import", "<link"):
        assert word not in page


def test_table_aligns_numbers_and_shows_verdicts() -> None:
    html = report.table(["what", "count", "check"], [["a", "1", "ok"], ["b", "2", "FAILED: c"]], right=["count"])
    assert '<td class="right">1</td>' in html
    assert '<td class="good">ok</td>' in html
    assert '<td class="bad">FAILED: c</td>' in html
    with pytest.raises(ValueError, match="zip"):
        report.table(["one", "two"], [["a"]])


def test_numbers_for_people() -> None:
    assert report.percent(0.12345) == "12.3\u00a0%"
    assert [report.size(count) for count in (812, 20_676, 999_499, 999_500, 2_431_892)] == [
        "812\u00a0B",
        "20.7\u00a0kB",
        "999\u00a0kB",
        "1\u00a0MB",
        "2.43\u00a0MB",
    ]
