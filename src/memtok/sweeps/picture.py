"""The plot of a sweep, as PNG: validation accuracy over the learning rate, or over every axis of a search.

A grid gives a panel per data set and setting of the axes that are no line; a line is a number of cells, small dots are
seeds, the line their mean, thin where trials that were stopped early are in it. A search gives a panel per axis and
data set. Bars are the 95 % interval that so many validation images allow; the line across with its band is the best
head alone. A hollow mark was stopped early, a cross at the bottom diverged, a black ring is the chosen one, a grey one
the highest.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.transforms import ScaledTranslation

from memtok import plots
from memtok.parts import OPTIONS
from memtok.plots import INK, MUTED, PAPER
from memtok.sweeps.result import DataResult, SweepResult
from memtok.sweeps.space import FIELDS, OPTION_OF, applies, values_of
from memtok.sweeps.trials import Trial

HEAD = "#c2571a"  # a head has no cells, and so no place on the scale
HEAD_LINE: Any = {"color": HEAD, "linewidth": 1.2, "linestyle": (0, (5, 3))}
SCALE = "viridis_r"  # few cells are light, many are dark
MOST_PANELS = 12  # of a data set; more cannot be read
FEW = 8  # values of an axis: dots of one value may stand beside each other
DOT = 5.0  # points across
BESIDE = 3.5  # points from one line to the next, so that bars of one value stand beside each other
PANEL_HEIGHT = 150.0  # points, about; it decides only how near to each other two dots are
MOST_COLORS = 6  # of a scale in the legend
LOGARITHMIC = ("learning_rate", "weight_decay")
WORDS = {
    **{option.name: option.heading for option in OPTIONS},
    "learning_rate": "learning rate",
    "weight_decay": "weight decay",
    "seed": "seed",
    "regime": "regime",
}


def draw(result: SweepResult, path: str | Path) -> None:
    """Writes the plot of a sweep, atomically; the same sweep gives the same bytes."""
    groups = [panels_of(one, name) for one, name in zip(result.data, names_of(result), strict=True)]
    across = {1: 1, 2: 2, 4: 2}.get(max(map(len, groups)), 3)
    cells = [(panel, limits(group)) for group in groups for panel in [*group, *[None] * (-len(group) % across)]]
    with plots.new_figure(max(6.4, 1.2 + 3.5 * across), 0.9 + 2.9 * len(cells) / across) as figure:
        everyone = plots.panels(figure, len(cells), across)
        for number, (axes, (panel, ends)) in enumerate(zip(everyone, cells, strict=True)):
            if panel is None:
                axes.set_visible(False)
                continue
            panel.draw(axes, *ends)
            if number % across == 0:
                axes.set_ylabel(f"top-1 of {panel.one.plan.validation_images:,} validation images, %")
        plots.legend(figure, legend_handles(groups), min(6, 3 + across), fontsize=8)
        plots.write_png(figure, path)


@dataclass(frozen=True)
class Panel:
    """Accuracy of trials of a data set, best first, over the field `x` of their configurations.

    series: the field that colours stand for. lines: whether the means of each colour are joined, as in a grid.
    """

    one: DataResult
    title: str
    x: str
    series: str
    lines: bool
    trials: Sequence[Trial]

    def draw(self, axes: Axes, low: float, high: float) -> None:
        """Draws everything; low and high end the axis of accuracy, in percent."""
        axes.set_ylim(low, high)
        if low < 0:  # room for crosses, not for accuracies
            axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= high])
        self.draw_head(axes)
        trained = [trial for trial in self.trials if trains(trial)]
        if self.lines:
            keys = sorted({self.key(trial) for trial in self.trials})
            beside = {key: BESIDE * (number - (len(keys) - 1) / 2) for number, key in enumerate(keys)}
            for key in keys:
                self.draw_means(axes, [trial for trial in trained if self.key(trial) == key], beside[key])
            asides = [beside[self.key(trial)] for trial in trained]
        else:
            few = len({self.value(trial) for trial in self.trials}) <= FEW
            asides = self.spread(trained, (high - low) / PANEL_HEIGHT) if few else [0.0] * len(trained)
        for trial, aside in zip(trained, asides, strict=True):
            self.draw_dot(axes, trial, aside)
        self.draw_crosses(axes)
        self.set_scale(axes)
        plots.title(axes, self.title)
        axes.set_xlabel(WORDS[self.x])
        axes.grid(axis="y")

    def value(self, trial: Trial) -> float:
        """Where a trial is on the axis."""
        return float(getattr(trial.configuration, self.x))

    def key(self, trial: Trial) -> float:
        """The value of its series, by which they are sorted: heads first, which have none."""
        used = applies(self.series, trial.configuration.regime)
        return float(getattr(trial.configuration, self.series)) if used else -1.0

    def color(self, trial: Trial) -> Any:
        """The colour of its series, in equal steps of a scale over the data set."""
        key = self.key(trial)
        keys = sorted({self.key(each) for each in self.one.trials} - {-1.0})
        return HEAD if key < 0 else matplotlib.colormaps[SCALE](0.2 + 0.75 * keys.index(key) / max(1, len(keys) - 1))

    def draw_head(self, axes: Axes) -> None:
        """The best head alone as a line across, with its 95 % interval as a band."""
        head = None if self.one.choice is None else self.one.choice.head
        if head is not None:
            low, high = (100 * end for end in head.interval)
            axes.axhspan(low, high, color=HEAD, alpha=0.1, linewidth=0, zorder=0)
            axes.axhline(100 * head.top1, zorder=1, **HEAD_LINE)

    def draw_means(self, axes: Axes, trials: Sequence[Trial], aside: float) -> None:
        """The line through the means over the seeds of one series, `aside` points to the right."""
        thin: Any = {"linewidth": 0.8, "alpha": 0.5}
        for states, style in ((("finished", "stopped"), thin), (("finished",), {})):
            found: dict[float, list[float]] = {}
            for trial in sorted(trials, key=self.value):
                if trial.state in states:
                    found.setdefault(self.value(trial), []).append(accuracy(trial))
            if found:
                means = [fmean(values) for values in found.values()]
                plot_aside(axes, aside, list(found), means, color=self.color(trials[0]), zorder=3, **style)

    def draw_dot(self, axes: Axes, trial: Trial, aside: float) -> None:
        """The dot of a trial, `aside` points right of its value: hollow if it was stopped.

        The best seed of a setting carries the bar of its interval, and the ring of one that is chosen or the highest.
        """
        x, y, paint = self.value(trial), accuracy(trial), self.color(trial)
        face = paint if trial.state == "finished" else PAPER
        plot_aside(axes, aside, [x], [y], marker="o", ms=DOT, mfc=face, mec=paint, zorder=4)
        choice = self.one.choice
        setting = None if choice is None else choice.setting_of(trial.configuration)
        if choice is None or setting is None or trial is not setting.trials[0]:
            return
        ends = [100 * end for end in setting.interval]
        plot_aside(axes, aside, [x, x], ends, color=paint, linewidth=1.1, alpha=0.55, zorder=2)
        if setting in (choice.best, choice.chosen):
            edge = INK if setting is choice.chosen else MUTED
            plot_aside(axes, aside, [x], [y], marker="o", ms=11, mfc="none", mec=edge, zorder=5)
        if setting is choice.chosen:
            box: Any = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.6, "alpha": 0.85}
            style: Any = {"textcoords": "offset points", "ha": "right", "va": "center", "fontsize": 8, "zorder": 6}
            axes.annotate(f"{y:.1f}", (x, y), (aside - 9, 0), bbox=box, **style)

    def spread(self, trials: Sequence[Trial], point: float) -> list[float]:
        """How many points each dot stands to the right of its value, so that dots hide each other little.

        trials: best first; the first of each value, so also the chosen one, stands at its value. point: percent per
        point.
        """
        taken: dict[float, list[tuple[float, float]]] = {}
        found = []
        for trial in trials:
            others, y = taken.setdefault(self.value(trial), []), accuracy(trial) / point
            tried = [sign * DOT * number for number in range(4) for sign in (1, -1)]
            free = {aside: min((math.dist((aside, y), other) for other in others), default=math.inf) for aside in tried}
            aside = next((each for each in tried if free[each] >= DOT), max(tried, key=free.__getitem__))
            found.append(aside)
            others.append((aside, y))
        return found

    def crosses(self) -> list[tuple[Trial, float, int]]:
        """Each trial that diverged, with its place on the axis and its row from the bottom."""
        low, high = self.reach()
        rows: Counter[float] = Counter()
        found = []
        diverged = [trial for trial in self.trials if not trains(trial)]
        for trial in sorted(diverged, key=lambda each: (self.value(each), self.key(each))):
            x = min(max(self.value(trial), low), high)
            found.append((trial, x, rows[x]))
            rows[x] += 1
        return found

    def reach(self) -> tuple[float, float]:
        """What the axis shows: all that trained, and on either side half as much again, a factor of 30 at least.

        A rate of 1e30 would leave no room for the others.
        """
        values = [self.value(trial) for trial in self.trials if trains(trial)]
        positive = [value for value in values if value > 0]
        if self.x not in LOGARITHMIC or not positive:
            return -math.inf, math.inf
        factor = max(30.0, math.sqrt(max(positive) / min(positive)))
        zero = any(self.value(trial) == 0 for trial in self.trials)
        return 0.0 if zero else min(positive) / factor, max(positive) * factor

    def draw_crosses(self, axes: Axes) -> None:
        """A cross for each trial that diverged, above each other at the bottom; those outside stand at the edge."""
        crosses = self.crosses()
        step = cross_step(crosses)
        outside: dict[float, list[float]] = {}  # the edge, and the values that lie beyond
        top: dict[float, float] = {}
        for trial, x, row in crosses:
            top[x] = 0.02 + step * row
            style: Any = {"transform": axes.get_xaxis_transform(), "clip_on": False, "mew": 1.4}
            axes.plot([x], [top[x]], "x", color=self.color(trial), ms=6, zorder=4, **style)
            if self.value(trial) != x:
                outside.setdefault(x, []).append(self.value(trial))
        for edge, values in outside.items():
            told = " to ".join(f"{value:.2g}" for value in sorted({min(values), max(values)}))
            right = values[0] > edge
            text = f"{told} \N{RIGHTWARDS ARROW}" if right else f"\N{LEFTWARDS ARROW} {told}"
            place: Any = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points", "va": "bottom"}
            side: Any = {"xytext": (5 if right else -5, 5), "ha": "right" if right else "left"}
            axes.annotate(text, (edge, top[edge]), fontsize=8, color=MUTED, **place, **side)

    def set_scale(self, axes: Axes) -> None:
        """Rates and decays on a logarithmic axis, cells with their numbers as ticks."""
        values = sorted({self.value(trial) for trial in self.trials})
        if self.x not in LOGARITHMIC:
            if len(values) <= FEW:
                axes.set_xticks(values, [f"{value:g}" for value in values])
        elif values[0] > 0:
            axes.set_xscale("log")
            if len(values) == 1:
                axes.set_xlim(values[0] / 3, values[0] * 3)
        elif len(values) > 1:
            axes.set_xscale("symlog", linthresh=values[1])
        axes.margins(x=0.08)


def panels_of(one: DataResult, name: str) -> list[Panel]:
    """The panels of a data set: a grid has lines, a search has dots and a panel per field that varies."""
    everyone = [trial.configuration for trial in one.trials]
    numbers = [field for field in FIELDS if len(values_of(everyone, field)) > 1 and field not in ("seed", "regime")]
    if one.space.search != "grid":
        varying = [field for field in FIELDS if len(values_of(everyone, field)) > 1]
        found = []
        for x in ("learning_rate", *(field for field in varying if field not in ("regime", "learning_rate"))):
            searched = set(one.order)  # heads have no tokens: over the cells only those of the search
            trials = [trial for trial in one.trials if x not in OPTION_OF or trial.configuration in searched]
            found.append(Panel(one, f"{name}, by {WORDS[x]}", x, "memory", False, trials))
        return found
    wanted = [field for field in ("learning_rate", "weight_decay", "memory") if field in numbers]
    x = [*wanted, *numbers, "learning_rate"][0]
    series = next((each for each in OPTION_OF if each in numbers and each != x), "memory")
    rest = [field for field in numbers if field not in (x, series)]
    tokens = [each for each in everyone if not each.is_head]
    settings = sorted({tuple(getattr(each, field) for field in rest) for each in tokens}) or [()]
    found = []
    for values in settings[:MOST_PANELS]:
        fixed = dict(zip(rest, values, strict=False))  # no values where there are only heads
        words = [f"{WORDS[field]} {value:g}" for field, value in fixed.items()]
        trials = [trial for trial in one.trials if belongs(trial, fixed)]
        found.append(Panel(one, ", ".join([name, *words]), x, series, True, trials))
    return found


def belongs(trial: Trial, fixed: Mapping[str, Any]) -> bool:
    """Whether a trial has these values; a head, which has no tokens, belongs wherever they vary."""
    own = trial.configuration
    return all(getattr(own, field) == value for field, value in fixed.items() if applies(field, own.regime))


def trains(trial: Trial) -> bool:
    """Whether it did not diverge, so that there is an accuracy to draw."""
    return trial.state != "diverged" and trial.last is not None


def accuracy(trial: Trial) -> float:
    """In percent, of one that `trains`."""
    assert trial.last is not None
    return 100 * trial.last.top1


def plot_aside(axes: Axes, points: float, x: Sequence[float], y: Sequence[float], **style: Any) -> None:
    """Plots a line so many points right of where its values are."""
    figure: Any = axes.get_figure()
    (line,) = axes.plot(x, y, **style)  # with the plain transform, by which the limits of the axes are found
    line.set_transform(axes.transData + ScaledTranslation(points / 72, 0, figure.dpi_scale_trans))


def cross_step(crosses: Sequence[tuple[Trial, float, int]]) -> float:
    """From one row of crosses to the next, as a share of the panel's height; many rows draw together."""
    return min(0.045, 0.3 / max([1, *(row for _, _, row in crosses)]))


def limits(panels: Sequence[Panel]) -> tuple[float, float]:
    """From a little below the worst to a little above the best, in percent, and below it room for the crosses."""
    one = panels[0].one
    found = [accuracy(trial) for trial in one.trials if trains(trial)]
    if not found:
        return 0.0, 100.0
    settings = () if one.choice is None else one.choice.settings
    found += [100 * end for setting in settings for end in setting.interval]
    room = max(2.0, 0.12 * (max(found) - min(found)))
    low, high = max(-2.0, min(found) - room), min(104.0, max(found) + 1.3 * room)
    crosses = [cross for panel in panels for cross in panel.crosses()]
    share = cross_step(crosses) * max((row for _, _, row in crosses), default=0)
    return low - (high - low) * share / (1 - share), high


def names_of(result: SweepResult) -> list[str]:
    """The data by name, a folder without what lies before it; of two that are called alike, with it."""
    paths = [Path(one.data.removeprefix("folder:")) for one in result.data]
    names = [path.name or str(path) for path in paths]
    return [
        name if names.count(name) == 1 else f"{path.parent.name}/{name}"
        for path, name in zip(paths, names, strict=True)
    ]


def legend_handles(groups: Sequence[Sequence[Panel]]) -> list[Line2D | Patch]:
    """What lines and marks mean, as far as they occur."""
    series: dict[str, Line2D] = {}
    for panel in (group[0] for group in groups):
        style: Any = {"marker": "o", "markersize": 5, "linestyle": "-" if panel.lines else "none"}
        for trial in sorted(panel.one.trials, key=panel.key):
            value = getattr(trial.configuration, panel.series)
            lacks = "head alone" if trial.configuration.is_head else f"no {WORDS[panel.series]}"
            label = lacks if panel.key(trial) < 0 else f"{WORDS[panel.series]}: {value:g}"
            series.setdefault(label, Line2D([], [], label=label, color=panel.color(trial), **style))
    handles: list[Line2D | Patch] = list(series.values())
    if len(handles) > MOST_COLORS:  # the scale is seen from a few
        handles = [handles[round(each * (len(handles) - 1) / (MOST_COLORS - 1))] for each in range(MOST_COLORS)]
    choices = [group[0].one.choice for group in groups if group[0].one.choice is not None]
    states = {trial.state for group in groups for trial in group[0].one.trials}
    heads = any(choice.head is not None for choice in choices)
    hollow = {"marker": "o", "linestyle": "none", "markerfacecolor": "none"}
    entries: list[tuple[str, bool, Any]] = [
        ("chosen", bool(choices), {**hollow, "markeredgecolor": INK, "markersize": 10}),
        ("highest", any(each.best is not each.chosen for each in choices), {**hollow, "mec": MUTED, "ms": 10}),
        ("stopped early", "stopped" in states, {**hollow, "mec": MUTED, "ms": 5}),
        ("diverged", "diverged" in states, {"marker": "x", "linestyle": "none", "color": MUTED}),
        ("best head alone", heads, HEAD_LINE),
    ]
    handles += [Line2D([], [], label=label, **style) for label, used, style in entries if used]
    if heads:
        handles.append(Patch(facecolor=HEAD, alpha=0.15, label="its interval"))
    if choices:
        handles.append(Line2D([], [], color=MUTED, linewidth=1.1, label="95 % interval"))
    return handles
