"""How a class token should begin where the backbone has none to copy: measured on a DINOv2 that lost its own.

    python scripts/class_token_start.py DINOV2_FOLDER [--steps 200] [--seeds 0 1 2] [--cells 0 5]

The class token of a DINOv2 checkpoint is taken away (patches pooled by their mean), and the same task is trained on the
digits that come with memtok, from four starts, all of them over one pass of the trunk. Prints one line per start: test
accuracy of each seed.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import memtok


def without_class_token(source: str, size: int) -> Any:
    """The timm model of a DINOv2 checkpoint without its class token."""
    own: Any = memtok.load_backbone(source, image_size=size).vit
    vit: Any = VisionTransformer(
        img_size=size,
        patch_size=own.patch_embed.patch_size,
        embed_dim=own.embed_dim,
        depth=len(own.blocks),
        num_heads=own.blocks[0].attn.num_heads,
        init_values=1.0,
        num_classes=0,
        class_token=False,
        global_pool="avg",
        fc_norm=False,
    )
    state = {name: value for name, value in own.state_dict().items() if name != "cls_token"}
    state["pos_embed"] = state["pos_embed"][:, 1:]
    vit.load_state_dict(state)
    return vit.eval()


def starts(vit: Any) -> dict[str, Tensor]:
    """The class token (D,) before noise N(0, 0.02), by name."""
    zero = torch.zeros(vit.embed_dim)
    position = vit.pos_embed[0].mean(dim=0)
    return {
        "zero": zero,
        "mean position": position,
        "mean position and patch bias": position + vit.patch_embed.proj.bias,
        "deviation of the positions": torch.randn(len(zero), generator=torch.Generator().manual_seed(0))
        * vit.pos_embed.std(),
    }


def main() -> None:
    """Trains and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--size", type=int, default=56)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cells", type=int, nargs="+", default=[0, 5])
    options = parser.parse_args()
    vit = without_class_token(options.source, options.size)
    backbone = memtok.load_backbone(vit, image_size=options.size)
    data = memtok.open_data("digits")
    tasks = {}
    for name, start in starts(vit).items():
        for cells in options.cells:
            for seed in options.seeds:
                called = f"{name}, {cells} cells, seed {seed}"
                task = memtok.Task.create(backbone, name=called, classes=data.classes, memory=cells, seed=seed)
                with torch.no_grad():
                    noise = torch.randn(task.class_tokens.shape, generator=torch.Generator().manual_seed(seed))
                    task.class_tokens.copy_(start + 0.02 * noise)
                tasks[name, cells, seed] = task
    memtok.train_together(
        list(tasks.values()), data, steps=options.steps, batch_size=64, keep_traces="ram", views=1, progress=True
    )
    model = memtok.MemoryViT(backbone, list(tasks.values()))
    answers = memtok.evaluate(model, dict.fromkeys(model.names, data)).tasks
    for name in starts(vit):
        for cells in options.cells:
            found = [100 * answers[tasks[name, cells, seed].name].top1 for seed in options.seeds]
            shown = " ".join(f"{one:.1f}" for one in found)
            print(f"{name:32s} {cells} cells  {shown}  mean {sum(found) / len(found):.1f}", flush=True)


if __name__ == "__main__":
    main()
