"""The bar of many runs, and the lines where there is no terminal."""

from __future__ import annotations

import io
import re

from rich.console import Console

from memtok.runs_display import RunsDisplay


def shown(stream: io.StringIO) -> list[str]:
    """The lines of a terminal, without colours and cursor movements."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    return [line for line in re.split(r"[\r\n]+", plain) if line.strip()]


def test_one_bar_for_all_runs_follows_what_is_left() -> None:
    stream = io.StringIO()
    display = RunsDisplay("work", Console(file=stream, width=120, force_terminal=True, color_system=None))
    display.left(display.amount(["a"], 20))
    steps = display.training(["a"], 0, 10)
    steps.message("a word")
    steps.step(10)
    assert display.meter is not None
    assert display.meter.line().startswith("work: 50 %, 1 configuration, steps 1 to 10")
    display.left(display.amount(["a"], 30))  # more work came up
    assert display.meter.line().startswith("work: 25 %")
    display.left(0.0)
    display.message("the end")
    display.close()
    lines = shown(stream)
    assert "a word" in lines
    assert "100 %" in lines[-2]
    assert lines[-1] == "the end"  # below the bar, which is drawn no more


def test_lines_without_a_terminal() -> None:
    stream = io.StringIO()
    display = RunsDisplay("work", Console(file=stream, width=200))
    for left in (40.0, 20.0, 0.0):
        display.left(left)
        display.training(["a", "b"], 0, 10).step(10)
    display.close()
    lines = stream.getvalue().splitlines()
    said = "2 configurations, steps 1 to 10"
    assert [re.sub(r"\d+ s", "T", line) for line in lines] == [said, "about T left", said, said]
