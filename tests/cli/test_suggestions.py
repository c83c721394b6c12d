"""A command or an option that is not there: the one that was meant is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from memtok.cli import COMMANDS, module_of, suggestions
from memtok.cli.options import build_parser, option_names
from tests.cli.conftest import Run


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("trian", "train"),
        ("eval", "evaluate"),
        ("Predict", "predict"),
        ("import_legacy", "import-legacy"),
        ("train --lr 0.1", "--learning-rate"),
        ("train --lr=0.1", "--learning-rate"),
        ("train --learnin-rate 0.1", "--learning-rate"),
        ("train --learning_rate 0.1", "--learning-rate"),
        ("train --bs 8", "--batch-size"),
        ("train --epoch 3", "--epochs"),
        ("train -o x.safetensors", "--out"),
        ("train --model small", "--backbone"),
        ("sweep --lr 0.1", "--learning-rates"),
        ("sweep --wd 0.1", "--weight-decays"),
        ("predict --input x.png", "--images"),
        ("evaluate --bs 8", "--batch-size"),
    ],
)
def test_what_was_meant(words: str, meant: str, run: Run) -> None:
    found = run(*words.split())
    assert (found.code, found.out) == (2, "")
    assert f"(did you mean {meant}?)" in found.error


def test_several_at_once(run: Run) -> None:
    assert "(did you mean --learning-rate or --batch-size?)" in run("train", "--lr", "0.1", "--bs", "3").error


def test_a_key_of_the_configuration(run: Run, tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text("lr: 0.1\n")
    found = run("train", "--config", tmp_path / "train.yaml")
    assert found.code == 2
    assert "(did you mean --learning-rate?)" in found.error


@pytest.mark.parametrize("words", ["xyzzy", "train --xyzzy 3", "verify --lr 0.1"])
def test_nothing_is_made_up(words: str, run: Run) -> None:
    found = run(*words.split())
    assert found.code == 2
    assert "did you mean" not in found.error


def test_what_is_suggested_is_there() -> None:
    options: set[str] = set()
    for command in COMMANDS:
        module = module_of(command)
        parser = build_parser(command, "d", module.USAGE, module.EXAMPLES)
        module.configure(parser)
        options |= set(option_names(parser).values())
    assert suggestions.OPTIONS.keys() <= options
    assert suggestions.COMMANDS.keys() <= COMMANDS.keys()
    assert not {other for others in suggestions.COMMANDS.values() for other in others} & COMMANDS.keys()
