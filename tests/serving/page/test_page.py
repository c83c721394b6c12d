"""The page of `memtok serve` in a real browser: images from everywhere, answers, attention weights, errors."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.serving.page.driver import (
    SPACE,
    Open,
    asked,
    canned,
    card,
    choose,
    drop,
    entry,
    expect,
    expect_answers,
    many_tasks,
    paste,
    picture,
    task_list,
)
from tests.serving.page.stand_in import described


def test_first_view(page: Any) -> None:
    expect(page).to_have_title("memtok")
    expect(page.get_by_role("banner")).to_contain_text(f"Backbone small, 28 x 28 pixels, 2{SPACE}tasks.")
    expect(page.get_by_role("main").get_by_role("heading", level=2)).to_have_text(["Image", "Answers", "Tasks"])
    expect(page.get_by_role("navigation").get_by_role("link")).to_have_text(["Image", "Answers", "Tasks"])
    expect(entry(page, "pets")).to_contain_text(f"7{SPACE}classes · 24{SPACE}kB · memory")
    expect(entry(page, "scenes")).to_contain_text("side · extends pets")
    expect(page.get_by_label("Key of this server")).to_be_hidden()


def test_headers_allow_nothing_from_elsewhere(page: Any, address: str) -> None:
    policy = page.request.get(address).headers["content-security-policy"]
    assert policy == "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:"


@pytest.mark.parametrize("way", [choose, drop, paste])
def test_an_image_is_answered(page: Any, address: str, way: Callable[..., None]) -> None:
    image = picture()
    way(page, image, "square.png", "image/png")
    expect_answers(page, address, image)
    expect(page.get_by_role("img", name="Your image, square.png")).to_be_visible()
    expect(page.get_by_role("figure")).to_contain_text("300 x 200 pixels")


def test_attention_weights_over_the_image(page: Any, address: str) -> None:
    image = picture()
    choose(page, image)
    pets = page.get_by_role("button", name="Attention weights of pets")
    scenes = page.get_by_role("button", name="Attention weights of scenes")
    pets.click()
    heat = page.get_by_role("img", name="Attention weights of task pets over the image, 7 x 7 patches")
    expect(heat).to_be_visible()
    found = asked(address, "tasks/pets/attention", image)
    assert found["area"] == pytest.approx({"left": 1 / 6, "top": 0, "width": 2 / 3, "height": 1})
    whole, part = page.get_by_role("img", name="Your image").bounding_box(), heat.bounding_box()
    assert part["x"] == pytest.approx(whole["x"] + whole["width"] / 6, abs=1)
    assert part["y"] == pytest.approx(whole["y"], abs=1)
    assert part["width"] == pytest.approx(whole["width"] * 2 / 3, abs=1)
    assert part["height"] == pytest.approx(whole["height"], abs=1)
    pixels = np.array(heat.evaluate("it => [...it.getContext('2d').getImageData(0, 0, 7, 7).data]")).reshape(7, 7, 4)
    weights = np.array(found["weights"])
    assert np.array_equal(pixels[..., 3] == 255, weights == weights.max())  # the larger, the more opaque
    assert pixels[3, 3].tolist() == [253, 231, 37, 255]
    expect(page.get_by_role("figure")).to_contain_text(
        "attention weights of the class token of the task in the last layer"
    )
    expect(page.get_by_role("figure")).to_contain_text("have 0.60 of the weight")
    page.get_by_label("Opacity").fill("40")
    assert heat.evaluate("it => it.style.opacity") == "0.4"

    scenes.click()
    expect(page.get_by_role("img", name="Attention weights of task scenes")).to_be_visible()
    expect(pets).to_have_attribute("aria-pressed", "false")
    expect(scenes).to_have_attribute("aria-pressed", "true")
    scenes.click()
    expect(scenes).to_have_attribute("aria-pressed", "false")
    expect(page.get_by_role("img", name="Attention weights")).to_have_count(0)


def test_attention_weights_belong_to_the_image_shown(page: Any) -> None:
    """They go when another image comes, and those of the older image do not come later."""
    held: list[Any] = []
    page.route("**/attention", lambda route: held.append(route))
    choose(page, picture())
    page.get_by_role("button", name="Attention weights of pets").click()
    expect(page.get_by_role("figure")).to_contain_text("Waiting for the attention weights of pets")
    choose(page, picture(value=90), "other.png")
    expect(page.get_by_role("img", name="Your image, other.png")).to_be_visible()
    held[0].continue_()
    expect(page.get_by_role("button", name="Attention weights of pets")).to_have_attribute("aria-pressed", "false")
    expect(page.get_by_role("figure")).not_to_contain_text("ttention")


def test_only_the_newest_answer_is_shown(page: Any, address: str) -> None:
    held: list[Any] = []
    page.route("**/v1/predict*", lambda route: route.continue_() if held else held.append(route))
    choose(page, picture(), "first.png")
    expect(page.get_by_role("region", name="Answers")).to_have_attribute("aria-busy", "true")
    expect(page.get_by_role("region", name="Answers")).to_contain_text("Waiting for the answers to first.png")
    second = picture(value=90)
    choose(page, second, "second.png")
    expect_answers(page, address, second)
    held[0].continue_()
    page.wait_for_timeout(200)
    expect_answers(page, address, second)
    expect(page.get_by_role("alert")).to_be_empty()


@pytest.mark.parametrize(
    ("status", "body", "headers", "line"),
    [
        (422, {"error": "image: cannot be read as an image"}, {}, "image: cannot be read as an image"),
        (413, {"error": "the image has 30 MB, expected 20 MB"}, {}, "the image has 30 MB, expected 20 MB"),
        (429, {"error": "busy."}, {"Retry-After": "3"}, "busy. Try again in 3 s."),
        (408, {"error": "no answer in 30 s"}, {}, "no answer in 30 s"),
        (502, "<html>Bad gateway</html>", {}, "The server answers with status 502."),
        (200, "<html>Log in</html>", {}, "The server's answer is not JSON."),
        (0, "", {}, "No answer: the server does not run or closed the connection, or the file cannot be read."),
    ],
)
def test_an_error_is_one_line_and_the_page_goes_on(
    page: Any, address: str, status: int, body: Any, headers: dict[str, str], line: str
) -> None:
    if status:
        canned(page, "**/v1/predict*", body, status, **headers)
    else:
        page.route("**/v1/predict*", lambda route: route.abort())
    choose(page, picture())
    expect(page.get_by_role("alert")).to_have_text(line)
    region = page.get_by_role("region", name="Answers")
    expect(region).to_contain_text("No answers.")
    expect(region).to_have_attribute("aria-busy", "false")
    page.unroute("**/v1/predict*")
    choose(page, picture())
    expect_answers(page, address, picture())
    expect(page.get_by_role("alert")).to_be_empty()


def test_dismissed_errors_are_gone(page: Any) -> None:
    choose(page, b"no image", "broken.png")
    expect(page.get_by_role("alert")).to_have_text(re.compile("cannot be read"))
    page.get_by_role("button", name="Dismiss").click()
    expect(page.get_by_role("alert")).to_be_empty()
    expect(page.get_by_role("button", name="Dismiss")).to_be_hidden()


def test_a_format_that_the_browser_cannot_show_is_answered(page: Any, address: str) -> None:
    image = picture("TIFF")
    choose(page, image, "scan.tiff", "image/tiff")
    expect_answers(page, address, image)
    expect(page.get_by_role("figure")).to_contain_text("Your browser cannot show this format")
    expect(page.get_by_role("img", name="Your image")).to_be_hidden()
    page.get_by_role("button", name="Attention weights of pets").click()
    box = page.get_by_role("img", name="Attention weights of task pets").bounding_box()
    assert box["width"] == pytest.approx(box["height"], abs=1)
    assert box["width"] == 288


def test_camera(open_page: Open) -> None:
    page = open_page(permissions=["camera"])
    page.get_by_role("button", name="Start camera").click()
    take = page.get_by_role("button", name="Take picture")
    expect(take).to_be_focused()
    expect(page.get_by_label("Camera preview")).not_to_have_js_property("videoWidth", 0)
    expect(page.get_by_label("Camera preview")).to_be_visible()
    with page.expect_request("**/v1/predict*") as sent:
        take.click()
    assert sent.value.headers["content-type"] == "image/jpeg"
    expect(card(page, "pets").get_by_role("listitem")).to_have_count(5)
    expect(page.get_by_role("img", name="Your image, camera.jpg")).to_be_visible()
    page.evaluate("window.track = document.querySelector('video').srcObject.getTracks()[0]")
    assert page.evaluate("track.readyState") == "live"
    page.get_by_role("button", name="Stop camera").click()
    assert page.evaluate("track.readyState") == "ended"
    expect(page.get_by_role("button", name="Start camera")).to_be_focused()
    expect(page.get_by_label("Camera preview")).to_be_hidden()


@pytest.mark.parametrize(
    ("media", "line"),
    [
        ("undefined", "Browsers give a page the camera only over HTTPS or on localhost. Choose a file instead."),
        (
            "{ getUserMedia: async () => { throw new DOMException('', 'NotAllowedError'); } }",
            "The browser does not allow the camera. Allow it for this page, or choose a file.",
        ),
        (
            "{ getUserMedia: async () => { throw new DOMException('', 'NotFoundError'); } }",
            "The browser finds no camera. Choose a file instead.",
        ),
    ],
)
def test_no_camera(open_page: Open, media: str, line: str) -> None:
    script = f"Object.defineProperty(navigator, 'mediaDevices', {{ value: {media} }})"
    page = open_page(lambda page: page.add_init_script(script))
    page.get_by_role("button", name="Start camera").click()
    expect(page.get_by_role("alert")).to_have_text(line)
    expect(page.get_by_role("button", name="Start camera")).to_be_enabled()


def test_filters_among_many_tasks(open_page: Open) -> None:
    page = open_page(many_tasks)
    choose(page, picture())
    answers = page.get_by_role("region", name="Answers")
    cards = answers.get_by_role("heading", level=3)
    expect(cards).to_have_count(100)
    field = answers.get_by_label("Filter answers by task or label")
    field.fill("TASK 42")
    expect(cards).to_have_text(["task 42"])
    expect(card(page, "task 42").get_by_role("listitem")).to_have_text([f"yes 42 75.0{SPACE}%", f"no 42 25.0{SPACE}%"])
    field.fill("no 7")
    expect(cards).to_have_count(11)  # 7 and 70 to 79
    expect(answers).to_contain_text(f"11 of 100{SPACE}tasks")
    choose(page, picture(value=90))
    expect(cards).to_have_count(11)  # the next image's too
    page.get_by_label("Filter tasks by name, class or regime").fill("yes 99")
    expect(page.locator("#task-list").get_by_role("heading")).to_have_text(["task 99"])


def test_a_task_without_attention_weights_has_no_button(open_page: Open) -> None:
    tasks = task_list(described("pets", ["cat"], attention=False), described("scenes", ["beach"]))
    page = open_page(lambda page: canned(page, "**/v1/tasks", tasks))
    choose(page, picture())
    expect(page.get_by_role("button", name=re.compile("Attention"))).to_have_text(["Attention weights of scenes"])


def test_a_file_that_is_too_large_is_not_sent(open_page: Open) -> None:
    limits = {"body": 1000, "pixels": 50_000_000}
    page = open_page(lambda page: canned(page, "**/v1/tasks", task_list(described("pets", ["cat"]), limits=limits)))
    expect(entry(page, "pets")).to_be_visible()
    sent: list[Any] = []
    page.route("**/v1/predict*", lambda route: sent.append(route))
    choose(page, bytes(2000), "large.png")
    line = f"large.png has 2{SPACE}kB, the server takes 1{SPACE}kB at most."
    expect(page.get_by_role("alert")).to_have_text(re.compile(line.replace(SPACE, ".").replace("2.kB", "2(.0)?.kB")))
    assert sent == []
