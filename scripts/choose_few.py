"""Test accuracy of every form with few images, beside the one that cross-validation takes, for docs/training.md.

    python scripts/choose_few.py --backbone FOLDER --image-size 56 --sets DIR --rows fashion-mnist@5-per-class ...

Rows as of `memtok reproduce beyond`. All forms train on the same images with the settings of the recipe.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import memtok
from memtok.training import choose_form, train_together
from memtok.training.forms import FORMS, TRIED, fitting
from memtok.training.recipes import GRADIENT
from memtok_experiments.beyond.rows import find_rows


def main() -> None:
    """Prints a line per row and seed: the chosen form, those within one standard error, and what each form answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--rows", nargs="+", required=True)
    parser.add_argument("--sets", type=Path)
    parser.add_argument("--data-dir")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--test-images", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    backbone = memtok.load_backbone(options.backbone, image_size=options.image_size)
    for row in find_rows(tuple(options.rows)):
        source = memtok.open_data(row.spec(options.sets), data_dir=options.data_dir)
        for seed in options.seeds:
            data = row.drawn(source, seed, options.test_images)
            data = replace(data, validation=data.test)
            names = fitting(TRIED, len(data.classes))
            shared = {"seed": seed, "device": "cpu", "workers": 0}
            choice = choose_form(backbone, data, steps=options.steps, forms=names, **shared)
            found: dict[str, float] = {}
            for solver in (GRADIENT, "ridge"):
                tasks = [
                    memtok.Task.create(backbone, name=name, classes=data.classes, seed=seed, **FORMS[name].options)
                    for name in names
                    if FORMS[name].solver == solver
                ]
                results = train_together(
                    tasks,
                    data,
                    solver=solver,
                    augment="none",
                    keep_traces="ram",
                    validation_images=len(data.test),
                    **({"steps": options.steps} if solver == GRADIENT else {}),
                    **shared,
                )
                found |= {task.name: one.final_accuracy for task, one in zip(tasks, results, strict=True)}
            told = ", ".join(f"{name} {100 * found[name]:.1f}" for name in names)
            head = f"{row.name}, seed {seed}, {len(data.train)} images"
            print(f"{head}: {told}; takes {choice.name}, tied {' '.join(choice.tied) or '-'}", flush=True)


if __name__ == "__main__":
    main()
