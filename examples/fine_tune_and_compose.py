"""Fine-tune two tasks on one backbone, compose them into one model, verify that nothing changed, predict.

    python examples/fine_tune_and_compose.py

Everything that it needs comes with memtok; fine_tune_and_compose.sh does the same on the command line. With your own
data and backbone, leave out `short`: the defaults are meant for that.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from make_folder import make_folder

import memtok


def main(backbone_source: str, steps: int, out: Path) -> None:
    # One backbone. It is frozen: nothing below changes a byte of it.
    backbone = memtok.load_backbone(backbone_source)
    data = {"digits": "digits", "parity": f"folder:{make_folder(out / 'photos')}"}

    # Two tasks, trained separately. The two runs share only the backbone.
    short: dict[str, Any] = {"steps": steps, "batch_size": 32, "learning_rate": 0.03, "augment": "none"}
    for name, spec in data.items():
        split = "80-20" if spec.startswith("folder:") else None  # holds out 20 % as a test set; digits have a test part
        source = memtok.open_data(spec, split=split)
        task = memtok.Task.create(backbone, name=name, classes=source.classes, memory=5, seed=0)
        result = memtok.train(task, source, out=out / f"{name}.safetensors", overwrite=True, progress=True, **short)
        print(f"{name}: {result.trainable_parameters:,} of {result.total_parameters:,} parameters trained")

    # Load both files and compose the tasks.
    digits = memtok.load_task(out / "digits.safetensors", backbone)
    parity = memtok.load_task(out / "parity.safetensors", backbone)
    model = memtok.MemoryViT(backbone, [digits]).add(parity)
    memtok.save_tasks(model.tasks, out / "both.safetensors")

    # Verify: the backbone's output is bitwise that without tasks, each task's output that of the task alone.
    proof = memtok.verify(backbone, model.tasks, data["digits"])
    print(f"verified: {proof.ok}, largest difference {proof.largest_difference:.1e}")

    # One pass over the images evaluates every task.
    table = memtok.evaluate(model, data)
    print({name: split["part"] for name, split in table.splits.items()})
    for name, value in table:
        print(f"{name}: {value:.4g}")
    unseen = make_folder(out / "unseen", part="test", images=5)
    for row in memtok.predict(model, [unseen], base=True).rows:
        answer, probability = row.ranking[0]
        print(f"{Path(row.path).name}: {row.task} says {answer} ({probability:.0%})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Fine-tune two tasks and compose them.")
    parser.add_argument("--backbone", default="small", help="a folder, file, Hub id or timm name, or what memtok ships")
    parser.add_argument("--steps", type=int, default=200, help="of each training run")
    parser.add_argument("--out", type=Path, default=Path("runs/example"), help="where everything is written")
    options = parser.parse_args()
    main(options.backbone, options.steps, options.out)
