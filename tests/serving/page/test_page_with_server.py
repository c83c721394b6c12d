"""The page against the real server: what it shows is what the server answers, and tasks change for good."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import memtok
from memtok.serving.keys import new_key
from tests.serving.conftest import over_a_socket, task_bytes
from tests.serving.page.driver import Open, asked, card, choose, choose_task, entry, expect, expect_answers, picture
from tests.tiny import tiny_task


@pytest.fixture
def address(model: memtok.MemoryViT, tmp_path: Path) -> Iterator[str]:
    with over_a_socket(model, store=tmp_path / "store") as address:
        yield f"{address}/"


def test_answers_and_attention_weights(page: Any, address: str) -> None:
    image = picture()
    choose(page, image)
    expect_answers(page, address, image)
    page.get_by_role("button", name="Attention weights of pets").click()
    heat = page.get_by_role("img", name="Attention weights of task pets over the image, 4 x 4 patches")
    expect(heat).to_be_visible()
    area = asked(address, "tasks/pets/attention", image)["area"]
    whole, part = page.get_by_role("img", name="Your image").bounding_box(), heat.bounding_box()
    assert part["x"] - whole["x"] == pytest.approx(area["left"] * whole["width"], abs=1)
    assert part["width"] == pytest.approx(area["width"] * whole["width"], abs=1)


def test_a_task_is_added_and_removed(page: Any, address: str, model: memtok.MemoryViT, tmp_path: Path) -> None:
    choose(page, picture())
    expect_answers(page, address, picture())
    choose_task(page, task_bytes(tiny_task(model.backbone, "any", seed=9), tmp_path))
    page.get_by_role("button", name="Add task").click()
    expect(page.get_by_role("region", name="Tasks")).to_contain_text("Task birds is added.")
    expect(card(page, "birds")).to_be_visible()
    expect_answers(page, address, picture())
    assert [path.suffix for path in (tmp_path / "store").iterdir()] == [".safetensors"]
    page.get_by_role("button", name="Remove birds").click()
    page.get_by_role("dialog", name="Remove task birds?").get_by_role("button", name="Remove").click()
    expect(entry(page, "birds")).to_have_count(0)
    assert list((tmp_path / "store").iterdir()) == []


def test_what_is_refused_is_said(page: Any) -> None:
    choose_task(page, b"not a task")
    page.get_by_role("button", name="Add task").click()
    expect(page.get_by_role("alert")).to_contain_text("safetensors")
    choose(page, b"not an image", "broken.png")
    expect(page.get_by_role("alert")).to_contain_text("readable image")


class TestKeys:
    """With a key file."""

    @pytest.fixture
    def keys(self, tmp_path: Path) -> dict[str, str]:
        file = tmp_path / "keys.json"
        return {"pets": new_key(file, "pets", see=["pets"]), "admin": new_key(file, "admin", admin=True)}

    @pytest.fixture
    def address(self, model: memtok.MemoryViT, keys: dict[str, str], tmp_path: Path) -> Iterator[str]:
        with over_a_socket(model, keys=tmp_path / "keys.json") as address:
            yield f"{address}/"

    def test_each_key_shows_its_tasks(self, open_page: Open, keys: dict[str, str]) -> None:
        page = open_page()
        field = page.get_by_label("Key of this server")
        expect(field).to_be_visible()
        for name, tasks in (("pets", ["pets"]), ("admin", ["pets", "digits", "breeds"])):
            field.fill(keys[name])
            field.press("Enter")
            expect(page.locator("#task-list").get_by_role("heading")).to_have_text(tasks)
        expect(page.get_by_role("button", name="Add task")).to_be_visible()
