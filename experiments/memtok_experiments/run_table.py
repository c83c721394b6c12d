"""All runs of a grid's folder in one CSV, a line per run: `python -m memtok_experiments.run_table DIR`.

It collects the records in DIR/runs and the settings in DIR/grid.json into DIR/runs.csv. A field inside another has both
names (`test.top1`, `versions.torch`), a setting that records do not tell starts with `grid.`. A text stands as it is,
other values as in JSON; a field that a run does not have is empty.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from memtok.files import csv_text, write_csv
from memtok_experiments.records import RunRecord, read_record

NAME = "runs.csv"
GRID = "grid"


def collect(folder: Path) -> Path:
    """Writes the table of a grid's folder and returns its path; MemtokError for a damaged record."""
    records = [read_record(path).to_dict() for path in sorted((folder / "runs").rglob("rate-*.json"))]
    fixed = json.loads((folder / "grid.json").read_text(encoding="utf-8"))
    rows = [dict(_flat(record | {GRID: _not_in(record, fixed)})) for record in records]
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [[_text(row[name]) if name in row else "" for name in names] for row in rows]
    write_csv(folder / NAME, csv_text([names, *lines]))
    return folder / NAME


def read_runs(path: str | Path) -> list[RunRecord]:
    """The records in what `collect` wrote."""
    with open(path, encoding="utf-8", newline="") as file:
        return [
            RunRecord.from_dict(_record(row), f"{path}, line {line}")
            for line, row in enumerate(csv.DictReader(file), 2)
        ]


def _record(row: Mapping[str, str]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for name, text in row.items():
        *outer, last = name.split(".")
        if text and outer[:1] != [GRID]:
            place = record
            for each in outer:
                place = place.setdefault(each, {})
            place[last] = _value(text)
    return record


def _not_in(record: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a grid that its records do not tell."""
    return {name: value for name, value in fixed.items() if name not in record}


def _flat(value: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{before}{name}.")
        else:
            yield before + name, inner


def _text(value: Any) -> str:
    """A text that would be read as something else is quoted as in JSON."""
    return value if isinstance(value, str) and _value(value) is value and value else json.dumps(value)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(collect(Path(name)))
