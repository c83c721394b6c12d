"""The floor: the least that a Vision Transformer with tasks has to compute, counted from its architecture.

All counts are multiply-adds (one multiplication and one addition, two floating-point operations) of matrix products per
image, without norms, activations, softmax and sums, as usual. Letters:

    N  tokens of the trunk     D  width          H  heads          L  layers       F  width of the MLP's hidden layer
    T  class tokens of tasks   m  memory cells that each sees      C  classes of a task

The derivation is written out in docs/performance.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The sizes of a Vision Transformer that decide what it costs.

    patches: image tokens. patch_inputs: numbers in a patch (channels x height x width). base_classes: of its own head,
    0 without one.
    """

    depth: int
    dim: int
    heads: int
    hidden: int
    tokens: int
    patches: int
    patch_inputs: int
    base_classes: int

    @classmethod
    def of(cls, vit: Any) -> Geometry:
        """The sizes of a timm `VisionTransformer` with plain MLPs."""
        projection = vit.patch_embed.proj
        height, width = projection.kernel_size
        patches = int(vit.patch_embed.num_patches)
        return cls(
            depth=len(vit.blocks),
            dim=int(vit.embed_dim),
            heads=int(vit.blocks[0].attn.num_heads),
            hidden=int(vit.blocks[0].mlp.fc1.out_features),
            tokens=patches + int(vit.num_prefix_tokens),
            patches=patches,
            patch_inputs=int(projection.in_channels * height * width),
            base_classes=int(getattr(vit.head, "out_features", 0)),
        )


def layer_parts(geometry: Geometry, rows: int, columns: int) -> dict[str, int]:
    """Multiply-adds of one layer for `rows` tokens that attend to `columns` keys, part by part."""
    d = geometry.dim
    return {
        "queries, keys, values": rows * 3 * d * d,
        "attention": 2 * rows * columns * d,
        "output projection": rows * d * d,
        "MLP": 2 * rows * d * geometry.hidden,
    }


def all_layers(geometry: Geometry, rows: int, columns: int) -> dict[str, int]:
    """The same of all layers."""
    return {name: geometry.depth * cost for name, cost in layer_parts(geometry, rows, columns).items()}


def trunk_parts(geometry: Geometry) -> dict[str, int]:
    """Multiply-adds of the trunk's own forward pass for one image, part by part over all layers."""
    return {
        "patch embedding": geometry.patches * geometry.patch_inputs * geometry.dim,
        **all_layers(geometry, geometry.tokens, geometry.tokens),
        "head": geometry.dim * geometry.base_classes,
    }


def trunk(geometry: Geometry) -> int:
    """Multiply-adds of the trunk's own forward pass for one image."""
    return sum(trunk_parts(geometry).values())


def skipped(geometry: Geometry) -> int:
    """What the trunk saves without base output: all of its last layer but keys and values, and its head."""
    n, d = geometry.tokens, geometry.dim
    return sum(layer_parts(geometry, n, n).values()) - 2 * n * d * d + d * geometry.base_classes


def stream_parts(geometry: Geometry, tasks: int, cells: int, classes: int) -> dict[str, int]:
    """Multiply-adds that `tasks` tasks of one class token and `cells` cells add to the pass for one image.

    Keys and values of memory do not depend on the image (`memory_once`) and are not included.
    """
    layers = all_layers(geometry, tasks, geometry.tokens + 1 + cells)
    return {**layers, "heads": tasks * geometry.dim * classes}


def stream(geometry: Geometry, tasks: int, cells: int, classes: int) -> int:
    """The sum of `stream_parts`."""
    return sum(stream_parts(geometry, tasks, cells, classes).values())


def memory_once(geometry: Geometry, tasks: int, cells: int) -> int:
    """Multiply-adds of the keys and values of all memory: once per step, or once for all when serving."""
    return geometry.depth * tasks * cells * 2 * geometry.dim**2


def token_ratio(geometry: Geometry, tasks: int) -> float:
    """(N + T) / N, the floor of inference by which the targets are stated."""
    return (geometry.tokens + tasks) / geometry.tokens


def serving(geometry: Geometry, tasks: int, cells: int, classes: int) -> float:
    """Multiply-adds of inference, with memory folded once for all, over those of the trunk's own pass."""
    return 1 + stream(geometry, tasks, cells, classes) / trunk(geometry)


def training(geometry: Geometry, tasks: int, cells: int, classes: int, batch: int) -> float:
    """Multiply-adds of a training step of `tasks` tasks over those of the trunk's own pass.

    The trunk has no gradient and stops at the keys and values of its last layer. In a stream every frozen matrix costs
    its forward product and one product for the gradient of its input. Scores and sums over the values cost backward
    what they cost forward, and once more on the 1 + m columns that are the task's own: keys and values of the trunk
    need no gradient. The head has the gradient of its weights besides. Keys and values of memory are computed, and pass
    their gradient on, once per step and not per image.
    """
    parts = stream_parts(geometry, tasks, cells, classes)
    own = geometry.depth * 2 * tasks * (1 + cells) * geometry.dim
    per_image = 2 * sum(parts.values()) + own + parts["heads"]
    once = 2 * memory_once(geometry, tasks, cells) / batch
    return (trunk(geometry) - skipped(geometry) + per_image + once) / trunk(geometry)


def break_even(geometry: Geometry) -> int:
    """The most queries at which absorbing the projections of a kept trace costs no more than applying them.

    Applied, a layer costs 2 N D D for the keys and values of N tokens and 2 T N D for the attention of T queries;
    absorbed, 2 T D D to carry queries and outputs through the projections and 2 T H N D for the attention, since every
    head then uses all D numbers of a token. They are equal at T = N D / (D + N (H - 1)).
    """
    n, d, h = geometry.tokens, geometry.dim, geometry.heads
    return math.floor(n * d / (d + n * (h - 1)))


def from_traces(geometry: Geometry, tasks: int, cells: int, classes: int, batch: int) -> float:
    """Multiply-adds of a training step on kept traces over those of a live step; keys and values cost what is cheaper.

    A kept trace has the normalised input of attention. The trunk costs nothing but, per layer, either its keys and
    values or the difference that absorbing them makes; absorbed, that difference is paid backward too.
    """
    n, d, h, layers = geometry.tokens, geometry.dim, geometry.heads, geometry.depth
    applied = layers * 2 * n * d * d
    absorbed = 2 * layers * (2 * tasks * d * d + 2 * tasks * n * d * (h - 1))
    live = training(geometry, tasks, cells, classes, batch) * trunk(geometry)
    stream_only = live - (trunk(geometry) - skipped(geometry))
    return (stream_only + min(applied, absorbed)) / live


def dense_inference(geometry: Geometry, tasks: int, cells: int, classes: int) -> float:
    """Multiply-adds of the dense masked form over the trunk's: every token scores every column, memory per image."""
    rows, memory = geometry.tokens + tasks, tasks * cells
    parts = trunk_parts(geometry) | all_layers(geometry, rows, rows + memory)
    heads = tasks * geometry.dim * classes
    return (sum(parts.values()) + memory_once(geometry, tasks, cells) + heads) / trunk(geometry)


def table(geometry: Geometry, *, cells: int, training_cells: int, classes: int, batch: int) -> dict[str, float]:
    """Every floor to which rows of the benchmarks are compared, by name, as ratios to the trunk's own forward pass."""
    sweep = training(geometry, 24, training_cells, classes, batch)
    one_dense = 3 * dense_inference(geometry, 1, training_cells, classes)
    found = {
        "training step, 1 task": training(geometry, 1, training_cells, classes, batch),
        "training step, 24 configurations": sweep,
        "training step of the dense masked form, gradients everywhere": one_dense,
        "sweep of 24 over 24 dense runs": sweep / (24 * one_dense),
        "step on kept traces over a live step, 1 task": from_traces(geometry, 1, training_cells, classes, batch),
        "queries at which absorbed projections break even": float(break_even(geometry)),
    }
    for tasks in (10, 100, 1000):
        found[f"inference, {tasks} tasks, (N + T) / N"] = token_ratio(geometry, tasks)
        found[f"inference, {tasks} tasks, all products counted"] = serving(geometry, tasks, cells, classes)
        found[f"inference, {tasks} tasks, dense masked form"] = dense_inference(geometry, tasks, cells, classes)
    return found
