"""Rows `training` and `memory`: one step of one task, its time and its peak memory, beside everybody else's step.

Timed: zeroed gradients, forward pass, cross-entropy, backward pass, clipping by norm and AdamW, on images and labels
that lie in memory. memtok's is `Trainer.step`, the step of its training loop. Sizes: ViT-B/32, 224 px, float32,
batch 32, 10 cells, 100 classes, unless told otherwise. The unit is the trunk's own forward pass without gradient.
"""

from __future__ import annotations

from memtok_benchmarks import floor
from memtok_benchmarks.contenders import ALL, STEPS, TRUNK
from memtok_benchmarks.lines import Entry, Line, RowResult, run_race
from memtok_benchmarks.memory import measure
from memtok_benchmarks.scene import Scene


def what(scene: Scene, quantity: str) -> str:
    """The first column."""
    sizes = scene.sizes
    return f"{quantity}, 1 task, {sizes.training_cells} cells, batch {sizes.batch}, over the trunk"


def training(scene: Scene) -> RowResult:
    """The time of a step over that of the trunk."""
    race = run_race(scene, {"trunk": TRUNK, **STEPS})
    entries = {name: race.entry(name, contender.label, "trunk") for name, contender in STEPS.items()}
    sizes, geometry = scene.sizes, floor.Geometry.of(scene.backbone.vit)
    least = floor.training(geometry, 1, sizes.training_cells, sizes.classes, sizes.batch)
    line = Line(
        what=what(scene, "training step"),
        memtok=entries.pop("memtok"),
        peers=tuple(entries.values()),
        must=sizes.asked(1.15),
        aim=sizes.asked(1.05),
    )
    note = f"Training step: the arithmetic alone is {least:.3f} of the trunk's."
    return RowResult(lines=(line,), notes=(note,), data={"floor": least, **race.to_json()})


def memory(scene: Scene) -> RowResult:
    """The peak memory of a step over that of inference of the trunk, each in a process of its own."""
    peaks, entries = {}, {}
    for name, contender in ALL.items():
        if contender.gap:
            entries[name] = Entry(label=contender.label, value=None, note=contender.gap)
            continue
        peaks[name] = measure(name, scene.sizes)
        entries[name] = Entry(label=contender.label, value=peaks[name].bytes / peaks["trunk"].bytes)
    unit = entries.pop("trunk")
    line = Line(
        what=what(scene, "peak memory of a training step"),
        memtok=entries.pop("memtok"),
        peers=tuple(entries.values()),
        must=scene.sizes.asked(1.5),
        aim=scene.sizes.asked(1.2),
    )
    notes = [f"Peak memory of the {unit.label}: {peaks['trunk'].bytes / 1e6:,.0f} MB, weights included."]
    if not all(peak.reset for peak in peaks.values()):
        notes.append("The high-water mark could not be set back here: building the models counts.")
    return RowResult(
        lines=(line,), notes=tuple(notes), data={"bytes": {name: peak.to_json() for name, peak in peaks.items()}}
    )
