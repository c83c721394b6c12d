"""Run records: what is written comes back, and what is damaged is refused in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from memtok.errors import MemtokError
from memtok_experiments.records import RunRecord, Score, read_record, write_record
from tests.experiments.records import run
from tests.flips import flip


@pytest.mark.parametrize("record", [run(), run(chosen=False), run("full", chosen=True, test=None), run(diverged=True)])
def test_what_is_written_comes_back(record: RunRecord, tmp_path: Path) -> None:
    write_record(tmp_path / "run.json", record)
    assert read_record(tmp_path / "run.json") == record
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_the_file_is_plain_json_with_a_version(tmp_path: Path) -> None:
    write_record(tmp_path / "run.json", run())
    value = json.loads((tmp_path / "run.json").read_text())
    assert value["format_version"] == 1
    assert value["image_size"] == [98, 98]
    assert value["validation"] == {"top1": 0.8, "images": 5000}
    assert value["test"] == {"top1": 0.8, "images": 10000, "top5": 0.95}


def test_one_flipped_bit_is_refused_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_record(path, run())
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 53):
        path.write_bytes(flip(whole, bit))
        try:
            found = read_record(path)
        except MemtokError:
            continue
        assert found == run(), f"bit {bit}"


def test_a_record_of_version_0_1_has_no_checksum(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(run().to_dict()))
    assert read_record(tmp_path / "run.json") == run()


def test_tested_marks_a_run_as_chosen() -> None:
    record = run(chosen=False).tested({"top1": 0.7, "images": 100})
    assert record.chosen
    assert record.test == Score(top1=0.7, images=100)
    assert replace(record, chosen=False, test=None) == run(chosen=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"column": ""}, "expected column as a text, found ''"),
        ({"image_size": [98]}, "image_size"),
        ({"image_size": [98, 0]}, "width as a whole number of 1 or more, found 0"),
        ({"split": {}}, "a split with its digest"),
        ({"steps": 0}, "steps as a whole number of 1 or more"),
        ({"seed": True}, "seed as a whole number"),
        ({"cells": -1}, "cells"),
        ({"learning_rate": float("nan")}, "learning_rate as a finite number"),
        ({"learning_rate": 0}, "learning_rate as a finite number above 0"),
        ({"learning_rate": 10**400}, "learning_rate as a finite number"),
        ({"seconds": -1.0}, "seconds"),
        ({"chosen": 1}, "chosen as true or false, found 1"),
        ({"versions": {"torch": 2}}, "versions"),
        ({"validation": None}, "top1, images and perhaps top5 under validation"),
        ({"validation": {"top1": 1.1, "images": 10}}, r"top1 as a share in \[0, 1\], found 1.1"),
        ({"test": {"top1": 0.5, "images": 10, "loss": 1.0}}, "under test"),
        ({"test": {"top1": 0.5, "images": 0}}, "images as a whole number"),
        ({"test": {"top1": 0.5, "top5": 0.4, "images": 10}}, "top5 of at least top1"),
        ({"chosen": False}, "no test accuracy of a rate that was not chosen"),
        ({"format_version": 2}, "format version 1 in .*run.json, found 2"),
        ({"format_version": None}, "format version 1"),
        ({"speed": 3}, "found it with the unknown 'speed'"),
    ],
)
def test_damaged_records_are_refused_by_field(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(run().to_dict() | change))
    with pytest.raises(MemtokError, match=words) as error:
        read_record(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    value = run().to_dict()
    del value["together"]
    with pytest.raises(MemtokError, match="found it without 'together'"):
        RunRecord.from_dict(value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]", b"9" * 5000, b"[" * 100_000])
def test_damaged_files_are_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(MemtokError, match=r"run\.json") as error:
        read_record(tmp_path / "run.json")
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MemtokError, match=r"gone\.json, found: No such file"):
        read_record(tmp_path / "gone.json")
