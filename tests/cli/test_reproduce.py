"""`memtok reproduce`: what it prints and writes, presets, and its errors."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from memtok_experiments import command as reproduce
from memtok_experiments.presets import PRESETS, find_preset
from tests.cli.conftest import Run

QUICK = (
    *("--backbone", "tiny.safetensors", "--recipe", "default", "--steps", "2", "--batch-size", "4"),
    *("--learning-rates", "0.01", "--full-learning-rates", "0.001", "--augment", "none", "--device", "cpu"),
)
PHOTOS = ("--data", "folder:photos", "--split", "80-20")


@pytest.fixture
def photos(workspace: Path) -> Path:
    return workspace


def test_table2(photos: Path, run: Run) -> None:
    words = (
        "table2",
        *QUICK,
        *PHOTOS,
        "--columns",
        "full",
        "head",
        "memory-1",
        "memory-1-unmasked",
        "--seeds",
        "0",
        "1",
    )
    found = run("reproduce", *words, "--out", "grid", "--json", "result.json")
    assert found.code == 0, found.err
    for ending in ("json", "csv", "md", "png"):
        assert f"wrote grid/table2.{ending}" in found.out
        assert (photos / "grid" / f"table2.{ending}").stat().st_size > 100
    assert "1 cell, no mask" in found.out
    assert re.search(r"^about .* left$", found.err, flags=re.MULTILINE)
    assert json.loads(Path("result.json").read_text()) == json.loads(Path("grid/table2.json").read_text())
    again = run("reproduce", *words, "--out", "grid")
    assert again.code == 0, again.err
    assert "validation part" not in again.err  # nothing was left to train
    assert again.out == found.out


def test_architectures(photos: Path, run: Run) -> None:
    words = [*QUICK, "stranger.safetensors"]
    words.insert(2, words.pop())  # two backbones
    found = run("reproduce", "architectures", *words, *PHOTOS, "--columns", "head", "--seeds", "0", "--out", "grid")
    assert found.code == 0, found.err
    rows = json.loads(Path("grid/architectures.json").read_text())["rows"]
    assert [row["backbone"] for row in rows] == ["tiny.safetensors", "stranger.safetensors"]


def test_concat_and_extension(photos: Path, run: Run) -> None:
    (photos / "photos").rename(photos / "one")
    import shutil

    shutil.copytree(photos / "one", photos / "two")
    data = ("--data", "folder:one", "folder:two", "--split", "80-20", "--memory", "1", "--seeds", "0")
    for experiment in ("concat", "extension"):
        found = run("reproduce", experiment, *QUICK, *data, "--out", "grid", "--json", "result.json")
        assert found.code == 0, found.err
        assert "classifies exactly as many test images correctly as alone" in found.out
        assert json.loads(Path("result.json").read_text())["unchanged"] is True
        assert (photos / "grid" / f"{experiment}.png").exists()


def test_beyond(photos: Path, run: Run) -> None:
    words = (
        *("beyond", "--backbone", "tiny.safetensors", "--rows", "folder:photos", "letters", "--split", "80-20"),
        *("--columns", "head", "ridge", "full", "--seeds", "0", "--rates", "1", "--more-rates", "0", "--lengths", "1"),
        *("--augment", "none", "--steps", "2", "--batch-size", "4", "--device", "cpu", "--out", "grid"),
    )
    found = run("reproduce", *words, "--json", "result.json")
    assert found.code == 0, found.err
    assert "letters: left out" in found.err
    cells = json.loads(Path("result.json").read_text())["cells"]
    assert [cell["column"] for cell in cells] == ["head", "ridge", "full"]
    assert set(cells[0]["compared"]) == {"full"}
    assert json.loads(Path("grid/beyond.json").read_text())["cells"] == cells
    for name in ("beyond.csv", "beyond.md", "trials.csv", "beyond.png"):
        assert (photos / "grid" / name).stat().st_size > 20
    assert (photos / "grid" / "commands.txt").read_text().startswith("memtok")
    again = run("reproduce", *words)
    assert again.code == 0, again.err
    assert "validation part" not in again.err  # nothing was left to do
    assert again.out == found.out


def test_a_preset_that_does_not_fit_the_backbone(photos: Path, run: Run) -> None:
    found = run("reproduce", "table2", "--preset", "paper-cifar100", "--image-size", "32", *QUICK, "--out", "grid")
    assert found.code == 1
    assert "ViT-B/32" in found.error
    assert not (photos / "grid").exists()


def test_presets_fill_in_what_is_not_given() -> None:
    from jsonargparse import Namespace

    for name in PRESETS:
        preset = find_preset(name)
        keys = (
            "backbone",
            "data",
            "columns",
            "recipe",
            "steps",
            "epochs",
            "image_size",
            "split",
            "learning_rates",
            "memory",
        )
        options = Namespace(experiment=preset.experiment, preset=name, **dict.fromkeys(keys))
        options.recipe = "default"  # what the user typed stays
        reproduce.apply_preset(options)
        assert options.recipe == "default"
        assert options.data == list(preset.data)
        assert options.steps == preset.steps


@pytest.mark.parametrize("name", list(PRESETS))
def test_what_a_preset_spells_is_what_it_fills_in(workspace: Path, name: str) -> None:
    import shlex

    from memtok.cli.options import build_parser, parse

    settings = []
    for command in (find_preset(name).command, find_preset(name).spelled):
        parser = build_parser("reproduce", "d", reproduce.USAGE, reproduce.EXAMPLES)
        reproduce.configure(parser)
        options = parse(parser, shlex.split(command)[2:])
        assert options is not None
        reproduce.apply_preset(options)
        settings.append((reproduce.settings_of(options), options.memory))
    assert settings[0] == settings[1]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "expected an experiment (table2, architectures, concat, extension, beyond), found none"),
        (("table3", "--out", "x"), "found 'table3'"),
        (("table2",), "expected --out"),
        (("table2", "--out", "x/y", "--data", "folder:x"), "--out outside the folder of images"),
        (("table2", "--out", "x", "--columns", "heads"), "expected a column (full, head"),
        (("table2", "--out", "x", "--data", "cifar1000"), "cifar100"),
        (("table2", "--out", "x", "--preset", "paper"), "paper-sun397"),
        (("concat", "--out", "x", "--preset", "paper-sun397"), "memtok reproduce table2 --preset paper-sun397"),
        (("table2", "--out", "x", "--backbone", "a", "b"), "one --backbone"),
        (("table2", "--out", "x", "--json", "x/table2.json"), "a file of its own"),
        (("table2", "--out", "x", "--json", "x/grid.json"), "which the grid keeps"),
        (("table2", "--out", "x", "--json", "x/runs/a/b.json"), "which the grid keeps"),
        (("architectures", "--out", "x", "--backbone", "a", "a"), "every --backbone once"),
        (("concat", "--out", "x", "--data", "digits"), "two data sets or more"),
        (("table2", "--out", "x", "--learning-rates", "1e300"), "learning_rate of"),
        (("table2", "--out", "x", "--steps", "99999999999999999999"), "1,000,000,000 at most"),
        (("table2", "--out", "x", "--columns", "memory-99999999999999999999"), "expected a column"),
        (("table2", "--out", "x", "--columns", "memory-01"), "expected a column"),
        (("table2", "--out", "x", "--data", "digits", "digits"), "leave one out"),
        (("table2", "--out", "x", "--memory", "3"), "no --memory for table2"),
        (("concat", "--out", "x", "--columns", "head"), "no --columns for concat"),
        (("table2", "--out", "x", "--seeds", "one"), "expected --seeds as a whole number"),
        (("table2", "--out", "x", "--steps", "5", "--epochs", "1"), "--steps or --epochs"),
        (("table2", "--out", "x", "--rows", "digits"), "no --rows for table2"),
        (("concat", "--out", "x", "--equal-time", "head"), "no --equal-time for concat"),
        (("beyond", "--out", "x", "--data", "digits"), "no --data for beyond"),
        (("beyond", "--out", "x", "--rows", "digts"), "found 'digts'"),
        (("beyond", "--out", "x", "--columns", "memory-1"), "found 'memory-1'"),
        (("beyond", "--out", "x", "--backbone", "a", "b"), "one --backbone"),
        (("beyond", "--out", "x/y", "--rows", "folder:x@3"), "--out outside the folder of images"),
    ],
)
def test_wrong_arguments(workspace: Path, run: Run, words: tuple[str, ...], expected: str) -> None:
    found = run("reproduce", *words)
    assert found.code == 2
    assert expected in found.error
    assert not (workspace / "x").exists()


def test_failures_leave_nothing(photos: Path, run: Run) -> None:
    for words, expected in (
        ((*QUICK, "--data", "folder:nowhere"), "nowhere"),
        ((*QUICK, "--data", "folder:photos"), "one part for both"),
        (("--backbone", "missing.safetensors", *QUICK[2:], *PHOTOS), "missing.safetensors"),
    ):
        found = run("reproduce", "table2", *words, "--seeds", "0", "--out", "grid")
        assert found.code == 1
        assert expected in found.error
        assert not list(photos.glob("grid/runs/*/*/*"))


def test_what_a_grid_left_is_checked(photos: Path, run: Run) -> None:
    words = ("reproduce", "table2", *QUICK, *PHOTOS, "--columns", "head", "--seeds", "0", "--out", "grid")
    assert run(*words).code == 0
    (record,) = (photos / "grid/runs").glob("*/head/*.json")
    sealed = record.read_text()
    assert run(*words).code == 0
    record.write_text(sealed.replace('"seed": 0', '"seed": 1'))
    assert "damaged" in run(*words).error  # its checksum
    # Without one, as version 0.1 wrote it.
    content = json.dumps({name: value for name, value in json.loads(sealed).items() if name != "sha256"})
    for damaged, expected in (
        (content.replace('"seed": 0', '"seed": 1'), "expected the record of a run"),
        (content.replace('"learning_rate": 0.01', '"learning_rate": 0.5'), "expected the record of a run"),
        ("[" * 100_000, "damaged"),
    ):
        record.write_text(damaged)
        found = run(*words)
        assert found.code == 1
        assert expected in found.error
    record.write_text(content.replace('"test": {', '"test": null, "was": {').replace('"was": {', '"test_was": {'))
    assert "test_was" in run(*words).error
    untested = json.loads(content) | {"test": None}
    record.write_text(json.dumps(untested))
    record.with_suffix(".safetensors").rename(photos / "kept.safetensors")
    assert "delete grid/runs" in run(*words).error
    (photos / "kept.safetensors").rename(record.with_suffix(".safetensors"))
    assert run(*words).code == 0
    assert json.loads(record.read_text()) == json.loads(sealed)
    (photos / "grid/grid.json").write_text("[" * 100_000)
    assert "settings of a grid" in run(*words).error


def test_epochs_without_end_are_refused(photos: Path, run: Run) -> None:
    words = [word for word in QUICK if word not in ("--steps", "2")]
    for epochs, code, expected in (
        ("1e300", 2, "--epochs of 3e+38 at most"),
        ("1e20", 1, "1,000,000,000 steps at most"),
    ):
        found = run("reproduce", "table2", *words, "--epochs", epochs, *PHOTOS, "--seeds", "0", "--out", "grid")
        assert found.code == code
        assert expected in found.error
    assert not list(photos.glob("grid/runs/*/*/*"))
