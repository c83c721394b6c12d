"""The rows that can be asked for. A new one is a module, an entry here and its name in memtok_benchmarks.sizes."""

from __future__ import annotations

from functools import partial

from memtok_benchmarks import contenders
from memtok_benchmarks.lines import Row
from memtok_benchmarks.rows import (
    files,
    growth,
    inference,
    loading,
    many,
    recompilations,
    sweep,
    throughput,
    traces,
    training,
)

ROWS: dict[str, Row] = {
    "training": Row(title="training step", run=training.training, profiled=contenders.memtok_step),
    "memory": Row(title="peak memory of a training step", run=training.memory, profiled=contenders.memtok_step),
    "inference": Row(title="inference with many tasks", run=inference.inference, profiled=inference.profiled),
    "sweep": Row(
        title="many configurations of one task",
        run=sweep.sweep,
        profiled=lambda scene: partial(sweep.together, tasks=scene.sizes.configurations)(scene),
    ),
    "traces": Row(title="second epoch from kept traces", run=traces.traces),
    "loading": Row(title="loading images", run=loading.loading),
    "compile": Row(title="recompilations", run=recompilations.recompilations),
    "files": Row(title="files", run=files.files),
    "many": Row(title="a thousand tasks", run=many.many),
    "throughput": Row(
        title="images per second over the batch", run=throughput.throughput, profiled=contenders.memtok_step
    ),
    "growth": Row(title="growth of the cost", run=growth.growth),
}
