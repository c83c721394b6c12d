"""`--backbone` may be left out where a task file names the backbone, and no file says where it lay."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

import memtok
from memtok.checkpoint import portable_source, read_checkpoint
from memtok.header import read_header
from tests.checkpoint.tiny_models import registered, save_folder
from tests.cli.conftest import Run
from tests.hub_server import local_hub
from tests.tiny import tiny_task, tiny_vit

COMMANDS: dict[str, tuple[str, ...]] = {
    "evaluate": ("--data", "folder:photos", "--device", "cpu"),
    "predict": ("--images", "photos", "--device", "cpu"),
    "verify": ("--images", "2"),
}


def source_of(path: str | Path) -> str:
    return str(read_header(path)[0]["backbone"]["source"])


def record_source(path: str | Path, source: str) -> None:
    """Rewrites a file as version 0.1 wrote it, with another source of its backbone."""
    with safe_open(path, framework="pt") as stream:
        tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 - not a mapping
        content = json.loads(stream.metadata()["memtok"])
    for header in content.get("tasks", [content]):
        header["backbone"]["source"] = source
        del header["digest"]
    save_file(tensors, path, metadata={"memtok": json.dumps(content)})


def load(path: str) -> Any:
    return json.loads(Path(path).read_text())


@pytest.mark.parametrize("command", COMMANDS)
def test_the_result_is_that_with_the_option(command: str, workspace: Path, run: Run) -> None:
    words = (command, "pets.safetensors", *COMMANDS[command])
    assert run(*words, "--json", "found.json").code == 0
    assert run(*words, "--json", "given.json", "--backbone", "tiny.safetensors").code == 0
    assert load("found.json") == load("given.json")


@pytest.mark.parametrize("command", COMMANDS)
def test_without_a_file_it_is_needed(command: str, workspace: Path, run: Run) -> None:
    found = run(command, *COMMANDS[command])
    assert (found.code, found.out) == (2, "")
    assert "--backbone" in found.error


def test_no_file_says_where_the_backbone_lay(workspace: Path, run: Run) -> None:
    for backbone in (str(workspace / "tiny.safetensors"), "./tiny.safetensors", "../workspace/tiny.safetensors"):
        words = ("--data", "digits", "--steps", "1", "--batch-size", "4", "--device", "cpu", "--overwrite")
        assert run("train", "--backbone", backbone, *words, "--out", "new.safetensors").code == 0
        assert source_of("new.safetensors") == "tiny.safetensors"
        assert str(workspace).encode() not in Path("new.safetensors").read_bytes()
        assert run("verify", "new.safetensors", "--images", "2").code == 0


def test_concat_drops_the_path_that_an_old_file_holds(workspace: Path, run: Run) -> None:
    for path in ("pets.safetensors", "more.safetensors"):
        record_source(path, "/home/somebody/tiny.safetensors")
    assert run("concat", "pets.safetensors", "more.safetensors", "--out", "all.safetensors").code == 0
    assert source_of("all.safetensors") == "tiny.safetensors"
    assert run("verify", "all.safetensors", "--images", "2").code == 0


def test_sources_as_files_call_them(workspace: Path) -> None:
    Path("models/dino").mkdir(parents=True)
    for source, expected in {
        "small": "small",
        "facebook/dinov2-small": "facebook/dinov2-small",
        "facebook/dinov2-small@main": "facebook/dinov2-small@main",
        "hf-hub:org/name": "hf-hub:org/name",
        "vit_tiny_patch16_224": "vit_tiny_patch16_224",
        "vit_small_patch14_dinov2.lvd142m": "vit_small_patch14_dinov2.lvd142m",
        "object:VisionTransformer": "object:VisionTransformer",
        "models/dino": "dino",
        "models/dino/": "dino",
        "/somewhere/else/dino": "dino",
        "~/dino": "dino",
        "../dino": "dino",
        "a/b/dino": "dino",
        "gone.safetensors": "gone.safetensors",
        "here/gone.safetensors": "gone.safetensors",
        str(workspace / "models"): "models",
        ".": "workspace",
    }.items():
        assert portable_source(source) == expected, source


PLACES: dict[str, Callable[[Path], object]] = {
    "beside the task file": lambda away: None,
    "in the current folder": lambda away: shutil.move("deep/tiny.safetensors", "tiny.safetensors"),
    "beside another file": lambda away: shutil.move("deep/tiny.safetensors", "other/tiny.safetensors"),
    "a stranger of that name first": lambda away: shutil.copy("stranger.safetensors", "tiny.safetensors"),
    "a folder that is none first": lambda away: Path("tiny.safetensors").mkdir(),
}
RECORDED = (
    "tiny.safetensors",
    "/home/somebody/models/tiny.safetensors",
    "models/tiny.safetensors",
    "C:\\m\\tiny.safetensors",
)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("recorded", RECORDED)
def test_where_it_is_looked_for(place: str, recorded: str, workspace: Path, run: Run, tmp_path: Path) -> None:
    for folder in ("deep", "other"):
        Path(folder).mkdir()
    for name in ("pets.safetensors", "tiny.safetensors"):
        shutil.move(name, f"deep/{name}")
    shutil.move("head.safetensors", "other/head.safetensors")
    for path in ("deep/pets.safetensors", "other/head.safetensors"):
        record_source(path, recorded)
    PLACES[place](tmp_path)
    found = run("verify", "deep/pets.safetensors", "other/head.safetensors", "--images", "2")
    assert (found.code, found.err) == (0, "")


def test_a_path_as_version_0_1_recorded_it(workspace: Path, run: Run, tmp_path: Path) -> None:
    away = tmp_path / "away.safetensors"
    shutil.move("tiny.safetensors", away)
    record_source("pets.safetensors", str(away))
    assert run("verify", "pets.safetensors", "--images", "2").code == 0


def test_any_of_the_files_may_say_it(workspace: Path, run: Run) -> None:
    record_source("pets.safetensors", "object:VisionTransformer")
    assert run("verify", "pets.safetensors", "--images", "2").code == 1
    assert run("verify", "pets.safetensors", "more.safetensors", "--images", "2").code == 0


@pytest.mark.parametrize("recorded", ["gone", "stranger.safetensors", "photos", "object:VisionTransformer", "", "/"])
def test_what_is_not_found_is_said_in_one_line(recorded: str, workspace: Path, run: Run) -> None:
    record_source("pets.safetensors", recorded)
    for command, words in COMMANDS.items():
        found = run(command, "pets.safetensors", *words)
        assert (found.code, found.out) == (1, "")
        assert "--backbone" in found.error
        assert recorded in found.error


def test_small_and_the_hub(workspace: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = memtok.load_backbone("small")
    tiny_task(small, "a").save("a.safetensors")
    assert source_of("a.safetensors") == "small"
    assert run("verify", "a.safetensors", "--images", "2").code == 0
    folder = save_folder(registered(), tmp_path / "hub")
    with local_hub("org/tiny", folder, tmp_path / "cache", monkeypatch):
        tiny_task(memtok.load_backbone("org/tiny"), "b").save("b.safetensors")
        assert source_of("b.safetensors") == "org/tiny"
        assert run("verify", "b.safetensors", "--images", "2").code == 0
    assert read_checkpoint(folder).source == str(folder)  # in memory it is what was given


def test_no_result_replaces_the_backbone_that_was_found(workspace: Path, run: Run) -> None:
    before = Path("tiny.safetensors").read_bytes()
    for command, words in COMMANDS.items():
        found = run(command, "pets.safetensors", *words, "--json", "tiny.safetensors")
        assert (found.code, found.out) == (2, "")
    assert Path("tiny.safetensors").read_bytes() == before


def test_extending_finds_the_backbone_of_what_is_extended(workspace: Path, run: Run) -> None:
    words = ("--data", "folder:photos", "--steps", "1", "--batch-size", "4", "--device", "cpu")
    assert run("train", "--extends", "pets.safetensors", *words, "--out", "new.safetensors").code == 0
    assert source_of("new.safetensors") == "tiny.safetensors"
    assert run("verify", "new.safetensors", "pets.safetensors", "--images", "2").code == 0
    taken = run("train", "--extends", "pets.safetensors", *words, "--out", "tiny.safetensors")
    assert (taken.code, taken.out) == (2, "")
    assert run("train", *words, "--out", "new.safetensors").code == 2


def test_a_model_from_memory_is_named_as_such(workspace: Path) -> None:
    tiny_task(memtok.load_backbone(tiny_vit()), "a").save("a.safetensors")
    assert source_of("a.safetensors") == "object:VisionTransformer"
