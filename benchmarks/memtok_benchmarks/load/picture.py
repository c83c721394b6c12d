"""The picture of a load test: latency over offered load, a panel per question and number of tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator

from memtok.display import counted
from memtok.plots import LIGHT, legend, new_figure, panels, write_png
from memtok_benchmarks.load.rates import Point, Run
from memtok_benchmarks.load.settings import LABELS

ASKED = {"all": "all are asked", "one": "one is asked"}
PERCENTILES = {"p50": (":", "p50"), "p95": ("--", "p95"), "p99": ("-", "p99")}
SERIES = {
    "memtok": (LIGHT.series[0], "o"),
    "unbatched": (LIGHT.series[1], "s"),
    "models": (LIGHT.series[2], "^"),
    "lora": (LIGHT.series[3], "D"),
}


def draw(runs: Sequence[Run], path: str | Path) -> None:
    """Writes the PNG: of memtok three percentiles, of the others the 99th. Hollow: the server did not keep up."""
    groups: dict[tuple[str, int], list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.question, run.tasks)):
        if run.points:
            groups.setdefault((run.question, run.tasks), []).append(run)
    if not groups:
        return
    across = max(len({tasks for question, tasks in groups if question == asked}) for asked, _ in groups)
    down = -(-len(groups) // across)
    with new_figure(max(3.2 * across, 6.4), 2.9 * down + 0.4) as figure:
        shown = panels(figure, len(groups), across)
        handles: dict[str, Any] = {}
        for index, (panel, ((question, tasks), mine)) in enumerate(zip(shown, groups.items(), strict=True)):
            panel.set_title(f"{counted(tasks, 'task')}, {ASKED[question]}")
            draw_panel(panel, mine)
            if index % across == 0:
                panel.set_ylabel("latency, ms")
            handles |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
        handles["hollow"] = Line2D([], [], color=LIGHT.muted, marker="o", mfc=LIGHT.paper, ls="", label="falls behind")
        legend(figure, list(handles.values()), 3 if across > 1 else 2)
        write_png(figure, path)


def draw_panel(panel: Axes, runs: Sequence[Run]) -> None:
    """One question and number of tasks."""
    for run in runs:
        color, marker = SERIES[run.server]
        for field, (line, label) in PERCENTILES.items():
            if run.server == "memtok" or field == "p99":
                points = [point for point in run.points if latency(point, field) is not None]
                x, y = [p.figures.offered for p in points], [latency(p, field) or 0.0 for p in points]
                fill = [color if p.figures.kept_up else LIGHT.paper for p in points]
                panel.plot(x, y, line, color=color, label=f"{LABELS[run.server]}, {label}")
                panel.scatter(x, y, s=18, marker=marker, c=fill, edgecolors=color, zorder=3)
    ceiling = runs[0].ceiling
    panel.axvline(ceiling, color=LIGHT.muted, linewidth=0.8, linestyle=(0, (3, 2)))
    panel.annotate("own pass", (ceiling, 0.02), xycoords=("data", "axes fraction"), fontsize=7.5, color=LIGHT.muted)
    panel.set(yscale="log", xlabel="offered, requests per second")
    panel.set_xlim(left=0)
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    panel.grid(axis="y")


def latency(point: Point, field: str) -> float | None:
    """A percentile in milliseconds."""
    seconds: float | None = getattr(point.figures, field)
    return None if seconds is None else 1000 * seconds
