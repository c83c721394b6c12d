"""Tasks on the page of `memtok serve`: what each is, adding and removing them, keys."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.serving.page.driver import (
    SPACE,
    Open,
    canned,
    card,
    choose,
    choose_task,
    drop,
    entry,
    expect,
    expect_answers,
    picture,
    task_list,
)
from tests.serving.page.stand_in import described

HOSTILE = "a/b ?#% é <img src=x onerror=alert(1)>"


def test_details_of_a_task(page: Any) -> None:
    pets = entry(page, "pets")
    pets.get_by_text("Details of pets").click()
    terms, values = pets.get_by_role("term"), pets.get_by_role("definition")
    expect(terms.first).to_have_text("classes")
    found = dict(zip(terms.all_text_contents(), values.all_text_contents(), strict=True))
    assert found["classes"] == "cat, dog, hamster, parrot, rabbit, turtle, goldfish"
    assert found["parameters"] == "5,258"
    assert found["hyperparameters.learning_rate"] == "0.05"
    assert found["validation.curve"] == "20 entries"


def test_adding_and_removing_a_task(page: Any, address: str) -> None:
    choose(page, picture())
    expect_answers(page, address, picture())
    choose_task(page, b"task of owl,robin")
    expect(page.get_by_role("textbox", name="Name")).to_have_value("birds")
    page.get_by_role("button", name="Add task").click()
    tasks = page.get_by_role("region", name="Tasks")
    expect(tasks).to_contain_text("Task birds is added. It is not stored: a restart removes it.")
    expect(entry(page, "birds")).to_contain_text(f"2{SPACE}classes")
    expect(card(page, "birds")).to_be_visible()
    expect_answers(page, address, picture())
    expect(page.get_by_role("textbox", name="Name")).to_have_value("")

    dialog = page.get_by_role("dialog", name="Remove task birds?")
    page.get_by_role("button", name="Remove birds").click()
    dialog.get_by_role("button", name="Cancel").click()
    expect(dialog).to_be_hidden()
    page.get_by_role("button", name="Remove birds").click()
    dialog.get_by_role("button", name="Remove").click()
    expect(tasks).to_contain_text("Task birds is removed.")
    expect(entry(page, "birds")).to_have_count(0)
    expect(card(page, "birds")).to_have_count(0)
    expect_answers(page, address, picture())
    expect(page.get_by_role("heading", name="Tasks", exact=True)).to_be_focused()
    expect(page.get_by_role("button", name="Remove scenes")).to_have_count(0)


def test_replacing_a_task_is_asked_for(page: Any) -> None:
    choose_task(page, b"task of owl,robin", "pets.safetensors")
    page.get_by_role("button", name="Add task").click()
    dialog = page.get_by_role("dialog", name="Replace task pets?")
    dialog.get_by_role("button", name="Cancel").click()
    expect(entry(page, "pets")).to_contain_text(f"7{SPACE}classes")
    page.get_by_role("button", name="Add task").click()
    dialog.get_by_role("button", name="Replace").click()
    expect(page.get_by_role("region", name="Tasks")).to_contain_text("Task pets is replaced.")
    expect(entry(page, "pets")).to_contain_text(f"2{SPACE}classes")


def test_a_refused_task_file(page: Any) -> None:
    choose_task(page, b"something else")
    page.get_by_role("button", name="Add task").click()
    expect(page.get_by_role("alert")).to_have_text("birds: not a task file")
    expect(page.get_by_role("region", name="Tasks")).not_to_contain_text("Sending")
    expect(page.get_by_role("textbox", name="Name")).to_have_value("birds")  # to try again


def test_a_dropped_task_file_is_for_the_form(page: Any) -> None:
    drop(page, b"task of owl", "birds.safetensors", "")
    expect(page.get_by_role("textbox", name="Name")).to_be_focused()
    expect(page.get_by_role("textbox", name="Name")).to_have_value("birds")
    page.get_by_role("button", name="Add task").click()
    expect(entry(page, "birds")).to_be_visible()


def test_names_are_text(page: Any, address: str) -> None:
    """Never HTML, and as a whole one part of an address."""
    choose_task(page, b"task of <b>owl</b>,&lt;")
    page.get_by_role("textbox", name="Name").fill(HOSTILE)
    page.get_by_role("button", name="Add task").click()
    expect(entry(page, HOSTILE)).to_be_visible()
    choose(page, picture(), f"{HOSTILE}.png".replace("/", ":"))
    expect(card(page, HOSTILE).get_by_text("<b>owl</b>")).to_be_visible()
    page.get_by_role("button", name=f"Attention weights of {HOSTILE}").click()
    expect(page.get_by_role("figure")).to_contain_text(f"Task {HOSTILE}: attention weights")
    assert page.locator("img").count() == 1
    page.get_by_role("button", name=f"Remove {HOSTILE}").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    expect(entry(page, HOSTILE)).to_have_count(0)


def test_a_key_where_the_server_needs_one(open_page: Open) -> None:
    def guard(page: Any) -> None:
        def answer(route: Any) -> None:
            if route.request.headers.get("authorization") == "Bearer secret":
                route.continue_()
            else:
                route.fulfill(status=401, body=json.dumps({"error": "a key is needed"}))

        page.route("**/v1/**", answer)

    page = open_page(guard)
    expect(page.get_by_role("alert")).to_have_text("a key is needed")
    field = page.get_by_label("Key of this server")
    assert field.get_attribute("type") == "password"
    for wrong, line in (("wrong", "a key is needed"), ("k é y", "A key has no spaces and no characters beyond ASCII.")):
        field.fill(wrong)
        field.press("Enter")
        expect(page.get_by_role("alert")).to_have_text(line)
    field.fill("secret")
    field.press("Enter")
    expect(page.get_by_role("region", name="Key")).to_contain_text("The server accepts the key.")
    expect(page.get_by_role("alert")).to_be_empty()
    choose(page, picture())
    expect(card(page, "pets")).to_be_visible()
    page.reload()
    expect(entry(page, "pets")).to_be_visible()  # the tab keeps the key
    kept = page.evaluate("[Object.values(sessionStorage), localStorage.length, document.cookie]")
    assert kept == [["secret"], 0, ""]
    expect(open_page(guard).get_by_role("alert")).to_have_text("a key is needed")


def test_a_server_with_keys_shows_the_field(open_page: Open) -> None:
    page = open_page(lambda page: canned(page, "**/v1/tasks", task_list(keys=True)))
    expect(page.get_by_label("Key of this server")).to_be_visible()
    expect(page.get_by_role("alert")).to_be_empty()


def test_a_fixed_server(open_page: Open) -> None:
    tasks = task_list(
        described("pets", ["cat", "dog"], regime=None, bytes=None, parameters=None, record={}, attention=False),
        **{"fixed": True, "may_add": False},
    )
    page = open_page(lambda page: canned(page, "**/v1/tasks", tasks))
    expect(page.get_by_role("region", name="Tasks")).to_contain_text("Its tasks cannot be added or removed.")
    expect(entry(page, "pets")).to_be_visible()
    expect(page.get_by_role("button", name=re.compile("Remove|Add"))).to_have_count(0)
    expect(entry(page, "pets")).to_contain_text("2\N{NO-BREAK SPACE}classes")
    entry(page, "pets").get_by_text("Details of pets").click()
    expect(entry(page, "pets").get_by_role("term")).to_have_text(["classes", "fingerprint", "training record"])


def test_a_key_that_may_not_add(open_page: Open) -> None:
    page = open_page(lambda page: canned(page, "**/v1/tasks", task_list(described("pets", ["cat"]), may_add=False)))
    expect(entry(page, "pets")).to_be_visible()
    expect(page.get_by_role("button", name="Add task")).to_have_count(0)


def test_tasks_that_others_change_are_shown(page: Any) -> None:
    """With the next image: it is answered by a task that is not listed, or not by one that is."""
    expect(entry(page, "scenes")).to_be_visible()
    canned(page, "**/v1/tasks", task_list(described("pets", ["cat"]), described("birds", ["owl"])))
    answers = {"pets": [{"label": "cat", "score": 1}], "birds": [{"label": "owl", "score": 1}]}
    canned(page, "**/v1/predict*", {"images": [{"name": "image", "tasks": answers}]})
    choose(page, picture())
    expect(page.get_by_role("button", name="Attention weights of birds")).to_be_visible()
    expect(entry(page, "birds")).to_be_visible()
    expect(entry(page, "scenes")).to_have_count(0)
