"""Row `sweep`: configurations of one task trained at once, over as many runs one after another in the dense form.

Timed: one step of `Trainer`, as `train_together` makes it again and again, on 24 configurations of one task (10 cells,
100 classes, each with its own rate, optimizer and clipping); and one step of the dense masked form with gradients
everywhere, which is counted 24 times, for 24 runs one after another repeat it.
"""

from __future__ import annotations

from functools import partial

from memtok_benchmarks import contenders, floor
from memtok_benchmarks.contenders import Contender
from memtok_benchmarks.lines import Line, RowResult, run_race
from memtok_benchmarks.scene import Scene


def sweep(scene: Scene) -> RowResult:
    """The step of all over the sum of steps, and over the trunk in the notes."""
    count, sizes = scene.sizes.configurations, scene.sizes
    race = run_race(
        scene,
        {
            "trunk": contenders.TRUNK,
            "memtok": Contender(label="memtok", make=partial(contenders.together, tasks=count)),
            "one": contenders.STEPS["memtok"],
            "reproduction": contenders.STEPS["reproduction"],
        },
    )
    alone = race.entry("one", "memtok, one run after another", "reproduction")
    geometry = floor.Geometry.of(scene.backbone.vit)
    least = floor.training(geometry, count, sizes.training_cells, sizes.classes, sizes.batch)
    over_trunk = race.timings["memtok"].over(race.timings["trunk"])
    line = Line(
        what=f"sweep of {count} configurations of 1 task, over {count} runs in the dense masked form",
        memtok=race.entry("memtok", "memtok", "reproduction", scale=1 / count),
        peers=(alone,),
        must=sizes.asked(1 / 15),
        aim=sizes.asked(1 / 22),
        digits=4,
    )
    ratio = 1 / (line.memtok.value or 1.0)
    note = (
        f"Sweep: {count} configurations take 1 / {ratio:.1f} of {count} runs with gradients everywhere, one after "
        f"another (one dense step was measured, times {count}), and {over_trunk:.2f} trunk passes a step; arithmetic "
        f"alone is {least:.2f}."
    )
    return RowResult(lines=(line,), notes=(note,), data={"floor": least, "over_trunk": over_trunk, **race.to_json()})
