"""File names that are no UTF-8, and names with line ends: what is written of them can be read again."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest

from tests.cli.conftest import CLASSES, Run, write_pictures

BACKBONE = ("--backbone", "tiny.safetensors")
QUICK = (*BACKBONE, "--steps", "2", "--batch-size", "4", "--device", "cpu")
ODD = os.fsdecode(b"odd\xff\xfename")


@pytest.fixture
def odd(workspace: Path) -> Path:
    """Pictures whose folder and whose own names are no UTF-8; their classes are called as usual."""
    folder = workspace / ODD
    try:
        write_pictures(folder)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    for path in sorted(folder.rglob("*.png")):
        path.rename(path.with_name(f"{ODD}{path.name}"))
    return Path(ODD)


def test_training_and_evaluation(odd: Path, run: Run) -> None:
    found = run("train", *QUICK, "--memory", "1", "--data", f"folder:{odd}", "--out", "new.safetensors")
    assert found.code == 0, found.err
    assert found.out.isprintable() or "\udcff" not in found.out
    assert run("inspect", "new.safetensors", "--json", "inspect.json").code == 0
    record = json.loads(Path("inspect.json").read_text())["files"][0]["tasks"][0]["record"]
    assert record["data"]["spec"] == f"folder:{odd}"  # what is recorded can be opened

    words = ("--data", f"folder:{odd}", "--json", f"{odd}.json", "--csv", f"{odd}.csv")
    found = run("evaluate", "new.safetensors", *BACKBONE, *words)
    assert found.code == 0, found.err
    stored = json.loads(Path(f"{odd}.json").read_text())
    assert stored["splits"]["new"]["spec"] == f"folder:{odd}"
    assert [row.split(",")[1] for row in Path(f"{odd}.csv").read_text().splitlines()[1:]] == list(CLASSES)


def test_predictions_name_paths_that_open(odd: Path, run: Run) -> None:
    line_end = odd / "class 0" / "a\rb\n.png"
    next(odd.rglob("*0.png")).rename(line_end)
    found = run("predict", "pets.safetensors", *BACKBONE, "--images", odd, "--json", "p.json", "--csv", "p.csv")
    assert found.code == 0, found.err
    assert len(found.out.splitlines()) == 13
    expected = {str(path) for path in odd.rglob("*.png")}
    assert {image["path"] for image in json.loads(Path("p.json").read_text())["images"]} == expected
    with Path("p.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
        read = [row["image"] for row in csv.DictReader(stream)]
    assert set(read) == expected
    for path in read:
        assert Path(path).is_file()


def test_a_class_name_that_is_no_utf_8_is_refused_before_anything_is_done(odd: Path, run: Run) -> None:
    (odd / "class 0").rename(odd / ODD)
    before = sorted(Path().rglob("*"))
    found = run("train", *QUICK, "--data", f"folder:{odd}", "--out", "new.safetensors")
    assert (found.code, found.out) == (1, "")
    assert "class name" in found.error
    assert sorted(Path().rglob("*")) == before
    assert not Path(os.environ["MEMTOK_DATA"]).exists()
    found = run("evaluate", "pets.safetensors", *BACKBONE, "--data", f"folder:{odd}", "--json", "e.json")
    assert (found.code, found.out) == (1, "")
    assert "class name" in found.error


def test_a_sweep_over_a_folder_whose_name_no_task_may_have(odd: Path, run: Run) -> None:
    words = ("--data", f"folder:{odd}", "--out", "out", "--learning-rates", "0.05", "--memory", "1")
    found = run("sweep", *QUICK, *words)
    assert found.code == 0, found.err
    assert run("inspect", "out/best.safetensors").code == 0
    with Path("out/result.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
        assert {row["data"] for row in csv.DictReader(stream)} == {f"folder:{odd}"}
