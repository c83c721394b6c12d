"""Balanced accuracy over `--balance`, for the table in docs/training.md: unequal sets, short runs over kept features.

    python scripts/choose_balance.py --backbone FOLDER --data digits:20 fashion-mnist:100 folder:cliparts

NAME:R makes the classes of a named set unequal: of 600 training images per class at most, the first class keeps all,
the last one in R, those between lie on a geometric line; the validation images are thinned alike, the test images are
not. A folder is as it is. All at 56 px, the default recipe, no augmentation, the best state by balanced validation
accuracy. Prints the mean over seeds of the balanced accuracy on the test images, its standard error, and the top-1.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from typing import Any

import numpy as np

import memtok
from memtok.data import DataSource, ImageSet
from memtok.training.recipes import BALANCE

LARGEST, HELD_OUT, TESTED = 600, 100, 1000  # training and validation images of the first class; test images
FORMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # options of the task, settings of its training
    "head": ({}, {}),
    "readout": ({"readout": 13}, {}),
    "ridge": ({"readout": 13}, {"start": "ridge", "steps": 1, "learning_rate": 1e-12}),  # the closed form alone
}


def opened(spec: str) -> DataSource:
    """The data of a spec of the command line."""
    if spec.startswith("folder:"):
        return memtok.open_data(spec, split="80-20")
    name, _, ratio = spec.partition(":")
    data = memtok.open_data(name)
    train, validation = (
        thinned(images, int(ratio or 1), most) for images, most in ((data.train, LARGEST), (data.validation, HELD_OUT))
    )
    return replace(data, train=train, validation=validation, test=data.test.take(TESTED))


def thinned(images: ImageSet, ratio: int, most: int) -> ImageSet:
    """A long tail of classes."""
    counts = np.bincount(images.labels)
    largest, kept = min(most, int(counts.min())), []
    for label in range(len(counts)):
        count = max(1, round(largest * ratio ** (-label / (len(counts) - 1))))
        kept.append(np.random.default_rng(0).permutation(np.flatnonzero(images.labels == label))[:count])
    return images.select(np.sort(np.concatenate(kept)))


def main() -> None:
    """Prints one line per data set, form and way to balance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    backbone = memtok.load_backbone(options.backbone, image_size=56)
    for spec in options.data:
        data = opened(spec)
        images = np.bincount(data.train.labels)
        print(f"{spec}: {len(images)} classes of {images.min()} to {images.max()} training images", flush=True)
        for form in options.forms:
            with tempfile.TemporaryDirectory() as folder:
                tasks = [
                    trained(backbone, data, folder, form, balance, seed)
                    for balance in BALANCE
                    for seed in options.seeds
                ]
            data_of = {task.name: data.test for task in tasks}
            found = list(memtok.evaluate(memtok.MemoryViT(backbone, tasks), data_of).tasks.values())
            for number, balance in enumerate(BALANCE):
                own = found[number * len(options.seeds) :][: len(options.seeds)]
                balanced, top1 = (100 * np.array([getattr(one, name) for one in own]) for name in ("balanced", "top1"))
                error = balanced.std(ddof=1) / len(own) ** 0.5 if len(own) > 1 else float("nan")
                print(
                    f"  {form:8} {balance:9} balanced {balanced.mean():5.1f} +- {error:.1f}  top-1 {top1.mean():5.1f}",
                    flush=True,
                )


def trained(
    backbone: memtok.Backbone, data: DataSource, folder: str, form: str, balance: str, seed: int
) -> memtok.Task:
    """A task of such a form."""
    parts, settings = FORMS[form]
    name = f"{form}-{balance}-{seed}"
    task = memtok.Task.create(backbone, name=name, classes=data.classes, regime="head", seed=seed, **parts)
    memtok.train(
        task,
        data,
        seed=seed,
        augment="none",
        balance=balance,
        keep_traces="disk",
        trace_dir=folder,
        **settings,
    )
    return task


if __name__ == "__main__":
    main()
