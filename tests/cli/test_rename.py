"""`memtok rename`: names change, and nothing else does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import memtok
from memtok.header import read_header
from tests.cli.conftest import CLASSES, Run
from tests.tiny import tiny_task


@pytest.fixture
def composed(workspace: Path, run: Run) -> str:
    """`pets`, `more`, which extends it, and `head` in one file."""
    files = ("pets.safetensors", "more.safetensors", "head.safetensors")
    assert run("concat", *files, "--out", "all.safetensors").code == 0
    return "all.safetensors"


def facts(path: str) -> list[dict[str, Any]]:
    """The headers without the names."""
    headers = read_header(path)
    for header in headers:
        header.pop("name")
        header.pop("classes")
        for entry in header["extends"]:
            entry.pop("name")
    return headers


def names(path: str) -> list[str]:
    return [str(header["name"]) for header in read_header(path)]


def test_the_only_task_of_a_file_in_place(workspace: Path, run: Run) -> None:
    before, tensors = facts("pets.safetensors"), load_file("pets.safetensors")
    found = run("rename", "pets.safetensors", "cats and dogs", "--json", "r.json")
    assert (found.code, found.err) == (0, "")
    assert names("pets.safetensors") == ["cats and dogs"]
    assert facts("pets.safetensors") == before
    after = load_file("pets.safetensors")
    assert tensors.keys() == after.keys()
    assert all(torch.equal(tensor, after[key]) for key, tensor in tensors.items())
    result = json.loads(Path("r.json").read_text())
    assert result == {
        "file": "pets.safetensors",
        "bytes": Path("pets.safetensors").stat().st_size,
        "tasks": ["cats and dogs"],
        "renamed": {"pets": "cats and dogs"},
        "renamed_classes": {},
    }
    assert run("verify", "pets.safetensors", "more.safetensors", "--images", "2").code == 0  # found by content
    assert run("rename", "pets.safetensors", "cats and dogs=pets").code == 0
    assert names("pets.safetensors") == ["pets"]


def test_in_a_composed_file_what_extends_it_follows(composed: str, run: Run) -> None:
    before, content = facts(composed), Path(composed).read_bytes()
    assert run("rename", composed, "pets=x", "head=pets", "--out", "deep/new.safetensors").code == 0
    assert Path(composed).read_bytes() == content
    assert names("deep/new.safetensors") == ["x", "more", "pets"]
    assert facts("deep/new.safetensors") == before
    assert read_header("deep/new.safetensors")[1]["extends"][0]["name"] == "x"
    backbone = memtok.load_backbone("tiny.safetensors")
    x, more, pets = memtok.load_tasks("deep/new.safetensors", backbone)
    assert more.extends == (x,)
    assert pets.regime == "head"


def test_two_may_swap(composed: str, run: Run) -> None:
    assert run("rename", composed, "pets=head", "head=pets").code == 0
    assert names(composed) == ["head", "more", "pets"]
    assert read_header(composed)[1]["extends"][0]["name"] == "head"
    assert run("verify", composed, "--images", "2").code == 0


def test_twins_stay_apart(workspace: Path, run: Run) -> None:
    backbone = memtok.load_backbone("tiny.safetensors")
    a, b = tiny_task(backbone, "a"), tiny_task(backbone, "b")
    memtok.save_tasks([a, b, tiny_task(backbone, "c", seed=1, extends=[a, b])], "twins.safetensors")
    assert run("rename", "twins.safetensors", "a=b", "b=z").code == 0
    loaded = {task.name: task for task in memtok.load_tasks("twins.safetensors", backbone)}
    assert loaded["c"].extends == (loaded["b"], loaded["z"])


def test_classes(composed: str, run: Run) -> None:
    before = facts(composed)
    assert run("rename", composed, "--task", "head", "--class", "class 0=class 1", "class 1=class 0").code == 0
    assert [header["classes"] for header in read_header(composed)] == [
        list(CLASSES),
        list(CLASSES),
        ["class 1", "class 0", "class 2"],
    ]
    assert facts(composed) == before
    assert run("rename", "pets.safetensors", "new", "--class", "class 2=a=b").code == 0
    (header,) = read_header("pets.safetensors")
    assert (header["name"], header["classes"]) == ("new", ["class 0", "class 1", "a=b"])
    assert run("rename", "pets.safetensors", "--class", "a=b=c").code == 0
    assert read_header("pets.safetensors")[0]["classes"][2] == "c"


WRONG: dict[str, tuple[tuple[str, ...], int]] = {
    "no file": ((), 2),
    "no name": (("all.safetensors",), 2),
    "a lone name for many": (("all.safetensors", "x"), 2),
    "an unknown task": (("all.safetensors", "dogs=x"), 2),
    "two names for one": (("all.safetensors", "pets=x", "pets=y"), 2),
    "an empty name": (("all.safetensors", "pets="), 2),
    "the name of the base": (("all.safetensors", "pets=base"), 2),
    "the name of another": (("all.safetensors", "pets=head"), 1),
    "one name for two": (("all.safetensors", "pets=x", "head=x"), 1),
    "the name of what it extends": (("more.safetensors", "pets"), 1),
    "no task for classes": (("all.safetensors", "--class", "class 0=x"), 2),
    "another task for classes": (("all.safetensors", "--task", "x", "--class", "class 0=x"), 2),
    "an unknown class": (("pets.safetensors", "--class", "class 9=x"), 2),
    "one class twice": (("pets.safetensors", "--class", "class 0=class 1"), 1),
    "another ending": (("pets.safetensors", "x", "--out", "x.zip"), 2),
    "over its result": (("pets.safetensors", "x", "--json", "pets.safetensors"), 2),
    "a whole model": (("tiny.safetensors", "x"), 1),
    "no file there": (("gone.safetensors", "x"), 1),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_refused_changes_nothing(case: str, composed: str, run: Run) -> None:
    before = {path.name: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    words, code = WRONG[case]
    found = run("rename", *words)
    assert (found.code, found.out) == (code, "")
    assert found.error
    assert {path.name: path.read_bytes() for path in Path().iterdir() if path.is_file()} == before


def test_a_changed_file_gets_no_new_digest(workspace: Path, run: Run) -> None:
    content = Path("pets.safetensors").read_bytes()
    for changed in (content.replace(b"class 0", b"class 9"), content[:-1] + bytes([content[-1] ^ 1])):
        Path("pets.safetensors").write_bytes(changed)
        assert run("rename", "pets.safetensors", "x").code == 1
        assert Path("pets.safetensors").read_bytes() == changed
