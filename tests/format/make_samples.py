"""Writes the frozen samples of the current format version, once: `python -m tests.format.make_samples`."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

import memtok
from memtok.checkpoint import save_checkpoint
from memtok.header import FORMAT_VERSION
from tests.tiny import tiny_images, tiny_task, tiny_vit

FOLDER = Path(__file__).parent


def main() -> None:
    """Backbone, a lone task, a composed file, and the answers that belong to them."""
    folder = FOLDER / f"v{FORMAT_VERSION}"
    if folder.exists():
        raise SystemExit(f"{folder} is frozen; a new format version gets a new folder")
    backbone_path = folder / "backbone.safetensors"
    folder.mkdir()
    vit = tiny_vit(embed_dim=16)
    save_checkpoint(vit, memtok.load_backbone(vit).preprocessing, backbone_path)
    backbone = memtok.load_backbone(backbone_path)
    backbone.source = "backbone.safetensors"
    lone = tiny_task(backbone, "lone", memory=3, queries=2, adapter_rank=1)
    lone.record = {"seed": 0, "metrics": {"top1": 0.5}}
    first = tiny_task(backbone, "first", seed=1, memory=0)
    second = tiny_task(backbone, "second.one", seed=2, extends=[first], placement="after-norm")
    head = tiny_task(backbone, "head", seed=3, regime="head")
    lone.save(folder / "lone.safetensors")
    memtok.save_tasks([second, first, head], folder / "composed.safetensors")
    for regime in ("head+class", "memory-shared", "memory-propagated", "memory-additive"):
        tiny_task(backbone, regime, seed=4, regime=regime).save(folder / f"{regime}.safetensors")
    images = tiny_images(2)
    with torch.no_grad():
        out = memtok.MemoryViT(backbone, [lone, first, second, head])(images)
        answers = {"images": images, "base": out.base, **{f"tasks.{name}": out[name] for name in out}}
        for path in [*sorted(folder.glob("*-*.safetensors")), folder / "head+class.safetensors"]:
            task = memtok.load_task(path, backbone)
            answers[f"tasks.{task.name}"] = memtok.MemoryViT(backbone, [task])(images, base=False)[task.name]
    save_file(
        {key: value.contiguous() for key, value in answers.items() if value is not None}, folder / "answers.safetensors"
    )


if __name__ == "__main__":
    main()
