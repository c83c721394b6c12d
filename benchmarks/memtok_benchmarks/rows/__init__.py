"""The rows of the benchmarks by name. A new one is a module, an entry here and its name in memtok_benchmarks.sizes."""

from __future__ import annotations

from memtok_benchmarks import contenders
from memtok_benchmarks.lines import Row
from memtok_benchmarks.rows import (
    exported,
    files,
    folder,
    growth,
    inference,
    loading,
    many,
    reading,
    readouts,
    recompilations,
    sweep,
    throughput,
    traces,
    training,
)

ROWS: dict[str, Row] = {
    "training": Row(run=training.training, profiled=contenders.memtok_step),
    "memory": Row(run=training.memory, profiled=contenders.memtok_step),
    "inference": Row(run=inference.inference, profiled=inference.profiled),
    "readouts": Row(run=readouts.readouts, profiled=readouts.profiled),
    "reading": Row(run=reading.reading, profiled=contenders.kept_reading_step),
    "export": Row(run=exported.exported),
    "folder": Row(run=folder.folder),
    "sweep": Row(run=sweep.sweep, profiled=lambda scene: contenders.together(scene, scene.sizes.configurations)),
    "traces": Row(run=traces.traces),
    "loading": Row(run=loading.loading),
    "compile": Row(run=recompilations.recompilations),
    "files": Row(run=files.files),
    "many": Row(run=many.many),
    "throughput": Row(run=throughput.throughput, profiled=contenders.memtok_step),
    "growth": Row(run=growth.growth),
}
