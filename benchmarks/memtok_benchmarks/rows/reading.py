"""Row `reading`: one training step of a readout of all levels, live and on kept statistics.

Timed: `Trainer.step` of one task of regime head (all levels, default statistics, 100 classes), which has measured mean
and spread as in a run: on images in memory, so that the trunk runs, over the trunk's own pass; and on kept features and
statistics in memory, over one step of full fine-tuning with timm on the same number of images.
"""

from __future__ import annotations

from memtok_benchmarks import contenders
from memtok_benchmarks.contenders import STEPS, TRUNK, Contender
from memtok_benchmarks.lines import Line, RowResult, run_race
from memtok_benchmarks.scene import Scene


def reading(scene: Scene) -> RowResult:
    """A line for the live step and one for the kept one."""
    sizes = scene.sizes
    race = run_race(
        scene,
        {
            "trunk": TRUNK,
            "live": Contender(label="memtok", make=contenders.reading_step),
            "kept": Contender(label="memtok", make=contenders.kept_reading_step),
            "probe": STEPS["probe"],
            "full": STEPS["full"],
        },
    )
    what = f"training step, 1 readout of all levels, {sizes.classes} classes, batch {sizes.batch}"
    lines = (
        Line(
            what=f"{what}, over the trunk",
            memtok=race.entry("live", "memtok", "trunk"),
            peers=tuple(race.entry(name, STEPS[name].label, "trunk") for name in ("probe", "full")),
            must=sizes.asked(1.1),
        ),
        Line(
            what=f"{what}, on kept statistics, over a step of full fine-tuning",
            memtok=race.entry("kept", "memtok", "full"),
            must=sizes.asked(1 / 100),
            digits=4,
        ),
    )
    return RowResult(lines=lines, data=race.to_json())
