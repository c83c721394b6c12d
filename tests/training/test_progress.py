"""The bar, and what it prints where there is no terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from memtok.backbone import Backbone
from memtok.data import DataSource
from memtok.training import RichProgress
from tests.training.helpers import new_task, quick


def test_lines_without_a_terminal(backbone: Backbone, data: DataSource) -> None:
    stream = io.StringIO()
    task = new_task(backbone, data)
    quick(task, data, progress=RichProgress(Console(file=stream, width=200)))
    own = sum(parameter.numel() for parameter in task.parameters())
    whole = own + sum(parameter.numel() for parameter in backbone.parameters())
    lines = stream.getvalue().splitlines()
    share = f"{100 * own / whole:.3g} %"
    assert lines[0] == f"digits: regime memory, 2 classes, training {own:,} of {whole:,} parameters ({share})"
    assert "8 steps of 16" in lines[1]
    assert [line.split(":")[0] for line in lines[2:]] == ["step 4", "step 8"]
    assert "validation" in lines[2]


def test_bar_shows_loss_rate_speed_time_and_accuracy(backbone: Backbone, data: DataSource) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=200, force_terminal=True, color_system=None)
    quick(new_task(backbone, data), data, progress=RichProgress(console))
    text = stream.getvalue()
    for word in ("loss ", "rate ", "images/s", "left", "8/8", "validation "):
        assert word in text


def test_true_means_the_bar_and_the_default_is_silent(
    backbone: Backbone, data: DataSource, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    quick(new_task(backbone, data), data, steps=1, out=tmp_path / "digits.safetensors")
    silent = capfd.readouterr()
    assert (silent.out, silent.err) == ("", "")
    quick(new_task(backbone, data), data, steps=1, progress=True)
    loud = capfd.readouterr()
    assert loud.out == ""
    assert "parameters" in loud.err


def test_a_resumed_run_says_where_it_goes_on(backbone: Backbone, data: DataSource, out: Path) -> None:
    stream = io.StringIO()
    quick(new_task(backbone, data), data, out=out)
    quick(new_task(backbone, data), data, out=out, resume=True, progress=RichProgress(Console(file=stream, width=200)))
    assert "going on after step 8" in stream.getvalue()
