"""How far long work is: what fits a terminal, and what is printed where there is none."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from memtok.meter import Meter
from memtok.sweeps import RichSweepListener
from memtok.training import RichProgress
from memtok.training.progress import RunInfo


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def printed(total: int, seconds_each: float) -> list[str]:
    """The lines of so many steps off a terminal."""
    stream, clock = io.StringIO(), Clock()
    meter = Meter(Console(file=stream, width=200), "work", total, clock=clock)
    for done in range(1, total + 1):
        clock.now += seconds_each
        meter.move(done, figures=["loss 0.5"])
        meter.tick()
    meter.close()
    return stream.getvalue().splitlines()


def test_quick_work_prints_nothing() -> None:
    assert printed(100, 0.04) == []


def test_a_line_at_one_percent_at_every_tenth_and_never_long_silence() -> None:
    lines = printed(1000, 0.6)  # ten minutes
    done = [int(re.fullmatch(r"work: ([\d,]+) of 1,000 .*", line)[1].replace(",", "")) for line in lines]  # type: ignore[index]
    assert done[0] == 10
    assert set(range(100, 1000, 100)) <= set(done)
    assert max(after - before for before, after in zip([0, *done], [*done, 1000], strict=True)) * 0.6 <= 31
    assert lines[0] == "work: 10 of 1,000 (1 %), loss 0.5, about 10 min left"


def test_slow_steps_each_get_a_line() -> None:
    assert len(printed(5, 100)) == 4  # not the last, after which the result comes


def test_lines_that_are_printed_anyway_count() -> None:
    stream, clock = io.StringIO(), Clock()
    meter = Meter(Console(file=stream, width=200), "work", 100, clock=clock)
    for done in range(1, 100):
        clock.now += 2.5
        meter.tick()
        meter.move(done)
        if done % 10 == 0:
            meter.say(f"step {done}")
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("work: 1 of 100")  # the first percent, as soon as five seconds are over
    assert lines[1:] == [f"step {done}" for done in range(10, 100, 10)]


def test_odd_names_are_one_line_of_plain_text() -> None:
    stream = io.StringIO()
    Meter(Console(file=stream, width=200), "work").say("folder:two: \udcff\r[bold]x[/bold]\n")
    assert stream.getvalue() == "folder:two: \\udcff\\r[bold]x[/bold]\\n\n"


def last_line(stream: io.StringIO) -> str:
    """What stands on the last line of a terminal, without colours and cursor movements."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    return next(line for line in reversed(re.split(r"[\r\n]+", plain)) if line.strip())


INFO = RunInfo(
    name="pets",
    regime="memory",
    classes=3,
    trainable_parameters=1,
    total_parameters=2,
    train_images=300,
    validation_images=30,
    steps=300_000,
    start_step=159_000,
    epochs=1,
    batch_size=64,
    learning_rate=0.01,
    recipe="default",
    solver="gradient",
    augment="none",
    device="cpu",
    precision="float32",
    out=None,
)


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_bar_of_a_training_fits_the_terminal(width: int) -> None:
    stream = io.StringIO()
    progress = RichProgress(Console(file=stream, width=width, force_terminal=True, color_system=None))
    progress.start(INFO)
    progress.step(159_321)
    progress.validation({"step": 159_321, "validation_top1": 0.9, "validation_balanced": 0.9}, best=True)
    progress.log({"loss": 0.5, "learning_rate": 0.01, "images_per_second": 1234.5, "step": 159_321})
    progress.close()
    line = last_line(stream)
    assert len(line.rstrip()) <= width
    assert "…" not in line
    assert "159,321/300,000" in line
    assert ("validation 90.0 %" in line) == (width >= 60)
    assert ("loss 0.500" in line) == (width >= 80)
    assert ("images/s" in line) == (width >= 120)


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_bars_of_a_sweep_and_of_counters_fit_the_terminal(width: int) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=True, color_system=None)
    sweep = RichSweepListener(console)
    sweep.left(10.0)
    steps = sweep.training([], 0, 10_000)
    steps.step(3)
    sweep.close()
    assert len(last_line(stream).rstrip()) <= width
    assert "…" not in last_line(stream)
    meter = Meter(console, "predict", 1_281_167)
    meter.move(159_321)
    meter.close()
    line = last_line(stream)
    assert len(line.rstrip()) <= width
    assert "159,321/1,281,167" in line
