"""Writes frozen samples of the files that memtok writes today, once: `python -m tests.format.make_samples`.

`v1` is of version 0.1. `v1-digest` has what was added to format version 1 since: a digest over the header, and the
number of tasks that a task sees. What is added next gets another folder.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

import memtok
from memtok.checkpoint import save_checkpoint
from memtok.header import FORMAT_VERSION
from tests.tiny import tiny_images, tiny_task, tiny_vit

FOLDER = Path(__file__).parent / f"v{FORMAT_VERSION}-digest"


def main() -> None:
    """Backbone, a lone task, a composed file, and the answers that belong to them."""
    folder = FOLDER
    if folder.exists():
        raise SystemExit(f"{folder} is frozen; what is written otherwise gets a new folder")
    backbone_path = folder / "backbone.safetensors"
    folder.mkdir()
    vit = tiny_vit(embed_dim=16)
    save_checkpoint(vit, memtok.load_backbone(vit).preprocessing, backbone_path, classes=["a", "b", "c", "d", "e"])
    backbone = memtok.load_backbone(backbone_path)
    backbone.source = "backbone.safetensors"
    lone = tiny_task(backbone, "lone", memory=3, queries=2, adapter_rank=1)
    lone.record = {"seed": 0, "metrics": {"top1": 0.5}}
    first = tiny_task(backbone, "first", seed=1, memory=0)
    second = tiny_task(backbone, "second.one", seed=2, extends=[first], placement="after-norm")
    head = tiny_task(backbone, "head", seed=3, regime="head")
    lone.save(folder / "lone.safetensors")
    memtok.save_tasks([second, first, head], folder / "composed.safetensors")
    twin = tiny_task(backbone, "twin", seed=5, memory=1)
    other = tiny_task(backbone, "twin.head", seed=5, memory=1)
    both = tiny_task(backbone, "both", seed=6, memory=1, extends=[twin, other])
    memtok.save_tasks([both, other, twin], folder / "twins.safetensors")
    for regime in ("head+class", "memory-shared", "memory-propagated", "memory-additive"):
        tiny_task(backbone, regime, seed=4, regime=regime).save(folder / f"{regime}.safetensors")
    images = tiny_images(2)
    with torch.no_grad():
        out = memtok.MemoryViT(backbone, [lone, first, second, head, twin, other, both])(images)
        answers = {"images": images, "base": out.base, **{f"tasks.{name}": out[name] for name in out}}
        for path in [*sorted(folder.glob("*-*.safetensors")), folder / "head+class.safetensors"]:
            task = memtok.load_task(path, backbone)
            answers[f"tasks.{task.name}"] = memtok.MemoryViT(backbone, [task])(images, base=False)[task.name]
    save_file(
        {key: value.contiguous() for key, value in answers.items() if value is not None}, folder / "answers.safetensors"
    )


if __name__ == "__main__":
    main()
