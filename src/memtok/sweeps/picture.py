"""The plot of a sweep, as PNG: validation accuracy over the learning rate, or over every axis of a search.

A grid gives a panel per data set and setting of the axes that are no line; a line is a number of cells, small dots are
seeds, the line their mean. A search gives a panel per axis and data set. Bars are the 95 % interval that so many
validation images allow; the line across with its band is the best head alone. A hollow mark was stopped early, a cross
at the bottom diverged, a black ring is the chosen one, a grey one the highest. Drawn by matplotlib without pyplot, so
no window and no style of the caller is touched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.transforms import ScaledTranslation, Transform

from memtok.errors import printable
from memtok.files import atomic_write
from memtok.plots import PNG_INK as INK
from memtok.plots import PNG_MUTED as MUTED
from memtok.plots import PNG_PAPER as PAPER
from memtok.plots import PNG_RC
from memtok.sweeps.space import FIELDS, OF_TOKENS, values_of
from memtok.sweeps.trials import Trial

if TYPE_CHECKING:
    from memtok.sweeps.result import DataResult, SweepResult

HEAD = "#c2571a"  # a head has no cells, and so no place on the scale
SCALE = "viridis_r"  # few cells are light, many are dark
STYLE: Any = PNG_RC
DPI = 160
MOST_PANELS = 12  # of a data set; more cannot be read
FEW = 8  # values of an axis: dots of one value may stand beside each other
DOT = 5.0  # points across
BESIDE = 3.5  # points from one line to the next, so that bars of one value stand beside each other
PANEL_HEIGHT = 150.0  # points, about; it decides only how near to each other two dots are
LOGARITHMIC = ("learning_rate", "weight_decay")
WORDS = {
    "memory": "cells",
    "queries": "queries",
    "adapter_rank": "adapter rank",
    "learning_rate": "learning rate",
    "weight_decay": "weight decay",
    "seed": "seed",
    "regime": "regime",
}


def draw(result: SweepResult, path: str | Path) -> None:
    """Writes the plot of a sweep, atomically; the same sweep gives the same bytes."""
    rows = [panels_of(one) for one in result.data]
    titles = titles_of([one.data for one in result.data])
    across = {1: 1, 2: 2, 4: 2}.get(max(len(row) for row in rows), 3)
    down = [math.ceil(len(row) / across) for row in rows]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(6.4, 1.2 + 3.5 * across), 0.9 + 2.9 * sum(down)), layout="constrained")
        grid = figure.subplots(sum(down), across, squeeze=False)
        first = 0
        for one, title, row, lines in zip(result.data, titles, rows, down, strict=True):
            places = grid[first : first + lines].ravel().tolist()
            low, high = limits(one, row)
            for axes, panel in zip(places, row, strict=False):
                axes.set_ylim(low, high)
                if low < 0:  # room for crosses, not for accuracies
                    axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= high])
                draw_head(axes, one)
                panel.draw(axes, one)
                axes.set_title(", ".join([printable(title), *panel.words()]), parse_math=False)
                axes.grid(axis="y")
                axes.set_axisbelow(True)
            for axes in places[len(row) :]:
                axes.set_visible(False)
            for line in range(lines):
                grid[first + line][0].set_ylabel(f"top-1 of {one.plan.validation_images:,} validation images, %")
            first += lines
        figure.legend(handles=legend(result), loc="outside lower left", ncols=min(6, 3 + across), fontsize=8)
        FigureCanvasAgg(figure)
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})


class LinePanel:
    """Accuracy over one axis, a line per value of another, all else fixed as `fixed` says."""

    def __init__(self, x: str, line: str, fixed: Mapping[str, Any]) -> None:
        self.x, self.line, self.fixed = x, line, fixed

    def draw(self, axes: Axes, one: DataResult) -> None:
        """Draws the lines of one data set."""
        chosen = self.trials(one)
        keys = sorted({line_key(trial, self.line) for trial in chosen})
        for number, key in enumerate(keys):
            trials = [trial for trial in chosen if line_key(trial, self.line) == key]
            paint, aside = color(one, trials[0], self.line), BESIDE * (number - (len(keys) - 1) / 2)
            thin: Any = {"linewidth": 0.8, "alpha": 0.5}  # where not all went to the end
            for states, style in ((("finished", "stopped"), thin), (("finished",), {})):
                means = self.means(trials, states)
                (line,) = axes.plot(list(means), list(means.values()), color=paint, zorder=3, **style)
                line.set_transform(moved_right(axes, aside))
            for trial in filter(alive, trials):
                dot(axes, getattr(trial.configuration, self.x), aside, trial, paint, one)
        draw_crosses(axes, one, chosen, self.x, self.line)
        scale(axes, self.x, [getattr(trial.configuration, self.x) for trial in chosen])
        axes.set_xlabel(WORDS[self.x])

    def words(self) -> list[str]:
        """What all trials of the panel have in common."""
        return [f"{WORDS[field]} {value:g}" for field, value in self.fixed.items()]

    def trials(self, one: DataResult) -> list[Trial]:
        """The trials of a data set that are drawn here."""
        return [trial for trial in one.trials if self.holds(trial)]

    def holds(self, trial: Trial) -> bool:
        """Whether a trial belongs here; a head, which has no tokens, belongs wherever they vary."""
        fields = [field for field in self.fixed if trial.configuration.regime != "head" or field not in OF_TOKENS]
        return all(getattr(trial.configuration, field) == self.fixed[field] for field in fields)

    def means(self, trials: Sequence[Trial], states: Sequence[str]) -> dict[float, float]:
        """The mean in percent over the seeds of trials in these states, by the value on the axis."""
        found: dict[float, list[float]] = {}
        for trial in trials:
            if trial.state in states and trial.last:
                found.setdefault(getattr(trial.configuration, self.x), []).append(100 * trial.last.top1)
        return {x: sum(values) / len(values) for x, values in sorted(found.items())}


class ScatterPanel:
    """Accuracy over one axis, a dot per trial; the colour says how many cells it has."""

    def __init__(self, x: str) -> None:
        self.x = x

    def draw(self, axes: Axes, one: DataResult) -> None:
        """Draws the dots of one data set."""
        values = [getattr(each, self.x) for each in one.order]
        living = [trial for trial in self.trials(one) if alive(trial)]
        low, high = axes.get_ylim()
        beside = asides(living, self.x, (high - low) / PANEL_HEIGHT) if len(set(values)) <= FEW else [0.0] * len(living)
        for trial, aside in zip(living, beside, strict=True):
            dot(axes, getattr(trial.configuration, self.x), aside, trial, color(one, trial, "memory"), one)
        draw_crosses(axes, one, self.trials(one), self.x, "memory")
        scale(axes, self.x, values)
        axes.set_xlabel(WORDS[self.x])

    def words(self) -> list[str]:
        """The axis that is looked along."""
        return [f"by {WORDS[self.x]}"]

    def trials(self, one: DataResult) -> Sequence[Trial]:
        """All trials of the data set; over the cells, of which heads have none, those of the search."""
        searched = set(one.order)
        return [trial for trial in one.trials if self.x not in OF_TOKENS or trial.configuration in searched]


def panels_of(one: DataResult) -> Sequence[LinePanel | ScatterPanel]:
    """The panels of a data set: a grid has lines, a search has dots."""
    varying = varying_fields(one)
    if one.space.search != "grid":
        others = [field for field in varying if field not in ("regime", "learning_rate")]
        return [ScatterPanel(field) for field in ("learning_rate", *others)]
    numbers = [field for field in varying if field not in ("seed", "regime")]
    wanted = [field for field in ("learning_rate", "weight_decay", "memory") if field in numbers]
    x = [*wanted, *numbers, "learning_rate"][0]
    line = next((field for field in ("memory", "queries", "adapter_rank") if field in numbers and field != x), "memory")
    rest = [field for field in numbers if field not in (x, line)]
    tokens = [trial.configuration for trial in one.trials if trial.configuration.regime != "head"]
    settings = sorted({tuple(getattr(each, field) for field in rest) for each in tokens or []}) or [()]
    if not tokens:
        rest = []
    return [LinePanel(x, line, dict(zip(rest, values, strict=True))) for values in settings[:MOST_PANELS]]


def varying_fields(one: DataResult) -> list[str]:
    """The fields in which the configurations of a data set differ; those of tokens without heads, which have none."""
    everyone = [trial.configuration for trial in one.trials]
    return [field for field in FIELDS if len(values_of(everyone, field)) > 1]


def line_key(trial: Trial, field: str) -> float:
    """Sorts the lines: heads first."""
    return -1.0 if trial.configuration.regime == "head" else float(getattr(trial.configuration, field))


def color(one: DataResult, trial: Trial, field: str) -> Any:
    """The colour of a trial by one of its fields, in equal steps of a scale."""
    if trial.configuration.regime == "head":
        return HEAD
    values = sorted({getattr(t.configuration, field) for t in one.trials if t.configuration.regime != "head"})
    place = values.index(getattr(trial.configuration, field)) / max(1, len(values) - 1)
    return matplotlib.colormaps[SCALE](0.2 + 0.75 * place)


def alive(trial: Trial) -> bool:
    """Whether there is an accuracy to draw."""
    return trial.state != "diverged" and trial.last is not None


def dot(axes: Axes, x: float, aside: float, trial: Trial, paint: Any, one: DataResult) -> None:
    """The dot of a trial, `aside` points right of its place: hollow if it was stopped, with a ring if it was chosen.

    The first seed of a setting carries the bar of its interval.
    """
    assert trial.last
    y, place = 100 * trial.last.top1, moved_right(axes, aside)
    face = paint if trial.state == "finished" else PAPER
    (mark,) = axes.plot([x], [y], "o", markersize=DOT, markerfacecolor=face, markeredgecolor=paint, zorder=4)
    mark.set_transform(place)
    setting = None if one.choice is None else one.choice.setting_of(trial.configuration)
    if one.choice is None or setting is None or trial is not setting.trials[0]:
        return
    (bar,) = axes.plot(
        [x, x], [100 * end for end in setting.interval], color=paint, linewidth=1.1, alpha=0.55, zorder=2
    )
    bar.set_transform(place)
    for special, edge in ((one.choice.best, MUTED), (one.choice.chosen, INK)):
        if setting is special:
            ring: Any = {"markersize": 11, "markerfacecolor": "none", "markeredgecolor": edge, "zorder": 5}
            axes.plot([x], [y], "o", **ring)[0].set_transform(place)
    if setting is one.choice.chosen:
        box: Any = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.6, "alpha": 0.85}
        style: Any = {"textcoords": "offset points", "ha": "right", "va": "center", "fontsize": 8, "zorder": 6}
        axes.annotate(f"{y:.1f}", (x, y), (aside - 9, 0), bbox=box, **style)


def moved_right(axes: Axes, points: float) -> Transform:
    """Where data stand, moved to the right by so many points."""
    figure: Any = axes.get_figure()
    return axes.transData + ScaledTranslation(points / 72, 0, figure.dpi_scale_trans)


def draw_head(axes: Axes, one: DataResult) -> None:
    """The best head alone as a line across, with its 95 % interval as a band."""
    head = None if one.choice is None else one.choice.head
    if head is not None:
        low, high = (100 * end for end in head.interval)
        axes.axhspan(low, high, color=HEAD, alpha=0.1, linewidth=0, zorder=0)
        axes.axhline(100 * head.top1, color=HEAD, linewidth=1.2, linestyle=(0, (5, 3)), zorder=1)


def titles_of(specs: Sequence[str]) -> list[str]:
    """The data by name, a folder without what lies before it; of two that are called alike, with it."""
    paths = [Path(spec.removeprefix("folder:")) for spec in specs]
    names = [path.name or str(path) for path in paths]
    return [
        name if names.count(name) == 1 else f"{path.parent.name}/{name}"
        for path, name in zip(paths, names, strict=True)
    ]


def asides(trials: Sequence[Trial], field: str, point: float) -> list[float]:
    """How many points each dot stands to the right of its value, so that dots hide each other little.

    trials: best first; the first of each value, so also the winner, stands at its value. point: percent per point.
    """
    taken: dict[float, list[tuple[float, float]]] = {}
    found = []
    for trial in trials:
        assert trial.last
        others, y = taken.setdefault(getattr(trial.configuration, field), []), 100 * trial.last.top1 / point

        def nearest(aside: float, y: float = y, others: list[tuple[float, float]] = others) -> float:
            return min((math.hypot(aside - there, y - height) for there, height in others), default=math.inf)

        tried = [sign * DOT * number for number in range(4) for sign in (1, -1)]
        aside = next((one for one in tried if nearest(one) >= DOT), None)
        found.append(max(tried, key=nearest) if aside is None else aside)
        others.append((found[-1], y))
    return found


def draw_crosses(axes: Axes, one: DataResult, trials: Sequence[Trial], field: str, line: str) -> None:
    """A cross for each trial that diverged, above each other at the bottom; one far outside stands at the edge."""
    placed = crosses(trials, field, line)
    step = cross_step(max((row for _, _, row in placed), default=0))
    for trial, x, row in placed:
        style: Any = {"transform": axes.get_xaxis_transform(), "clip_on": False, "markeredgewidth": 1.4}
        axes.plot([x], [0.02 + step * row], "x", color=color(one, trial, line), markersize=6, zorder=4, **style)
    for edge in {x for trial, x, _ in placed if getattr(trial.configuration, field) != x}:
        there = [(getattr(trial.configuration, field), row) for trial, x, row in placed if x == edge]
        values = [value for value, _ in there if value != edge]
        told = " to ".join(f"{value:.2g}" for value in sorted({min(values), max(values)}))
        right = values[0] > edge
        place: Any = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points", "va": "bottom"}
        axes.annotate(
            f"{told} \N{RIGHTWARDS ARROW}" if right else f"\N{LEFTWARDS ARROW} {told}",
            (edge, 0.02 + step * max(row for _, row in there)),
            (5 if right else -5, 5),
            ha="right" if right else "left",
            fontsize=8,
            color=MUTED,
            **place,
        )


def crosses(trials: Sequence[Trial], field: str, line: str) -> list[tuple[Trial, float, int]]:
    """Each trial that diverged, with its place on the axis and its row from the bottom."""
    low, high = reach(trials, field)
    height: dict[float, int] = {}
    found = []
    lost = [trial for trial in trials if not alive(trial)]
    for trial in sorted(lost, key=lambda one: (getattr(one.configuration, field), line_key(one, line))):
        x = min(max(getattr(trial.configuration, field), low), high)
        found.append((trial, x, height.get(x, 0)))
        height[x] = height.get(x, 0) + 1
    return found


def cross_step(rows: int) -> float:
    """From one row of crosses to the next, as a share of the panel's height; many rows draw together."""
    return min(0.045, 0.3 / max(1, rows))


def reach(trials: Sequence[Trial], field: str) -> tuple[float, float]:
    """What the axis shows of a field: all that trained, and on either side half as much again, a factor of 30 at least.

    A rate of 1e30 would leave no room for the others.
    """
    values = [getattr(trial.configuration, field) for trial in trials if alive(trial)]
    positive = [value for value in values if value > 0]
    if field not in LOGARITHMIC or not positive:
        return -math.inf, math.inf
    factor = max(30.0, math.sqrt(max(positive) / min(positive)))
    everything = [getattr(trial.configuration, field) for trial in trials]
    least = 0.0 if min(everything) == 0 else min(positive) / factor
    return least, max(positive) * factor


def scale(axes: Axes, field: str, values: Sequence[float]) -> None:
    """Rates and decays on a logarithmic axis, cells with their numbers as ticks."""
    different = sorted(set(values))
    if field in LOGARITHMIC and different and different[0] > 0:
        axes.set_xscale("log")
        if len(different) == 1:
            axes.set_xlim(different[0] / 3, different[0] * 3)
    elif field == "weight_decay" and len(different) > 1:
        axes.set_xscale("symlog", linthresh=different[1])
    if field not in LOGARITHMIC and len(different) <= FEW:
        axes.set_xticks(different, [f"{value:g}" for value in different])
    axes.margins(x=0.08)


def limits(one: DataResult, panels: Sequence[LinePanel | ScatterPanel]) -> tuple[float, float]:
    """From a little below the worst to a little above the best, in percent, and below it room for the crosses."""
    found = [100 * trial.last.top1 for trial in one.trials if trial.last is not None and alive(trial)]
    if not found:
        return 0.0, 100.0
    settings = () if one.choice is None else one.choice.settings
    ends = [100 * end for setting in settings for end in setting.interval]
    low, high = min(*found, *ends), max(*found, *ends)
    room = max(2.0, 0.12 * (high - low))
    low, high = max(-2.0, low - room), min(104.0, high + 1.3 * room)
    rows = [row for panel in panels for _, _, row in crosses(panel.trials(one), panel.x, "memory")]
    share = cross_step(max(rows)) * max(rows) if rows else 0.0
    return low - (high - low) * share / (1 - share), high


def legend(result: SweepResult) -> list[Line2D | Patch]:
    """What lines and marks mean, as far as they occur."""
    entries: dict[str, Line2D] = {}
    choices = [one.choice for one in result.data if one.choice is not None]
    trials = [trial for one in result.data for trial in one.trials]
    for one in result.data:
        panel = panels_of(one)[0]
        field = panel.line if isinstance(panel, LinePanel) else "memory"
        line = "-" if isinstance(panel, LinePanel) else "none"
        for trial in sorted(one.trials, key=lambda each: line_key(each, field)):
            head = trial.configuration.regime == "head"
            label = "head alone" if head else f"{WORDS[field]}: {getattr(trial.configuration, field):g}"
            style: Any = {"color": color(one, trial, field), "marker": "o", "markersize": 5, "linestyle": line}
            entries.setdefault(label, Line2D([], [], label=label, **style))
    entries = thinned(entries)
    marks: list[tuple[str, bool, str, float]] = [
        ("chosen", bool(choices), INK, 10),
        ("highest", any(choice.best is not choice.chosen for choice in choices), MUTED, 10),
        ("stopped early", any(trial.state == "stopped" for trial in trials), MUTED, 5),
    ]
    for label, used, paint, size in marks:
        if used:
            hollow: Any = {"markerfacecolor": "none", "markeredgecolor": paint, "markersize": size}
            entries[label] = Line2D([], [], marker="o", linestyle="none", label=label, **hollow)
    if any(trial.state == "diverged" for trial in trials):
        entries["diverged"] = Line2D([], [], marker="x", linestyle="none", color=MUTED, label="diverged")
    found: list[Line2D | Patch] = list(entries.values())
    if any(choice.head is not None for choice in choices):
        found.append(Line2D([], [], color=HEAD, linewidth=1.2, linestyle=(0, (5, 3)), label="best head alone"))
        found.append(Patch(facecolor=HEAD, alpha=0.15, label="its interval"))
    if choices:
        found.append(Line2D([], [], color=MUTED, linewidth=1.1, label="95 % interval"))
    return found


def thinned(entries: dict[str, Line2D], most: int = 6) -> dict[str, Line2D]:
    """A few of many colours, evenly: the scale is seen from these."""
    if len(entries) <= most:
        return entries
    labels = list(entries)
    chosen = [labels[round(number * (len(labels) - 1) / (most - 1))] for number in range(most)]
    return {label: entries[label] for label in dict.fromkeys(chosen)}
