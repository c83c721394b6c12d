"""Row `traces`: an epoch of a run from cached traces, over an epoch of a run that runs the trunk.

Both are runs of a user: JPEG files in a temporary folder, the feed and the step of memtok's own training loop, augment
none, no validation. Whole epochs are timed in turns, their start included, and divided by their steps. Live: files are
decoded and transformed, the trunk runs, the task is trained. Kept: the same from traces on disk that were cached
before, which the system still has in memory (its page cache is warm).
"""

from __future__ import annotations

import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from memtok.data import DataSource, open_data
from memtok.errors import MemtokError
from memtok.traces import Manifest, shown_bytes
from memtok.training.feed import Feed, KeptFeed
from memtok_benchmarks import floor
from memtok_benchmarks.lines import Entry, Line, RowResult
from memtok_benchmarks.photographs import CLASSES, write_photographs
from memtok_benchmarks.runs import runner
from memtok_benchmarks.scene import Scene
from memtok_benchmarks.sizes import Sizes
from memtok_benchmarks.timing import Timing, race

FACTORS = (1, 2, 4)  # times the batch of the run
BOUND = 2  # the one of the bounds: at a batch of 32 that is the batch of the default recipe
EPOCH = 8  # batches of the run in the training part


def traces(scene: Scene) -> RowResult:
    """One line per batch size."""
    sizes = scene.sizes
    lines: list[Line] = []
    notes: list[str] = []
    data: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write_photographs(folder / "photographs", EPOCH * sizes.batch, sizes.seed)
        source = open_data(f"folder:{folder / 'photographs'}", data_dir=folder / "data")
        record = fill(scene, source, folder / "traces")
        for factor in FACTORS:
            batch = factor * sizes.batch
            timings = at(scene, source, folder / "traces", batch, alone=factor == BOUND)
            lines.append(line_of(sizes, factor, timings))
            data[str(batch)] = {
                "floor": least(scene, batch),
                "timings": {name: timing.to_json() for name, timing in timings.items()},
            }
            if factor == BOUND:
                notes.append(explained(batch, timings, least(scene, batch)))
    notes.append(
        f"Kept traces: {shown_bytes(record)} an image on disk, page cache warm; the JPEG files have "
        f"{shown_bytes(size)} on average."
    )
    return RowResult(lines=tuple(lines), notes=tuple(notes), data=data | {"record_bytes": record, "jpeg_bytes": size})


def line_of(sizes: Sizes, factor: int, timings: dict[str, Timing]) -> Line:
    """The line of one batch size; the bounds belong to one of them."""
    bounded = factor == BOUND
    return Line(
        what=f"second epoch from kept traces, 1 task, {sizes.training_cells} cells, batch {factor * sizes.batch}, "
        "over a live epoch",
        memtok=Entry(label="memtok", value=timings["kept"].over(timings["live"])),
        must=sizes.asked(1 / 8) if bounded else None,
        aim=sizes.asked(1 / 12) if bounded else None,
        digits=3,
    )


def explained(batch: int, timings: dict[str, Timing], arithmetic: float) -> str:
    """Where the time of the line with the bounds goes."""
    unit = timings["live, no decoding"]
    without, alone = timings["kept"].over(unit), timings["kept, no reading"].over(unit)
    return (
        f"Kept traces: the bounds stand at batch {batch}, twice that of the run; with a batch of 32 that is the batch "
        f"of the default recipe. Over a live step on images in memory, without decoding, it is {without:.3f}, "
        f"and {alone:.3f} with the traces in memory as well; arithmetic alone is {arithmetic:.3f}."
    )


def least(scene: Scene, batch: int) -> float:
    """What arithmetic says, without decoding and reading."""
    return floor.from_traces(floor.Geometry.of(scene.backbone.vit), 1, scene.sizes.training_cells, CLASSES, batch)


def at(scene: Scene, source: DataSource, folder: Path, batch: int, *, alone: bool) -> dict[str, Timing]:
    """Seconds per step at one batch size, `live` and `kept`. alone: also of steps on what lies in memory."""
    live = runner(scene, source, batch, None)
    kept = runner(scene, source, batch, folder)
    with closing(kept.feed), closing(live.feed):
        check_filled(kept.feed, source)
        # Epochs of both: a call begins with a loader and an order of its own, and both pay that once for as many steps.
        runs = {"live": live.epochs(), "kept": kept.epochs()}
        counts = {"live": live.epoch, "kept": kept.epoch}
        if alone:
            runs |= {"live, no decoding": live.alone(), "kept, no reading": kept.alone()}
        found = race(runs, rounds=scene.sizes.rounds, synchronize=scene.synchronize)
    return {
        name: Timing(tuple(seconds / counts.get(name, 1) for seconds in timing.seconds))
        for name, timing in found.items()
    }


def fill(scene: Scene, source: DataSource, folder: Path) -> int:
    """Caches the traces of all images, as a run does before its first step, and returns the bytes of one."""
    filling = runner(scene, source, scene.sizes.batch, folder)
    with closing(filling.feed):
        return check_filled(filling.feed, source).record_bytes


def check_filled(feed: Feed, source: DataSource) -> Manifest:
    """The manifest of the store. MemtokError unless it has every image: else an epoch would not be one from traces."""
    assert isinstance(feed, KeptFeed)
    store = feed.train.store
    if store.kept < len(source.train):
        raise MemtokError(
            f"expected room for the traces of {len(source.train)} images ("
            f"{shown_bytes(len(source.train) * store.manifest.record_bytes)}) in half of what is free for temporary "
            f"files, found room for {store.kept}; free some, or set TMPDIR"
        )
    return store.manifest
