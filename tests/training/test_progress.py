"""The bar, and what it prints where there is no terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from memtok.backbone import Backbone
from memtok.data import DataSource
from memtok.sweeps import RichSweepListener
from memtok.training import Progress, RichProgress
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


@pytest.mark.parametrize("terminal", [False, True])
def test_names_are_shown_as_they_are(terminal: bool) -> None:
    """Neither emoji codes such as `:two:` nor markup such as `[bold]` in a name mean anything."""
    name = "folder:two: [bold]pets[/bold]"
    stream = io.StringIO()
    console = Console(file=stream, width=200, force_terminal=terminal, color_system=None)
    training, sweeping = RichProgress(console), RichSweepListener(console)
    training.message(name)
    sweeping.planned(name, [1], 2_540_000, 14_100_000_000, ())
    sweeping.left(1.0)
    sweeping.best = name
    sweeping.training([], 0, 1)
    sweeping.validated(name, [], None)
    sweeping.close()
    shown = stream.getvalue()
    assert shown.startswith(f"{name}\n")
    assert f"{name}: 1 configuration in 1 pass over the trunk, about 2.54 MB of 14.1 GB" in shown
    assert shown.count(name) >= 3
    assert "two: pets" not in shown
    assert "2\ufe0f" not in shown


def test_listeners_hear_how_far_a_validation_is(backbone: Backbone, data: DataSource) -> None:
    heard: list[tuple[int, int]] = []

    class Listener(Progress):
        def validating(self, done: int, total: int) -> None:
            heard.append((done, total))

    for keep in (None, "ram"):
        heard.clear()
        quick(new_task(backbone, data), data, progress=Listener(), keep_traces=keep)
        images = len(data.validation)
        assert heard[-1] == (images, images)
        assert len(heard) == 2 * -(-images // 16)
