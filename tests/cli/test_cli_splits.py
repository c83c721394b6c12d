"""`--split` and `--flip`: what training was told stands in the task file, and evaluation goes by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memtok.data import open_data
from memtok.header import read_header
from tests.cli.conftest import Run

TRAIN = ("train", "--backbone", "tiny.safetensors", "--data", "digits", "--steps", "2", "--batch-size", "8")
QUICK = (*TRAIN, "--device", "cpu", "--memory", "1")


def load_json(path: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(Path(path).read_text())
    return loaded


def test_training_and_evaluation_agree(workspace: Path, run: Run) -> None:
    found = run(*QUICK, "--split", "80-20", "--out", "digits.safetensors", "--json", "train.json")
    assert found.code == 0, found.err
    expected = open_data("digits", split="80-20").split
    (header,) = read_header("digits.safetensors")
    assert header["record"]["data"]["split"] == expected
    assert load_json("train.json")["split_digest"] == expected["digest"]
    command = ("evaluate", "digits.safetensors", "--backbone", "tiny.safetensors", "--data", "digits")
    found = run(*command, "--json", "out.json")
    assert found.code == 0, found.err
    assert load_json("out.json")["splits"]["digits"] == {"spec": "digits", "part": "test", **expected}
    assert load_json("out.json")["tasks"]["digits"]["images"] == expected["counts"]["test"]
    refused = run(*command, "--split", "official")
    assert refused.code == 1
    assert "expected a test part that task 'digits' was not trained on" in refused.error
    assert run(*command, "--split", "80-20").code == 0


def test_a_whole_model_remembers_its_split(workspace: Path, run: Run) -> None:
    found = run(*TRAIN, "--device", "cpu", "--regime", "full", "--split", "80-20", "--out", "whole.safetensors")
    assert found.code == 0, found.err
    found = run("evaluate", "--backbone", "whole.safetensors", "--data", "base=digits", "--json", "out.json")
    assert found.code == 0, found.err
    assert load_json("out.json")["splits"]["base"]["kind"] == "80-20"
    refused = run("evaluate", "--backbone", "whole.safetensors", "--data", "base=digits", "--split", "official")
    assert "expected a test part that the backbone was not trained on" in refused.error


@pytest.mark.parametrize(
    ("words", "flip"),
    [((), False), (("--flip",), True), (("--no-flip",), False), (("--flip", "--augment", "inception"), True)],
)
def test_flip_is_in_the_record(workspace: Path, run: Run, words: tuple[str, ...], flip: bool) -> None:
    found = run(*QUICK, *words, "--out", "digits.safetensors")
    assert found.code == 0, found.err
    (header,) = read_header("digits.safetensors")
    numbers = header["record"]["hyperparameters"]
    assert (numbers["augment"], numbers["flip"]) == ("inception" if "inception" in words else "crop", flip)


def test_wrong_words(workspace: Path, run: Run) -> None:
    for words, message in (
        (("--split", "70-30"), "expected --split as one of official, 80-20, found '70-30'"),
        (("--flip", "--augment", "none"), "expected --augment inception, light or crop where --flip is on, found none"),
    ):
        found = run(*QUICK, *words, "--out", "digits.safetensors")
        assert found.code == 2
        assert message in found.error
    found = run(*QUICK[:4], "folder:photos", "--split", "official", "--out", "x.safetensors")
    assert found.code == 1
    assert "expected the official split in photos" in found.error
    assert not Path("x.safetensors").exists()


def test_options_in_a_file(workspace: Path, run: Run) -> None:
    Path("train.yaml").write_text("split: 80-20\nflip: true\n")
    found = run(*QUICK, "--config", "train.yaml", "--no-flip", "--out", "digits.safetensors")
    assert found.code == 0, found.err
    (header,) = read_header("digits.safetensors")
    assert header["record"]["data"]["split"]["kind"] == "80-20"
    assert header["record"]["hyperparameters"]["flip"] is False
