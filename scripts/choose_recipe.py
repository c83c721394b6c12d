"""Accuracy of a head and of a readout under variants of the default recipe, for the table in docs/training.md.

    python scripts/choose_recipe.py --backbone FOLDER --data fashion-mnist --image-size 56 --train 1000 --test 2000

Every variant trains for equal steps on the same images, drawn with seed 0, from statistics that are kept in memory, and
is tested with its last state: nothing is chosen on test images. Some 70 KB of memory per image and view.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np

import memtok
from memtok.data.sources import ImageSet
from memtok.parts.adapters import Adapters
from memtok.parts.head import Head
from memtok.traces import OpenStores
from memtok.training import train_together

READOUT: dict[str, Any] = {"readout": 13}
ADAPTERS: dict[str, Any] = {"regime": "memory", "adapter_rank": 16}
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "head, none": ({}, {"augment": "none"}),
    "head, none, no smoothing": ({}, {"augment": "none", "label_smoothing": 0.0}),
    "readout, none": (READOUT, {"augment": "none"}),
    "readout, none, no smoothing": (READOUT, {"augment": "none", "label_smoothing": 0.0}),
    "readout, none, no smoothing, head at 1e-2": (READOUT, {"augment": "none", "label_smoothing": 0.0, "fast": True}),
    "readout, none, from ridge": (READOUT, {"augment": "none", "start": "ridge", "label_smoothing": 0.1}),
    "readout, none, from ridge, no smoothing": (READOUT, {"augment": "none", "start": "ridge", "label_smoothing": 0.0}),
    "readout, none, ridge alone": (READOUT, {"augment": "none", "start": "ridge", "rate": 1e-12}),
    "head, light": ({}, {"augment": "light"}),
    "readout, light": (READOUT, {"augment": "light"}),
    "readout, light, no smoothing": (READOUT, {"augment": "light", "label_smoothing": 0.0}),
    "readout, light, head at 1e-2": (READOUT, {"augment": "light", "fast": True}),
    "readout, light, from ridge": (READOUT, {"augment": "light", "start": "ridge", "label_smoothing": 0.1}),
    "readout, light, ridge alone": (READOUT, {"augment": "light", "start": "ridge", "rate": 1e-12}),
    "head, inception": ({}, {"augment": "inception"}),
    "readout, inception": (READOUT, {"augment": "inception"}),
    "memory, no adapters": ({"regime": "memory"}, {"augment": "none"}),
    **{
        f"memory, adapters of rank 16 at {times:g}": (ADAPTERS, {"augment": "none", "adapters": times})
        for times in (1.0, 0.3, 0.1, 0.03)
    },
}
"""By name, the options of the task and the settings of its training.

fast: the head has the rate of class tokens. adapters: the rate of adapters over that of class tokens.
"""


def some(images: ImageSet, count: int) -> ImageSet:
    """`count` of the images, drawn with seed 0."""
    return images.select(np.sort(np.random.default_rng(0).permutation(len(images))[:count]))


def main() -> None:
    """Prints a line per variant: accuracy on the test images, in %, by seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--data-dir")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--train", type=int, default=1000)
    parser.add_argument("--test", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", default=[""], help="variants whose name contains one of these")
    options = parser.parse_args()
    backbone = memtok.load_backbone(options.backbone, image_size=options.image_size)
    data = memtok.open_data(options.data, data_dir=options.data_dir)
    data = replace(data, train=some(data.train, options.train), validation=some(data.test, options.test))
    print(f"{options.data}: {len(data.train)} training and {len(data.validation)} test images", flush=True)
    with OpenStores() as stores:
        for name in [each for each in VARIANTS if any(word in each for word in options.only)]:
            found = [
                100 * accuracy(backbone, data, name, options.steps, options.batch_size, seed, stores)
                for seed in options.seeds
            ]
            print(f"{name}: {np.mean(found):.1f}  ({', '.join(f'{one:.1f}' for one in found)})", flush=True)


def accuracy(
    backbone: memtok.Backbone, data: Any, variant: str, steps: int, batch_size: int, seed: int, stores: OpenStores
) -> float:
    """The accuracy of a variant on the test images, which stand in the place of validation images."""
    form, settings = VARIANTS[variant]
    settings = {"keep_traces": "ram", "batch_size": batch_size, "validation_images": len(data.validation)} | settings
    fast, rate, times = settings.pop("fast", False), settings.pop("rate", None), settings.pop("adapters", None)
    options = {"regime": "head"} | form
    task = memtok.Task.create(backbone, name="task", classes=data.classes, seed=seed, **options)
    head, adapters = (lambda *_: 1.0) if fast else Head.rate, Adapters.rate if times is None else (lambda *_: times)
    with patch.object(Head, "rate", head), patch.object(Adapters, "rate", adapters):
        rates = None if rate is None else [rate]
        (result,) = train_together(
            [task],
            data,
            steps=steps,
            seed=seed,
            device="cpu",
            workers=0,
            stores=stores,
            learning_rates=rates,
            **settings,
        )
    return result.final_accuracy


if __name__ == "__main__":
    main()
