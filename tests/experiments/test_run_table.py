"""The table of all runs of a folder, and those behind docs/results.md."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from memtok.errors import MemtokError
from memtok_experiments.markdown import to_markdown
from memtok_experiments.records import Score, write_record
from memtok_experiments.render import to_json
from memtok_experiments.run_table import collect, read_runs
from memtok_experiments.table import make_table
from tests.experiments.records import run

# A version that could be taken for a number, a run without a test, one with a field that the others lack.
RUNS = [
    run(seed=0, versions={"python": "3.11", "memtok": "0.1.0"}, image_size=(28, 42)),
    run(seed=1, chosen=False, diverged=True, validation=Score(top1=0.0, images=7)),
    run(seed=2, split={"kind": "official", "digest": "sha256:ab", "seed": None, "counts": {"train": 10, "test": 2}}),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for record in RUNS:
        path = tmp_path / "runs" / record.data / record.column / f"rate-0.1-seed-{record.seed}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_record(path, record)
    (tmp_path / "grid.json").write_text(json.dumps({"recipe": "paper", "flip": None, "augment": "none"}))
    return tmp_path


def test_every_run_is_a_line_that_reads_back(folder: Path) -> None:
    path = collect(folder)
    assert read_runs(path) == RUNS
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["versions.python"] for row in rows] == ['"3.11"', "", ""]
    assert [row["test.top1"] for row in rows] == ["0.8", "", "0.8"]
    assert {(row["grid.flip"], row["grid.augment"], row["recipe"]) for row in rows} == {("null", "none", "paper")}
    assert "grid.recipe" not in rows[0]


def test_a_line_that_makes_no_sense_is_named(folder: Path) -> None:
    path = collect(folder)
    path.write_text(path.read_text(encoding="utf-8").replace("0.1,1,paper", "0.1,-1,paper"), encoding="utf-8")
    with pytest.raises(MemtokError, match="line 3"):
        read_runs(path)


@pytest.mark.parametrize("name", ["small", "dinov2-small"])
def test_published_tables_are_those_of_the_published_runs(root: Path, name: str) -> None:
    published = root / "docs" / "results" / name
    table = make_table(read_runs(published / "runs.csv"))
    assert json.loads(json.dumps(to_json(table))) == json.loads((published / "table2.json").read_text(encoding="utf-8"))
    assert to_markdown(table) == (published / "table2.md").read_text(encoding="utf-8")
