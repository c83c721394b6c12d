"""Accuracy over the rate of adapters, as a multiple of that of class tokens, for docs/training.md.

    python scripts/choose_adapter_rate.py --backbone FOLDER --data fashion-mnist --image-size 56

Class token, 5 memory cells and adapters, recipe `default` without augmentation, from traces kept in memory; tested with
the last state. Nothing is chosen on test images but that multiple.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from unittest.mock import patch

import memtok
from memtok.parts.adapters import Adapters
from memtok.traces import OpenStores
from memtok.training import train_together


def main() -> None:
    """Prints a line per rank and multiple: accuracy on the test images, in %, by seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--data-dir")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--train", type=int, default=1000)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--ranks", type=int, nargs="+", default=[0, 4, 16])
    parser.add_argument("--multiples", type=float, nargs="+", default=[1.0, 0.3, 0.1, 0.03])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    backbone = memtok.load_backbone(options.backbone, image_size=options.image_size)
    data = memtok.open_data(options.data, data_dir=options.data_dir)
    data = replace(data, train=data.train.take(options.train), validation=data.test.take(options.test))
    with OpenStores() as stores:
        for rank in options.ranks:
            for multiple in options.multiples if rank else [1.0]:
                found = []
                for seed in options.seeds:
                    task = memtok.Task.create(backbone, name="task", classes=data.classes, adapter_rank=rank, seed=seed)
                    with patch.object(Adapters, "rate", lambda *_, multiple=multiple: multiple):
                        (result,) = train_together(
                            [task],
                            data,
                            steps=options.steps,
                            batch_size=32,
                            seed=seed,
                            device="cpu",
                            workers=0,
                            augment="none",
                            keep_traces="ram",
                            validation_images=options.test,
                            stores=stores,
                        )
                    found.append(f"{100 * result.final_accuracy:.1f}")
                print(f"rank {rank}, {multiple:g} of the rate: {', '.join(found)}", flush=True)


if __name__ == "__main__":
    main()
