"""Row `export`: the logits of all tasks by PyTorch and by exported ONNX files, on the CPU, over the trunk.

Timed: one pass for a batch, and one for a single image, without gradient. PyTorch: `MemoryViT` in a folded block, eager
and compiled (`MemoryViT.compile`). ONNX: files of `memtok.export` in float32, float16 and int8, answered by
onnxruntime as `memtok.load_onnx` opens them, with as many threads as torch. Each task has the cells of serving.
The files are written without the comparison that `memtok export` makes: the weights are random.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from memtok.exports.opened import load_onnx
from memtok.exports.writing import export
from memtok.model import MemoryViT
from memtok_benchmarks import contenders
from memtok_benchmarks.contenders import Contender
from memtok_benchmarks.lines import Line, RowResult, run_race
from memtok_benchmarks.scene import Scene
from memtok_benchmarks.timing import Run

WEIGHTS = ("float32", "float16", "int8")
ANY = 1e9  # random weights: the difference says nothing
NEEDED = ("onnx", "onnxscript", "onnxruntime")
CONTENDERS = {
    "eager": ("PyTorch, eager", ()),
    "compiled": ("PyTorch, compiled", ()),
    **{weights: (f"ONNX, {weights}", NEEDED) for weights in WEIGHTS},
}


def exported(scene: Scene) -> RowResult:
    """One line per size of the batch."""
    count = min(scene.sizes.tasks)
    lines, notes, data = [], [], {}
    if scene.sizes.device != "cpu":
        return RowResult(notes=("Export: measured on the CPU only.",))
    with tempfile.TemporaryDirectory() as folder:
        for batch in dict.fromkeys((scene.sizes.batch, 1)):
            with Scene(replace(scene.sizes, batch=batch)) as here:
                makers = {name: partial(MAKERS[name], count=count, folder=Path(folder)) for name in CONTENDERS}
                field = {"trunk": contenders.TRUNK} | {
                    name: Contender(label=label, make=makers[name], needs=needs)
                    for name, (label, needs) in CONTENDERS.items()
                }
                race = run_race(here, field)
            entries = [race.entry(name, label, "trunk") for name, (label, _) in CONTENDERS.items()]
            images = f"batch {batch}" if batch > 1 else "one image"
            what = f"inference, {count} tasks of {scene.sizes.serving_cells} cells, {images}, over the eager trunk"
            lines.append(Line(what=what, memtok=entries[0], peers=tuple(entries[1:])))
            data[str(batch)] = race.to_json()
        sizes = ", ".join(f"{path.stem} {path.stat().st_size / 1e6:.0f} MB" for path in sorted(Path(folder).iterdir()))
        notes.append(f"Export: {sizes}." if sizes else "Export: no file was written.")
    return RowResult(lines=tuple(lines), notes=tuple(notes), data=data)


def eager(scene: Scene, count: int, folder: Path) -> Run:
    """The model as it is."""
    return contenders.memtok_serving(scene, count)


def compiled(scene: Scene, count: int, folder: Path) -> Run:
    """The same compiled, by torch's default."""
    return contenders.serving(scene, scene.tasks(count, scene.sizes.serving_cells), compiled=True)


def onnx(scene: Scene, count: int, folder: Path, weights: str) -> Run:
    """An exported file; it is written once for all batches."""
    path = folder / f"{weights}.onnx"
    if not path.exists():
        model = MemoryViT(scene.backbone, scene.tasks(count, scene.sizes.serving_cells))
        export(model, path, weights=weights, base=True, images=1, tolerance=ANY)
    opened = load_onnx(path, threads=scene.sizes.threads)
    images = scene.images.numpy()
    return lambda: opened(images)


MAKERS: dict[str, Any] = {
    "eager": eager,
    "compiled": compiled,
    **{weights: partial(onnx, weights=weights) for weights in WEIGHTS},
}
