"""Task streams: the class tokens of all tasks pass through the layers beside the trunk, attending to its trace.

In each layer a class token attends to the N traced tokens, to the class tokens of its task, to its task's memory, and
to the class tokens and memory of what its task extends (Table 1 of the paper). Attention is dense and masked inside a
family of tasks, and families of one shape are computed at once (see layout.py).

The work has two halves. `TaskStreams.values` gathers what the tasks own and projects memory to keys and values, which
do not depend on the image: once per pass, or once for a block of passes (folding.py). A `Walk` then runs all class
tokens through a layer as soon as the trunk has computed it, so that no full trace is needed.

Letters as in layers/base.py; in a bucket: G families, t class tokens and m cells per family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from memtok.backbone import Backbone
from memtok.layers import Layer, Positions
from memtok.layout import Layout
from memtok.parts.adapters import ADAPTED, adapt
from memtok.parts.memory import keys_and_values
from memtok.task import Task
from memtok.trace import Kept, TrunkLayer, read_layer

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class BucketShape:
    """G families of t class tokens and m cells each, whose class tokens begin at row `start`; see layout.Bucket."""

    families: int
    tokens: int
    cells: int
    start: int


@dataclass(frozen=True)
class Values:
    """What all tasks own, as the walk reads it.

    start: (T, D) class tokens as they enter the first layer. memory: for each layer and bucket, keys and values
    (H, G, m, d). adapters: for each layer and group of K tasks, by projection, `down` (K, rank, inputs) and `up`
    (K, outputs, rank).
    """

    start: Tensor
    memory: list[list[Pair]]
    adapters: list[list[dict[str, Pair]]]

    def tensors(self) -> Iterator[Tensor]:
        """All of them."""
        yield self.start
        pairs = [pair for layer in self.memory for pair in layer]
        pairs += [pair for layer in self.adapters for group in layer for pair in group.values()]
        yield from (tensor for pair in pairs for tensor in pair)


class TaskStreams(nn.Module):
    """Computes all task streams over a trace. It owns no parameter: the values come from the tasks at every call."""

    def __init__(self, tasks: Sequence[Task], extends: Sequence[Sequence[int]], device: torch.device) -> None:
        super().__init__()
        self.layout = Layout(tasks, extends)
        self.shapes = tuple(
            BucketShape(len(bucket.families), bucket.tokens, bucket.cells, bucket.token_start)
            for bucket in self.layout.buckets
        )
        for number, bucket in enumerate(self.layout.buckets):
            mask = self.layout.family_mask(tasks, bucket.families[0])
            # A lone task sees all that its family has: no mask is needed.
            self.register_buffer(f"mask_{number}", None if bool(mask.all()) else mask, persistent=False)
        groups: dict[tuple[int, int], list[int]] = {}
        for position in self.layout.order:
            if tasks[position].adapter_rank:
                groups.setdefault((tasks[position].adapter_rank, tasks[position].queries), []).append(position)
        self.groups = tuple(tuple(members) for members in groups.values())  # tasks whose adapters have one shape
        for number, members in enumerate(self.groups):
            rows = [self.layout.rows[position] for position in members]
            index = [row for task in rows for row in range(task.token_start, task.token_start + task.tokens)]
            # Adapters that act on all rows need no index. An optimiser of ONNX takes adding to all rows of a tensor for
            # replacing it.
            all_rows = index == list(range(self.layout.tokens))
            self.register_buffer(
                f"rows_{number}", None if all_rows else torch.tensor(index, device="cpu"), persistent=False
            )
        self.placed = self.placements(tasks)
        mixed = len({before for before, cells in self.placed if cells}) > 1
        self.register_buffer("mixed", rows_before_norm(self.placed) if mixed else None, persistent=False)
        self.to(device)

    def begin(
        self,
        backbone: Backbone,
        values: Values,
        batch: int,
        *,
        attention: bool = False,
        run: Callable[..., tuple[Tensor, list[Tensor]]] | None = None,
    ) -> Walk:
        """A walk of all class tokens beside a trunk pass over `batch` images. run: a compiled `stream_layer`."""
        device = values.start.device  # models share backbone and tasks, which another model may have moved
        masks = self.placed_buffers("mask", len(self.shapes), device)
        rows = self.placed_buffers("rows", len(self.groups), device)
        return Walk(backbone, self.shapes, masks, rows, values, batch, attention, run or stream_layer)

    def placed_buffers(self, name: str, count: int, device: torch.device) -> list[Tensor | None]:
        """The buffers `name_0`, `name_1`, ... on a device."""
        found: list[Tensor | None] = [getattr(self, f"{name}_{number}") for number in range(count)]
        return [None if buffer is None else buffer.to(device) for buffer in found]

    def split(self, tokens: Tensor) -> dict[int, Tensor]:
        """The class tokens (B, T, D) of all tasks as (B, queries, D) for each task that has some, by position."""
        rows = self.layout.rows
        return {p: tokens[:, row.token_start : row.token_start + row.tokens] for p, row in rows.items()}

    def values(self, backbone: Backbone, tasks: Sequence[Task]) -> Values:
        """What the tasks own, gathered in the order of the rows; memory as keys and values."""
        # No gradient reaches a task that another one extends.
        own = {p: tasks[p].in_layers(frozen=p in self.layout.extended) for p in self.layout.order}
        start = torch.cat([own[position]["class_tokens"] for position in self.layout.order]).to(backbone.dtype)
        # (L, M, D). Unbound at once: the gradient of an index is as large as what it indexes, and full of zeros.
        cells = torch.cat([own[position]["memory"] for position in self.layout.order], dim=1).to(backbone.dtype)
        before = self.before_norm(tasks, cells.device)
        memory = [
            self.memory_of_layer(layer, before, own_cells)
            for layer, own_cells in zip(backbone.layers, cells.unbind(0), strict=True)
        ]
        stacked = [
            {
                name: tuple(
                    torch.stack([own[position][f"adapters.{name}.{part}"] for position in members], dim=1)
                    .to(backbone.dtype)
                    .unbind(0)
                    for part in ("down", "up")
                )
                for name in ADAPTED
            }
            for members in self.groups
        ]
        adapters = [
            [{name: (down[layer], up[layer]) for name, (down, up) in group.items()} for group in stacked]
            for layer in range(backbone.depth)
        ]
        return Values(backbone.enter_class_tokens(start), memory, adapters)

    def memory_of_layer(self, layer: Layer, before: bool | Tensor, cells: Tensor) -> list[Pair]:
        """Keys and values (H, G, m, d) of each bucket, from the memory cells (M, D) of one layer.

        before: as of `keys_and_values`, and as `before_norm` gives it.
        """
        key, value = keys_and_values(layer, before, cells)
        pairs = []
        for bucket in self.layout.buckets:
            families = len(bucket.families)
            columns = slice(bucket.cell_start, bucket.cell_start + families * bucket.cells)
            size = (key.shape[0], families, bucket.cells, key.shape[2])
            pairs.append((key[:, columns].reshape(size), value[:, columns].reshape(size)))
        return pairs

    def before_norm(self, tasks: Sequence[Task], device: torch.device) -> bool | Tensor:
        """Whether memory is placed before the norm: one answer for all cells, or (M, 1) bool where tasks differ."""
        placed = self.placements(tasks)
        answers = {before for before, cells in placed if cells}
        if len(answers) < 2:
            return True in answers
        # Made with the model, for a transfer is a wait for the device; a task may have been placed anew since.
        rows = self.get_buffer("mixed") if placed == self.placed else rows_before_norm(placed)
        return rows.to(device)

    def placements(self, tasks: Sequence[Task]) -> tuple[tuple[bool, int], ...]:
        """For each task, in the order of rows, whether its memory goes through the norm, and its number of cells."""
        return tuple((tasks[p].placement == "before-norm", tasks[p].cells) for p in self.layout.order)


def rows_before_norm(placed: Sequence[tuple[bool, int]]) -> Tensor:
    """(M, 1) bool on the CPU: which cells go through the norm."""
    rows = [before for before, cells in placed for _ in range(cells)]
    return torch.tensor(rows, dtype=torch.bool, device="cpu").unsqueeze(1)


class Walk:
    """The state of all class tokens between layers. `step` is called once per layer, beside or after the trunk."""

    def __init__(
        self,
        backbone: Backbone,
        shapes: Sequence[BucketShape],
        masks: Sequence[Tensor | None],
        rows: Sequence[Tensor | None],
        values: Values,
        batch: int,
        attention: bool,
        run: Callable[..., tuple[Tensor, list[Tensor]]],
    ) -> None:
        self.backbone, self.shapes, self.masks, self.rows, self.values = backbone, shapes, masks, rows, values
        self.attention, self.run = attention, run
        start = values.start.expand(batch, -1, -1)
        # Compiled code is made for one layout of memory: the first layer's would not serve the others.
        self.x = start if run is stream_layer else start.contiguous()  # (B, T, D)
        self.positions = backbone.positions()
        self.weights: list[list[Tensor]] = []  # by layer and bucket

    def step(self, layer: int, kept: Kept) -> None:
        """Computes one layer; `kept` is the trunk's trace of it."""
        memory, adapters = self.values.memory[layer], self.values.adapters[layer]
        own, positions = self.backbone.layers[layer], self.positions[layer]
        self.x, weights = self.run(own, positions, self.shapes, self.masks, self.rows, memory, adapters, self.x, kept)
        if self.attention:
            self.weights.append(weights)

    def finish(self) -> Tensor:
        """(B, T, D) the class tokens after the final norm."""
        return self.backbone.final_norm(self.x)


def stream_layer(
    layer: Layer,
    positions: Positions,
    shapes: Sequence[BucketShape],
    masks: Sequence[Tensor | None],
    rows: Sequence[Tensor | None],
    memory: Sequence[Pair],
    adapters: Sequence[dict[str, Pair]],
    x: Tensor,
    kept: Kept,
) -> tuple[Tensor, list[Tensor]]:
    """Class tokens (B, T, D) after one layer, and their attention weights per bucket, (B, H, G t, N + t + m).

    masks: for each bucket (t, t + m) bool or None. rows: for each group of adapters the rows (K queries,) that it acts
    on, None for all. It gets neither tasks nor names, so it is compiled once for all tasks of equal shapes.
    """
    adapted = partial(adapt, adapters, rows)
    normed = layer.normed(x)
    query, key, value = layer.queries_keys_values(normed, adapted)
    trunk = read_layer(layer, kept, positions, x.shape[1])
    parts: list[Tensor] = []
    weights: list[Tensor] = []
    for shape, mask, cells in zip(shapes, masks, memory, strict=True):
        of = slice(shape.start, shape.start + shape.families * shape.tokens)
        own = (key[:, :, of], value[:, :, of])
        heads, probabilities = attend_bucket(shape, mask, query[:, :, of] * layer.scale, trunk, own, cells)
        parts.append(heads)
        weights.append(probabilities)
    heads = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
    return layer.add_mlp(layer.add_attention(x, heads, normed, adapted), adapted), weights


def attend_bucket(
    shape: BucketShape, mask: Tensor | None, query: Tensor, trunk: TrunkLayer, own: Pair, memory: Pair
) -> tuple[Tensor, Tensor]:
    """Attention of one bucket's class tokens, (B, H, G t, d), and its attention weights (B, H, G t, N + t + m).

    query: (B, H, G t, d), scaled. own: keys and values of the class tokens, (B, H, G t, d) each. memory: keys and
    values of the cells, (H, G, m, d) each, the same for every image. mask: (t, t + m), True: row i attends to column j.
    """
    over_trunk = trunk.scores(query)
    among = over_tokens(shape, query, own[0])
    if trunk.bias is not None:
        among = among + trunk.bias[..., :1]
    family = torch.cat([among, by_family(shape, query, memory[0].transpose(-2, -1))], -1)
    if mask is not None:
        family = family.masked_fill(~mask.repeat(shape.families, 1), float("-inf"))
    probabilities = torch.cat([over_trunk, family], dim=-1).softmax(dim=-1).to(own[1].dtype)
    on_trunk, on_tokens, on_memory = torch.split(
        probabilities, [over_trunk.shape[-1], shape.tokens, shape.cells], dim=-1
    )
    # In place, for these sums are as large as all class tokens, and what they are added to is not used elsewhere.
    heads = trunk.read(on_trunk)
    if shape.tokens == 1:
        heads.addcmul_(on_tokens, own[1])
    else:
        heads += (split_families(shape, on_tokens) @ split_families(shape, own[1])).flatten(2, 3)
    if shape.cells:
        heads += by_family(shape, on_memory, memory[1])
    return heads, probabilities


def over_tokens(shape: BucketShape, query: Tensor, key: Tensor) -> Tensor:
    """(B, H, G t, t) products of queries and keys (B, H, G t, d) within each family."""
    if shape.tokens == 1:  # one product of numbers is much faster than one matrix product for every row
        return (query * key).sum(dim=-1, keepdim=True)
    return (split_families(shape, query) @ split_families(shape, key).transpose(-2, -1)).flatten(2, 3)


def by_family(shape: BucketShape, rows: Tensor, matrices: Tensor) -> Tensor:
    """(B, H, G t, outputs): rows (B, H, G t, inputs) times the matrix (H, G, inputs, outputs) of their head and family.

    The images of a family are rows of one product: a plain matmul would copy the matrices for every image.
    """
    batch, heads = rows.shape[:2]
    grouped = split_families(shape, rows).permute(1, 2, 0, 3, 4).flatten(2, 3)  # (H, G, B t, inputs)
    product = (grouped @ matrices).reshape(heads, shape.families, batch, shape.tokens, matrices.shape[-1])
    return product.permute(2, 0, 1, 3, 4).flatten(2, 3)


def split_families(shape: BucketShape, rows: Tensor) -> Tensor:
    """(B, H, G, t, x) of (B, H, G t, x)."""
    return rows.reshape(*rows.shape[:2], shape.families, shape.tokens, rows.shape[3])
