"""Accuracy over the learning rate of AdamW, for the table in docs/training.md: short runs over a trace kept in memory.

    python scripts/choose_learning_rate.py --backbone FOLDER --regime memory --rates 1e-3 3e-3 1e-2

Fashion-MNIST at 56 px, 6,000 training and 2,000 test images drawn with seed 0, 600 steps of 64, 5 cells, as they are.
Nothing is augmented: the trunk runs once per image, and its trace is kept in half precision, about 5 GB of memory.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import torch
from torch.nn import functional as F

import memtok
from memtok.trace import Trace

BATCH = 64


class KeptTrace:
    """The trace of some images of a data set, and their labels."""

    def __init__(self, backbone: memtok.Backbone, images: memtok.data.ImageSet, chosen: np.ndarray) -> None:
        transform = memtok.evaluation_transform(backbone.preprocessing)
        keys, values, features = [], [], []
        for start in range(0, len(chosen), 100):
            part = torch.stack([transform(images[int(index)][0]) for index in chosen[start : start + 100]])
            trace = backbone.trace(part)
            keys.append(torch.stack(trace.keys, dim=1).half())  # (B, L, H, N, d)
            values.append(torch.stack(trace.values, dim=1).half())
            features.append(trace.features)
        self.keys, self.values, self.features = torch.cat(keys), torch.cat(values), torch.cat(features)
        self.labels = torch.tensor([int(images.labels[int(index)]) for index in chosen])

    def batch(self, index: torch.Tensor) -> Trace:
        """The trace of the images at these positions."""
        keys, values = (part[index].float().transpose(0, 1) for part in (self.keys, self.values))
        return Trace(list(keys), list(values), self.features[index])


def run(task: memtok.Task, train: KeptTrace, test: KeptTrace, rate: float, steps: int) -> float:
    """Trains with warm-up and cosine as the default recipe has them; returns the accuracy on the test images."""
    model = memtok.MemoryViT(task.backbone, [task])
    optimizer = torch.optim.AdamW(task.parameters(), weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    order: list[int] = []
    warmup = max(1, int(0.05 * steps))
    for step in range(steps):
        if len(order) < BATCH:
            order = torch.randperm(len(train.labels), generator=generator).tolist()
        index, order = torch.tensor(order[:BATCH]), order[BATCH:]
        decay = 0.5 * (1 + math.cos(math.pi * max(0, step - warmup) / max(1, steps - warmup)))
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / warmup) * decay
        loss = F.cross_entropy(model.answer(train.batch(index), base=False)[task.name], train.labels[index])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimizer.step()
    right = 0
    with torch.no_grad():
        for index in torch.arange(len(test.labels)).split(200):
            answer = model.answer(test.batch(index), base=False)[task.name].argmax(dim=1)
            right += int((answer == test.labels[index]).sum())
    return right / len(test.labels)


def main() -> None:
    """Prints one line per rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--regime", default="memory", choices=["memory", "head"])
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3, 1e-2])
    parser.add_argument("--steps", type=int, default=600)
    options = parser.parse_args()
    backbone = memtok.load_backbone(options.backbone, image_size=56)
    data = memtok.open_data("fashion-mnist")
    generator = np.random.default_rng(0)
    train = KeptTrace(backbone, data.train, generator.permutation(len(data.train))[:6000])
    test = KeptTrace(backbone, data.test, generator.permutation(len(data.test))[:2000])
    for rate in options.rates:
        task = memtok.Task.create(backbone, name="task", classes=data.classes, regime=options.regime, seed=0)
        print(f"{options.regime} rate {rate:g}: {run(task, train, test, rate, options.steps):.4f}", flush=True)


if __name__ == "__main__":
    main()
