"""Row `loading`: whether loading is as fast as training, and the effect of channels-last memory.

The images are JPEG files in a temporary folder, decoded by as many workers as a run has by default. Timed are a whole
epoch of training, the same batches loaded only, and the same step on a batch in memory. If the same cores decode and
train, decoding adds to the time of an epoch; with a GPU it should not.

Channels-last concerns the patch embedding, the one convolution of a ViT. Timed is timm's own pass of the trunk with
images and weights laid out that way.
"""

from __future__ import annotations

import copy
import tempfile
from contextlib import closing
from pathlib import Path

import torch

from memtok.data import open_data
from memtok.traces import shown_bytes
from memtok.training.settings import default_workers
from memtok_benchmarks import contenders
from memtok_benchmarks.lines import Entry, Line, RowResult
from memtok_benchmarks.photographs import write_photographs
from memtok_benchmarks.runs import runner
from memtok_benchmarks.scene import Scene
from memtok_benchmarks.timing import Run, Timing, race

EPOCH = 8  # batches


def loading(scene: Scene) -> RowResult:
    """Loading beside training, and the trunk in two layouts of memory."""
    sizes = scene.sizes
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write_photographs(folder / "photographs", EPOCH * sizes.batch, sizes.seed)
        source = open_data(f"folder:{folder / 'photographs'}", data_dir=folder / "data")
        live = runner(scene, source, sizes.batch, None)
        with closing(live.feed):
            runs = {"epoch": live.epochs(), "loading": live.loading(), "step": live.alone()}
            found = race(runs, rounds=sizes.rounds, synchronize=scene.synchronize)
    seconds = {"epoch": EPOCH, "loading": EPOCH, "step": 1}  # steps of a call
    timings = {name: Timing(tuple(each / seconds[name] for each in found[name].seconds)) for name in found}
    layouts = {"channels-first": contenders.trunk(scene), "channels-last": channels_last(scene)}
    passes = race(layouts, rounds=sizes.rounds, synchronize=scene.synchronize)
    lines = (
        Line(
            what=f"an epoch of live training from JPEG files, batch {sizes.batch}, over its steps alone",
            memtok=Entry(label="memtok", value=timings["epoch"].over(timings["step"])),
        ),
        Line(
            what="images per second of loading alone over those of the training step",
            memtok=Entry(label="memtok", value=timings["step"].over(timings["loading"])),
            least=True,
        ),
        Line(
            what="trunk in channels-last memory over channels-first, which memtok keeps",
            memtok=Entry(label="memtok", value=passes["channels-last"].over(passes["channels-first"])),
        ),
    )
    workers = default_workers(scene.device)
    who = f"{workers} workers decode" if workers else "the process that trains decodes"
    note = (
        f"Loading: {who} {sizes.batch / timings['loading'].median:,.0f} images a second, training steps take "
        f"{sizes.batch / timings['step'].median:,.0f}; JPEG files of {shown_bytes(size)}."
    )
    data = {name: timing.to_json() for name, timing in (timings | passes).items()}
    return RowResult(lines=lines, notes=(note,), data={"timings": data, "jpeg_bytes": size})


def channels_last(scene: Scene) -> Run:
    """The trunk's own pass with weights and images in channels-last memory."""
    vit = copy.deepcopy(scene.backbone.vit).to(memory_format=torch.channels_last)
    return contenders.forward_pass(vit, scene.images.to(scene.dtype).contiguous(memory_format=torch.channels_last))
