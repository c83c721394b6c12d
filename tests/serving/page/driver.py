"""What a user does with the page, where a user finds things on it, and answers of a server that are made up."""

from __future__ import annotations

import io
import json
import urllib.request
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.serving.page.stand_in import LIMITS, described

expect = pytest.importorskip("playwright.sync_api", reason="needs playwright, to drive a browser").expect

expect.set_options(timeout=30_000)  # milliseconds; a loaded machine is no failure

SPACE = "\N{NO-BREAK SPACE}"  # between a number and its unit

Open = Callable[..., Any]
"""The fixture `open_page`."""


def picture(kind: str = "PNG", size: tuple[int, int] = (300, 200), value: int = 60) -> bytes:
    """A bright square on grey, in the middle."""
    pixels = np.full((size[1], size[0]), value, np.uint8)
    height, width = pixels.shape
    pixels[2 * height // 5 : 3 * height // 5, 2 * width // 5 : 3 * width // 5] = 250
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format=kind)
    return stream.getvalue()


def choose(page: Any, image: bytes, name: str = "square.png", kind: str = "image/png") -> None:
    page.get_by_label("Image file").set_input_files({"name": name, "mimeType": kind, "buffer": image})


def choose_task(page: Any, content: bytes, name: str = "birds.safetensors") -> None:
    page.get_by_label("Task file").set_input_files({"name": name, "mimeType": "", "buffer": content})


def drop(page: Any, content: bytes, name: str, kind: str) -> None:
    """On the last heading, as a file from another window."""
    files = page.evaluate_handle(
        """([bytes, name, type]) => {
            const files = new DataTransfer();
            files.items.add(new File([new Uint8Array(bytes)], name, { type }));
            return files;
        }""",
        [list(content), name, kind],
    )
    for event in ("dragover", "drop"):
        page.get_by_role("heading", name="Tasks", exact=True).dispatch_event(event, {"dataTransfer": files})


def paste(page: Any, content: bytes, name: str, kind: str) -> None:
    page.evaluate(
        """([bytes, name, type]) => {
            const clipboardData = new DataTransfer();
            clipboardData.items.add(new File([new Uint8Array(bytes)], name, { type }));
            document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true }));
        }""",
        [list(content), name, kind],
    )


def card(page: Any, name: str) -> Any:
    heading = page.get_by_role("heading", name=name, exact=True)
    return page.get_by_role("region", name="Answers").locator("#cards > li").filter(has=heading)


def entry(page: Any, name: str) -> Any:
    heading = page.get_by_role("heading", name=name, exact=True)
    return page.get_by_role("region", name="Tasks").locator("#task-list > li").filter(has=heading)


def asked(address: str, path: str, image: bytes) -> Any:
    """What the server answers to us."""
    request = urllib.request.Request(f"{address}v1/{path}", data=image, headers={"Content-Type": "image/png"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def expect_answers(page: Any, address: str, image: bytes) -> None:
    """The page shows the labels, percentages and bars of the server's own answers to this image."""
    answers = asked(address, "predict?top=5", image)["images"][0]["tasks"]
    region = page.get_by_role("region", name="Answers")
    expect(region.get_by_role("heading", level=3)).to_have_text(list(answers))
    for name, found in answers.items():
        rows = card(page, name).get_by_role("listitem")
        expect(rows).to_have_text([f"{each['label']} {100 * each['score']:.1f}{SPACE}%" for each in found])
        shares = rows.evaluate_all(
            "rows => rows.map(row => row.querySelector('.fill').offsetWidth / row.querySelector('.track').offsetWidth)"
        )
        assert shares == pytest.approx([each["score"] for each in found], abs=0.01)
    expect(region).to_have_attribute("aria-busy", "false")


def canned(page: Any, pattern: str, value: Any, status: int = 200, **headers: str) -> None:
    """From now on the server answers with this."""
    body = value if isinstance(value, str) else json.dumps(value)
    page.route(pattern, lambda route: route.fulfill(status=status, body=body, headers=headers))


def task_list(*tasks: dict[str, Any], **changes: Any) -> dict[str, Any]:
    common = {"backbone": {"source": "small", "fingerprint": "sha256:1"}, "preprocessing": {"image_size": [28, 28]}}
    common |= {"limits": LIMITS, "fixed": False, "keys": False, "admin": False, "may_add": True}
    return common | {"tasks": list(tasks)} | changes


def many_tasks(page: Any, count: int = 100) -> None:
    """Each has two classes and answers with the less probable one first."""
    tasks = [described(f"task {i}", [f"yes {i}", f"no {i}"]) for i in range(count)]
    canned(page, "**/v1/tasks", task_list(*tasks))
    found = {
        task["name"]: [{"label": task["classes"][1], "score": 0.25}, {"label": task["classes"][0], "score": 0.75}]
        for task in tasks
    }
    canned(page, "**/v1/predict*", {"images": [{"name": "image", "tasks": found}]})
