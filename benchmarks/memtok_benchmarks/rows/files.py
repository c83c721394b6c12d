"""Row `files`: what one trained task takes on the disk. One cell, 100 classes. memtok's file is written and looked at;
the others are counted: numbers times their width.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from memtok.task import Task
from memtok_benchmarks import contenders, peers
from memtok_benchmarks.lines import Entry, Line, RowResult, does_not_run
from memtok_benchmarks.scene import Scene

FLOAT32 = 4


def files(scene: Scene) -> RowResult:
    """Megabytes (a million bytes)."""
    names = [f"class {index}" for index in range(scene.sizes.classes)]
    task = Task.create(scene.backbone, name="task", classes=names, memory=1, seed=scene.sizes.seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "task.safetensors"
        task.save(path)
        own = path.stat().st_size
    numbers = sum(parameter.numel() for parameter in task.parameters())
    backbone = sum(parameter.numel() for parameter in scene.backbone.vit.parameters())
    tuned = sum(parameter.numel() for parameter in contenders.fine_tuned(scene).parameters())
    sizes = {
        "reproduction's checkpoint": FLOAT32 * (backbone + numbers),
        "full fine-tuning": FLOAT32 * tuned,
        "linear probe": FLOAT32 * (task.head.weight.numel() + task.head.bias.numel()),
    }
    entries = [Entry(label=label, value=size / 1e6, note="counted") for label, size in sizes.items()]
    entries.insert(1, lora(scene))
    line = Line(
        what=f"task file, 1 cell, {scene.sizes.classes} classes, MB",
        memtok=Entry(label="memtok", value=own / 1e6),
        peers=tuple(entries),
        must=scene.sizes.asked(0.36),
    )
    return RowResult(lines=(line,), data={"bytes": {"memtok": own, **sizes}, "numbers": numbers})


def lora(scene: Scene) -> Entry:
    """The adapter of one task with its classifier."""
    label, gap = contenders.STEPS["lora"].label, contenders.STEPS["lora"].gap
    if gap:
        return Entry(label=label, value=None, note=gap)
    try:
        peers.seeded(scene)
        size = peers.LoRA(scene, ("task",)).adapter_bytes("task")
    except Exception as error:
        return Entry(label=label, value=None, note=does_not_run(error))
    return Entry(label=label, value=size / 1e6, note="counted")
