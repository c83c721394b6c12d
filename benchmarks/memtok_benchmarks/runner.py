"""Runs the rows of the benchmarks one after the other, or profiles one with torch's profiler."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from memtok.errors import Argument, MemtokError
from memtok.training.device import kept_gpu_state
from memtok_benchmarks import floor, machine
from memtok_benchmarks.report import Report
from memtok_benchmarks.rows import ROWS
from memtok_benchmarks.scene import Scene, make_vit
from memtok_benchmarks.sizes import Sizes

WARMUP = 2
PROFILED_STEPS = 3


def check_device(sizes: Sizes) -> None:
    """MemtokError unless this machine has the device."""
    if sizes.device == "cuda" and not torch.cuda.is_available():
        raise MemtokError("expected a CUDA device, found none on this machine; use --device cpu", argument="device")


def run(
    names: Sequence[str],
    sizes: Sizes,
    *,
    command: str = "memtok bench",
    started: Callable[[str], None] = lambda name: None,
    finished: Callable[[Report, str], None] = lambda report, name: None,
) -> Report:
    """Measures the rows `names` in order and returns their report.

    started, finished: called before and after each row; the report given to `finished` has all rows so far. The number
    of torch's threads and its random generators are restored afterwards.
    """
    check_rows(names)
    check_device(sizes)
    with kept_torch_state(sizes.device):
        report = Report(machine.describe(sizes), sizes, floors(sizes), command)
        for name in names:
            started(name)
            begun = time.perf_counter()
            with Scene(sizes) as scene:
                report.rows[name] = ROWS[name].run(scene)
            report.seconds[name] = time.perf_counter() - begun
            gc.collect()
            finished(report, name)
    return report


@contextmanager
def kept_torch_state(device: str) -> Iterator[None]:
    """Restores the number of torch's threads and its random generators when the block ends."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]), kept_gpu_state(torch.device(device)):
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def check_rows(names: Sequence[str]) -> None:
    """MemtokError unless all of them are rows, each once."""
    for name in names:
        if name not in ROWS:
            raise MemtokError(f"expected {Argument('rows')} among {', '.join(ROWS)}, found {name!r}; choose from these")
    if not names or len(set(names)) != len(names):
        raise MemtokError(f"expected each row once, found {', '.join(names) or 'none'}; remove the repetition")


def floors(sizes: Sizes) -> dict[str, float]:
    """The floors of a model of these sizes."""
    with torch.device("meta"):  # shapes without numbers
        vit = make_vit(sizes)
    return floor.table(
        floor.Geometry.of(vit),
        cells=sizes.serving_cells,
        training_cells=sizes.training_cells,
        classes=sizes.classes,
        batch=sizes.batch,
    )


def profile(name: str, sizes: Sizes, *, operators: int = 25) -> str:
    """torch.profiler's table of the operators that take the most time in memtok's own step of row `name`.

    Raises MemtokError for a row that has none.
    """
    check_rows([name])
    check_device(sizes)
    make = ROWS[name].profiled
    if make is None:
        known = ", ".join(row for row, entry in ROWS.items() if entry.profiled)
        raise MemtokError(f"expected a row with a step to profile ({known}), found {name!r}; choose one of these")
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as watch

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if sizes.device == "cuda" else [])
    with kept_torch_state(sizes.device), Scene(sizes) as scene:
        step = make(scene)
        for _ in range(WARMUP):
            step()
        with watch(activities=activities, acc_events=True) as watched:
            for _ in range(PROFILED_STEPS):
                step()
            scene.synchronize()
    key = "self_cuda_time_total" if sizes.device == "cuda" else "self_cpu_time_total"
    table: str = watched.key_averages().table(sort_by=key, row_limit=operators, max_name_column_width=48)
    return table
