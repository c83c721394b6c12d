"""Learnable memory from scratch: a small Vision Transformer on the digits 0 to 4, and new tasks that do not change it.

    python examples/mnist_from_scratch.py

1. A ViT of 0.2 million parameters learns to classify 0, 1, 2, 3 and 4. Then it is frozen.
2. A task with memory learns 5 to 9 on it.
3. Two more tasks, `half` (is it below 5?) and `parity`, are trained separately; the three are concatenated.
4. A fourth task, `0-9`, extends `5-9` and `half`: it attends to their class tokens and memory, not they to it.

After every step all existing tasks are evaluated again. Their accuracies must be the same to the last digit. Training
uses the training split, and every printed accuracy is on the test split.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer

import memtok
from memtok.data import DataSource, ImageSet, batches

LOW, HIGH, HALF, PARITY, ALL = "0-4", "5-9", "half", "parity", "0-9"


def main(data: str, steps: int, data_dir: Path | None) -> None:
    digits = memtok.open_data(data, data_dir=data_dir)
    low, high = digits.classes[:5], digits.classes[5:]
    number = np.arange(10)
    sources = {
        LOW: digits.only(low),
        HIGH: digits.only(high),
        HALF: regroup(digits, ("below 5", "5 or more"), number // 5),
        PARITY: regroup(digits, ("even", "odd"), number % 2),
        ALL: digits,
    }

    print("1. From scratch: a backbone that knows 0 to 4")
    vit = train_vit(sources[LOW], 2 * steps)
    backbone = memtok.load_backbone(vit)  # a frozen copy; nothing below changes a byte of it
    history = [measure(memtok.MemoryViT(backbone), sources)]

    print("2. Memory for 5 to 9")
    tasks = {HIGH: train_task(backbone, HIGH, sources[HIGH], steps)}
    model = memtok.MemoryViT(backbone, [tasks[HIGH]])
    history.append(measure(model, sources))

    print("3. Two more, trained apart; then the three together")
    for name in (HALF, PARITY):
        tasks[name] = train_task(backbone, name, sources[name], steps)
        history.append(measure(memtok.MemoryViT(backbone, [tasks[name]]), sources))
    model = model.add(tasks[HALF]).add(tasks[PARITY])
    history.append(measure(model, sources))
    print(f"   base, {HIGH} and {HALF} name all ten: {100 * ten_digits(model, digits.test):.2f} % right\n")

    print(f"4. A task that extends {HIGH} and {HALF}")
    tasks[ALL] = train_task(backbone, ALL, digits, steps, extends=[tasks[HIGH], tasks[HALF]])
    model = model.add(tasks[ALL])
    history.append(measure(model, sources))

    # Every accuracy is the same at all stages, to the last digit.
    for name in sources:
        found = {accuracies[name] for accuracies in history if name in accuracies}
        assert len(found) == 1, f"{name} changed: {found}"
    proof = memtok.verify(backbone, model.tasks, digits, source=vit)
    assert proof.ok, proof.failures
    print("Unchanged: every accuracy to the last digit, and the backbone's own answer bit for bit.")


def regroup(data: DataSource, classes: tuple[str, ...], group: np.ndarray) -> DataSource:
    """The same images under other labels: what was class c is now class group[c]."""

    def relabel(images: ImageSet) -> ImageSet:
        return replace(images, labels=group[images.labels])

    parts = {"train": relabel(data.train), "validation": relabel(data.validation), "test": relabel(data.test)}
    return replace(data, classes=classes, **parts)


def train_vit(data: DataSource, steps: int, seed: int = 0) -> VisionTransformer:
    """A ViT for 28 x 28 pixels in patches of 7, trained as any model of timm; memtok only loads the images."""
    torch.manual_seed(seed)
    vit = VisionTransformer(
        img_size=28, patch_size=7, embed_dim=64, depth=4, num_heads=4, num_classes=len(data.classes)
    )
    # The preprocessing. memtok reads it here, and all tasks use it.
    vit.pretrained_cfg = {"input_size": (3, 28, 28), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0}
    transform = memtok.evaluation_transform(memtok.load_backbone(vit).preprocessing)
    optimizer = torch.optim.AdamW(vit.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    start = time.perf_counter()
    for images, labels, _ in batches(data.train, transform, batch_size=64, shuffle=True, seed=seed, steps=steps):
        loss = F.cross_entropy(vit(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    numbers = sum(parameter.numel() for parameter in vit.parameters())
    print(f"   trained {numbers:,} parameters in {steps} steps, {time.perf_counter() - start:.0f} s")
    return vit.eval()


def train_task(
    backbone: memtok.Backbone, name: str, data: DataSource, steps: int, extends: Sequence[memtok.Task] = ()
) -> memtok.Task:
    """A class token, five memory cells per layer and a head. The backbone and what the task extends stay frozen."""
    task = memtok.Task.create(backbone, name=name, classes=data.classes, memory=5, extends=extends, seed=0)
    # A high learning rate suits a short run. Validated once, at the end: checkpoints of MNIST differ little.
    short: dict[str, Any] = {"learning_rate": 0.03, "augment": "none", "validate_every": steps}
    result = memtok.train(task, data, steps=steps, validation_images=1000, **short)
    print(f"   trained {result.trainable_parameters:,} parameters of {name!r}, {result.seconds:.0f} s")
    return task


def measure(model: memtok.MemoryViT, sources: dict[str, DataSource]) -> dict[str, float]:
    """Top-1 accuracy on the test split of the backbone's own answer (`0-4`) and of each task, all in one model."""
    table = memtok.evaluate(model, {name: sources[name] for name in model.names}, base=sources[LOW])
    assert table.base is not None
    accuracies = {LOW: table.base.top1} | {name: score.top1 for name, score in table.tasks.items()}
    print("   test accuracy: " + ", ".join(f"{name} {100 * value:.2f} %" for name, value in accuracies.items()) + "\n")
    return accuracies


@torch.no_grad()
def ten_digits(model: memtok.MemoryViT, images: ImageSet) -> float:
    """Accuracy on all ten digits of three separately trained classifiers: `half` selects the base or `5-9`."""
    right = 0
    for pictures, labels, _ in batches(images, memtok.evaluation_transform(model.preprocessing), batch_size=256):
        out = model(pictures)  # one forward pass for all tasks
        answer = torch.where(out[HALF].argmax(1) == 0, out.base.argmax(1), 5 + out[HIGH].argmax(1))
        right += int((answer == labels).sum())
    return right / len(images)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A ViT from scratch, memory beside it, concatenation, extension.")
    parser.add_argument("--data", default="mnist", help="ten classes: mnist (downloaded if need be), digits (bundled)")
    parser.add_argument("--steps", type=int, default=800, help="of each task; the backbone trains for twice as many")
    parser.add_argument("--data-dir", type=Path, help="where the data lie or are put (default: ~/.cache/memtok/data)")
    options = parser.parse_args()
    main(options.data, options.steps, options.data_dir)
