"""How many numbers a readout of many classes has to answer through: top-1 and file size by statistics and rank.

Prints a table of ridge regressions without steps, and with `--steps` also of what is trained from there. The features
of the images are cached in `--traces`. Top-1 is that of the validation images, by which nothing is chosen here.

    python scripts/readout_ranks.py $DINOV2_SMALL folder:textures --image-size 56 --traces traces
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import memtok
from memtok.training import train_together

STATISTICS = ("class+deviation+regions", "class+mean+deviation", "class+mean", "class+deviation", "class")
RANKS = (0, 8, 16, 32, 64, 128)


def main() -> None:
    """Reads the command line, trains, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone")
    parser.add_argument("data")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--statistics", nargs="+", default=STATISTICS)
    parser.add_argument("--ranks", nargs="+", type=int, default=RANKS)
    parser.add_argument("--traces", type=Path)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--validation-images", type=int)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    backbone = memtok.load_backbone(options.backbone, image_size=options.image_size)
    data = memtok.open_data(options.data)
    shared: dict[str, Any] = {"augment": "none", "device": options.device, "keep_traces": "disk", "progress": True}
    shared |= {"trace_dir": options.traces, "validation_images": options.validation_images}
    print("| statistics | rank | steps | top-1, % | file | file of 1,000 classes |\n|---|---|---|---|---|---|")
    for statistics in options.statistics:
        for steps in dict.fromkeys((0, options.steps)):
            solver: dict[str, Any] = {"solver": "ridge"} if steps == 0 else {"start": "ridge", "steps": steps}
            tasks = [make(backbone, data.classes, statistics, rank) for rank in options.ranks]
            for task, result in zip(tasks, train_together(tasks, data, **shared, **solver), strict=True):
                thousand = make(
                    backbone, [str(number) for number in range(1000)], statistics, task.sizes["readout_rank"]
                )
                cells = (statistics, task.sizes["readout_rank"] or "full", steps, f"{100 * result.final_accuracy:.1f}")
                sizes = (f"{megabytes(each):.2f} MB" for each in (task, thousand))
                print("|", " | ".join(map(str, (*cells, *sizes))), "|", flush=True)


def make(backbone: memtok.Backbone, classes: Any, statistics: str, rank: int) -> memtok.Task:
    """A new task with a readout of all levels."""
    form: dict[str, Any] = {"statistics": statistics, "readout_rank": rank}
    return memtok.Task.create(backbone, name=f"rank {rank}", classes=classes, regime="readout", seed=0, **form)


def megabytes(task: memtok.Task) -> float:
    """The size of its file, in 10^6 bytes."""
    with tempfile.TemporaryDirectory() as folder:
        task.save(Path(folder) / "task.safetensors")
        return (Path(folder) / "task.safetensors").stat().st_size / 1e6


if __name__ == "__main__":
    main()
