"""The page of `memtok serve` by keyboard, with a screen reader, on a phone, in the dark, with little motion."""

from __future__ import annotations

import re
from typing import Any

import pytest

from memtok.plots import DARK, LIGHT
from tests.serving.page.driver import (
    Open,
    canned,
    card,
    choose,
    choose_task,
    expect,
    expect_answers,
    many_tasks,
    picture,
)
from tests.serving.page.stand_in import PAGE


def test_by_keyboard(open_page: Open, address: str) -> None:
    """From the skip link to the file, then to a task's attention weights; every stop shows its focus."""
    file = {"name": "square.png", "mimeType": "image/png", "buffer": picture()}
    page = open_page(lambda page: page.on("filechooser", lambda chooser: chooser.set_files(file)))
    stops: list[str] = []

    def tab_to(name: str) -> None:
        while not stops or stops[-1] != name:
            page.keyboard.press("Tab")
            focused = page.locator(":focus")
            stops.append(focused.evaluate("it => it.textContent || it.labels?.[0]?.textContent || it.tagName").strip())
            assert focused.evaluate("it => getComputedStyle(it).outlineStyle") != "none", stops[-1]
            assert len(stops) < 30, stops

    tab_to("Skip to the image")
    page.keyboard.press("Enter")
    tab_to("Choose image")
    assert stops == ["Skip to the image", "Choose image"]
    page.keyboard.press("Enter")
    expect_answers(page, address, picture())
    tab_to("Attention weights of pets")
    page.keyboard.press("Space")
    expect(page.get_by_role("img", name="Attention weights of task pets")).to_be_visible()
    tab_to("Remove")
    assert stops[1:] == [
        *("Choose image", "Start camera", "Attention weights of pets", "Attention weights of scenes"),
        *("Task file (.safetensors)", "Name", "Add task", "Details of pets", "Remove"),
    ]
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Cancel")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Remove pets")).to_be_focused()


def show_everything(page: Any) -> None:
    """Answers, attention weights, details, an error, and the field of a key."""
    choose(page, picture())
    page.get_by_role("button", name="Attention weights of pets").click()
    expect(page.get_by_role("img", name="Attention weights of task pets")).to_be_visible()
    page.get_by_text("Details of pets").click()
    canned(page, "**/v1/tasks/**", {"error": "a key is needed"}, 401)
    choose_task(page, b"task of owl")
    page.get_by_role("button", name="Add task").click()
    expect(page.get_by_role("alert")).to_have_text("a key is needed")
    expect(page.get_by_label("Key of this server")).to_be_visible()


def test_every_control_has_a_name(open_page: Open) -> None:
    page = open_page(many_tasks)
    choose(page, picture())
    expect(card(page, "task 99")).to_be_visible()
    canned(page, "**/v1/tasks/**", {"error": "a key is needed"}, 401)
    page.get_by_role("button", name="Attention weights of task 0", exact=True).click()
    expect(page.get_by_label("Key of this server")).to_be_visible()
    expect_names(page, 420)
    page.get_by_role("button", name="Remove task 0", exact=True).click()
    expect_names(page, 4)  # the dialog, its heading and buttons; no more can be reached


def expect_names(page: Any, count: int) -> None:
    """At least so many things that need a name are on the page, and each has one."""
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "link", "textbox", "searchbox", "slider", "dialog", "img", "image", "region", "heading"}
    nodes = [node for node in tree if not node["ignored"] and node["role"]["value"] in roles]
    assert len(nodes) >= count
    assert [node for node in nodes if not node.get("name", {}).get("value", "").strip()] == []


CONTRASTS = """() => {
    const rgb = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = (colour) => rgb(colour).slice(0, 3).map((v) => v / 255)
        .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = (it) => {
        const colour = getComputedStyle(it).backgroundColor;
        return rgb(colour)[3] === 0 ? behind(it.parentElement) : colour;
    };
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const found = [];
    while (texts.nextNode()) {
        const it = texts.currentNode.parentElement;
        if (!texts.currentNode.data.trim() || !it.checkVisibility()) continue;
        const [a, b] = [light(getComputedStyle(it).color), light(behind(it))].sort((a, b) => b - a);
        found.push([texts.currentNode.data.trim(), (a + 0.05) / (b + 0.05)]);
    }
    return found;
}"""


@pytest.mark.parametrize(("scheme", "theme"), [("light", LIGHT), ("dark", DARK)])
def test_colour_schemes(open_page: Open, scheme: str, theme: Any) -> None:
    """The project's colours, and every text with the contrast of WCAG 2.2 AA."""
    page = open_page(color_scheme=scheme)
    show_everything(page)
    paper = [int(theme.paper[i : i + 2], 16) for i in (1, 3, 5)]
    found = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert found == f"rgb({paper[0]}, {paper[1]}, {paper[2]})"
    contrasts = page.evaluate(CONTRASTS)
    assert {"Choose image", "a key is needed", "parrot", "5,258"} <= {text for text, _ in contrasts}
    assert [(text, ratio) for text, ratio in contrasts if ratio < 4.5] == []


def test_colours_are_those_of_the_charts() -> None:
    style = (PAGE / "page.css").read_text(encoding="utf-8")
    for theme, block in zip((LIGHT, DARK), re.findall(r"--paper:[^}]*", style), strict=True):
        found = dict(re.findall(r"--(\w+): (#\w+);", block))
        wanted = {name: getattr(theme, name) for name in ("paper", "ink", "muted", "line", "tint", "bad")}
        assert found == wanted | {"bar": theme.series[0]}


def test_a_phone(open_page: Open) -> None:
    """360 pixels: nothing to scroll sideways, not with long names; attention weights come into view."""
    page = open_page(viewport={"width": 360, "height": 640}, is_mobile=True, has_touch=True)
    show_everything(page)
    page.unroute("**/v1/tasks/**")
    choose_task(page, f"task of {'l' * 300}".encode(), f"{'n' * 120}.safetensors")
    page.get_by_role("button", name="Add task").tap()
    last = card(page, "n" * 120)
    expect(last).to_be_visible()
    last.get_by_role("button").tap()
    expect(page.get_by_role("img", name="Attention weights of task nnn")).to_be_in_viewport()
    page.get_by_role("button", name=f"Remove {'n' * 120}").tap()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.get_by_label("Image file").get_attribute("capture") is None


def test_motion_only_for_who_wants_it(open_page: Open) -> None:
    for motion, name in (("no-preference", "waiting"), ("reduce", "none")):
        page = open_page(reduced_motion=motion)
        page.route("**/v1/predict*", lambda route: None)
        choose(page, picture())
        region = page.get_by_role("region", name="Answers")
        expect(region).to_have_attribute("aria-busy", "true")
        assert region.evaluate("it => getComputedStyle(it, '::after').animationName") == name


def test_forced_colours_keep_the_bars(open_page: Open) -> None:
    page = open_page(forced_colors="active")
    choose(page, picture())
    expect(card(page, "pets")).to_be_visible()
    fill, track = (
        page.locator(name).first.evaluate("it => getComputedStyle(it).backgroundColor") for name in (".fill", ".track")
    )
    assert fill != track
