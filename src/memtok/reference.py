"""The method written down literally: one attention call per layer under the mask of Table 1.

Slow and plain on purpose. The task streams are tested against `reference_outputs`, and the regimes whose image tokens
see the task (`head+class`, `memory-shared`, `memory-propagated`, `memory-additive`) cannot be split into streams and
run on `variant_outputs`. Letters as in layers/base.py.

Source: Sandler et al., CVPR 2022 (arXiv 2203.15243), Table 1, and Figure 2 for the variants.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from memtok.backbone import Backbone, gradients_of, stacked
from memtok.errors import MemtokError
from memtok.layers import Adapt, Layer, Positions, unadapted
from memtok.levels import CLASS, PATCHES, Statistics, union
from memtok.outputs import Outputs, TaskAttention
from memtok.regimes import REGIMES, UPDATED
from memtok.task import Task, topological


def attention_mask(trunk_tokens: int, tasks: Sequence[Task]) -> Tensor:
    """(N + T, N + T + M) bool, Table 1 of the paper: True where row i (query) attends to column j (key).

    Rows: the trunk's tokens, then the class tokens of each task in order. Columns: the same, then the memory cells of
    each task in order. Trunk tokens attend to trunk tokens only. A class token attends to these, to the class tokens
    and memory of its own task, and to those of every task that its own extends.
    """
    row_owner = [None] * trunk_tokens + [id(task) for task in tasks for _ in range(task.queries)]
    column_owner = row_owner + [id(task) for task in tasks for _ in range(task.cells)]
    sees = {id(task): {id(task), *(id(ancestor) for ancestor in task.ancestors())} for task in tasks}
    mask = [
        [column is None or (row is not None and column in sees[row]) for column in column_owner] for row in row_owner
    ]
    return torch.tensor(mask, dtype=torch.bool, device="cpu")


def masked_attention(
    layer: Layer, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Heads (B, H, n, d) and probabilities (B, H, n, columns); masked scores are minus infinity before the softmax.

    bias: (..., H, n, columns) of positions. mask: (n, columns) bool, True where row i sees column j.
    """
    scores = (query * layer.scale) @ key.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    probabilities = scores.softmax(dim=-1).to(value.dtype)
    return probabilities @ value, probabilities


def rotate(layer: Layer, rows: Tensor, positions: Positions, count: int) -> Tensor:
    """Queries or keys (B, H, n, d), the first `count` of which are image tokens and have rotary positions."""
    if positions is None:
        return rows
    return torch.cat([layer.rotate(rows[:, :, :count], positions), rows[:, :, count:]], dim=2)


def bias_of(layer: Layer, positions: Positions, position_of: Sequence[int], rows: int, columns: int) -> Tensor | None:
    """(..., H, n + rows, n + columns) the bias of positions; None where the trunk has none.

    position_of: for each of n tokens the token of the trunk whose position it has, 0 for class tokens. The further
    rows and columns are memory, which has no position and no bias.
    """
    trunk = layer.position_bias(positions)
    return None if trunk is None else F.pad(trunk[..., position_of, :][..., position_of], (0, columns, 0, rows))


def dense_layer(
    layer: Layer,
    x: Tensor,
    positions: Positions,
    position_of: Sequence[int],
    image: int,
    cells: Tensor,
    mask: Tensor | None = None,
    adapt: Adapt = unadapted,
) -> tuple[Tensor, Tensor]:
    """Tokens (B, n, D) after one layer of attention among all tokens and to memory cells (m, D), unless masked.

    Also returns the attention weights (B, H, n, n + m). position_of: as in `bias_of`, of the first tokens; those after
    them are memory that passes through the layers. image: how many of the first tokens are image tokens, patches last
    among them.
    """
    normed = layer.normed(x)
    query, key, value = layer.queries_keys_values(normed, adapt)
    query, key = rotate(layer, query, positions, image), rotate(layer, key, positions, image)
    memory_key, memory_value = layer.keys_and_values(cells.expand(x.shape[0], -1, -1))
    key, value = torch.cat([key, memory_key], dim=2), torch.cat([value, memory_value], dim=2)
    travelling = x.shape[1] - len(position_of)
    bias = bias_of(layer, positions, position_of, travelling, travelling + len(cells))
    heads, probabilities = masked_attention(layer, query, key, value, bias, mask)
    return layer.add_mlp(layer.add_attention(x, heads, normed, adapt), adapt), probabilities


def reference_outputs(backbone: Backbone, tasks: Sequence[Task], images: Tensor, *, attention: bool = False) -> Outputs:
    """Answers of composable tasks and of the base, (B, 3, height, width) images, by one masked attention per layer.

    What the tasks extend is computed too and need not be listed; only the listed tasks are answered.
    """
    for task in tasks:
        if not task.composable:
            raise MemtokError(f"expected composable tasks, found {task.name!r} of regime {task.regime!r}")
    everyone = topological(tasks)
    extended = {id(ancestor) for task in everyone for ancestor in task.ancestors()}
    own = {id(task): task.in_layers(frozen=id(task) in extended) for task in everyone}

    images = backbone.check_images(images)
    trunk = backbone.enter(images)  # (B, N, D)
    batch, count, _ = trunk.shape
    tokens = (
        torch.cat([own[id(task)]["class_tokens"] for task in everyone])
        if everyone
        else trunk.new_zeros(0, backbone.dim)
    )
    entered = backbone.enter_class_tokens(tokens.to(trunk.dtype))
    x = torch.cat([trunk, entered.expand(batch, -1, -1)], dim=1)  # (B, N + T, D)
    mask = attention_mask(count, everyone).to(x.device)
    position_of = [*range(count), *[0] * len(tokens)]
    weights: list[Tensor] = []
    reads = union(task.reads for task in tasks)
    levels: list[dict[str, Tensor]] = []
    for index, (layer, positions) in enumerate(zip(backbone.layers, backbone.positions(), strict=True)):
        with gradients_of(images):
            levels.append(backbone.statistics(x[:, :count], index, reads))
        adapted = partial(adapt, everyone, own, index, count)
        memory = [placed_memory(task, own[id(task)]["memory"][index].to(x.dtype), layer) for task in everyone]
        cells = torch.cat([*memory, x.new_zeros(0, backbone.dim)])  # (M, D)
        x, probabilities = dense_layer(layer, x, positions, position_of, count, cells, mask, adapted)
        weights.append(probabilities)
    with gradients_of(images):
        levels.append(backbone.statistics(x[:, :count], backbone.depth, reads))
    statistics = stacked(levels)

    final = backbone.final_norm(x)
    rows = slices([count, *(task.queries for task in everyone)])[1:]
    with gradients_of(images):
        features = backbone.features(x[:, :count])
    logits, embeddings = {}, {}
    for task, row in zip(everyone, rows, strict=True):
        if any(task is asked for asked in tasks):
            read = final[:, row] if task.queries else features
            logits[task.name], embeddings[task.name] = answer(task, read, statistics), read.flatten(1)
    base = backbone.classify(backbone.vit.norm(x[:, :count]))
    attended = sort_attention(everyone, torch.stack(weights), count) if attention else {}
    return Outputs(features, base, logits, {name: attended[name] for name in logits if name in attended}, embeddings)


def answer(task: Task, features: Tensor, statistics: Statistics) -> Tensor:
    """(B, classes) logits of a task from its class tokens after the final norm, and from the levels that it reads."""
    own = task.named() | task.measured
    logits = F.linear(features.flatten(1).to(own["head.weight"].dtype), own["head.weight"], own["head.bias"])
    if "readout.weight" in own:
        weight = own["readout.weight"]
        vectors = [statistics[name][:, -weight.shape[1] :] for name in task.words["statistics"].split("+")]
        read = torch.cat(vectors, dim=2).to(weight.dtype)  # (B, n, S, D)
        if "readout.mean" in own:
            read = (read - own["readout.mean"]) / own["readout.spread"]
        logits = logits + torch.einsum("bnsd,cnsd->bc", read, weight)
    return logits + side_stream(own, statistics) if "side.weight" in own else logits


def side_stream(own: Mapping[str, Tensor], statistics: Statistics) -> Tensor:
    """(B, classes) what a side stream adds to the logits: the equations of docs/method.md, level by level."""
    weight = own["side.weight"]
    patches = statistics[PATCHES].to(weight.dtype)  # (B, m, g, h, D)
    count, rows, columns = patches.shape[1:4]
    state = weight.new_zeros(1, 1, 1, 1)  # (B, g, h, r)
    for level in range(count):
        state = state + patches[:, level] @ own["side.patches"][level].T + own["side.bias"][level]
        if "side.class" in own:
            token = statistics[CLASS][:, 1 - 2 * (count - level), 0].to(weight.dtype)  # (B, D) of the same level
            state = state + (token @ own["side.class"][level].T)[:, None, None]
        around = F.pad(normed_state(state), (0, 0, 1, 1, 1, 1))
        for row, column in itertools.product(range(3), range(3)):
            seen = around[:, row : row + rows, column : column + columns]
            state = state + seen * own["side.mix"][level, :, row, column]
        hidden = F.gelu(normed_state(state) @ own["side.up"][level].T)
        state = state + hidden @ own["side.down"][level].T
    image = normed_state(state).permute(0, 3, 1, 2)  # (B, r, g, h)
    read = torch.cat([image.mean(dim=(2, 3)).unsqueeze(2), F.adaptive_avg_pool2d(image, 4).flatten(2)], dim=2)
    return torch.einsum("brs,csr->bc", read, weight)


def normed_state(state: Tensor) -> Tensor:
    """The state (B, g, h, r) of every patch with mean 0 and variance 1."""
    return F.layer_norm(state, state.shape[-1:])


def placed_memory(task: Task, cells: Tensor, layer: Layer) -> Tensor:
    """Memory cells (m, D) as the key and value projections see them: before the layer's norm, or after it."""
    return layer.normed(cells) if task.placement == "before-norm" else cells


def adapt(
    tasks: Sequence[Task],
    own: dict[int, dict[str, Tensor]],
    layer: int,
    count: int,
    name: str,
    tokens: Tensor,
    total: Tensor,
) -> Tensor:
    """`total` (B, N + T, outputs) with each task's adapter added to the rows of its own class tokens."""
    rows = slices([count, *(task.queries for task in tasks)])[1:]
    for task, row in zip(tasks, rows, strict=True):
        if task.adapter_rank:
            down, up = (own[id(task)][f"adapters.{name}.{half}"][layer] for half in ("down", "up"))
            update = tokens[:, row] @ down.to(tokens.dtype).T @ up.to(tokens.dtype).T
            total = torch.cat([total[:, : row.start], total[:, row] + update, total[:, row.stop :]], dim=1)
    return total


def slices(lengths: Sequence[int]) -> list[slice]:
    """Consecutive slices of these lengths."""
    found, start = [], 0
    for length in lengths:
        found.append(slice(start, start + length))
        start += length
    return found


def sort_attention(tasks: Sequence[Task], weights: Tensor, count: int) -> dict[str, TaskAttention]:
    """Probabilities (L, B, H, N + T, N + T + M) sorted out by task."""
    tokens = slices([count, *(task.queries for task in tasks)])[1:]
    first = count + sum(task.queries for task in tasks)
    cells = slices([first, *(task.cells for task in tasks)])[1:]
    columns = {task.name: (tokens[index], cells[index]) for index, task in enumerate(tasks)}
    found = {}
    for task in tasks:
        if not task.queries:
            continue
        mine = weights[..., columns[task.name][0], :]  # (L, B, H, queries, N + T + M)
        extended = {
            ancestor.name: torch.cat([mine[..., part] for part in columns[ancestor.name]], dim=-1)
            for ancestor in task.ancestors()
            if ancestor.queries
        }
        own_tokens, own_cells = columns[task.name]
        found[task.name] = TaskAttention(mine[..., :count], mine[..., own_tokens], mine[..., own_cells], extended)
    return found


def without_class_token(backbone: Backbone, images: Tensor) -> Tensor:
    """(B, n, D) the trunk's tokens as they enter the first layer, all but the base class token."""
    entered = backbone.enter(images)
    return entered if backbone.class_token is None else entered[:, 1:]


def variant_outputs(backbone: Backbone, task: Task, images: Tensor, *, attention: bool = False) -> Outputs:
    """Logits of a task that image tokens attend to: its class token replaces the base one. No base output.

    head+class: nothing else. memory-shared: every token attends to the layer's memory, which has no queries.
    memory-propagated: memory cells enter before the first layer and pass through as ordinary tokens. memory-additive:
    the same, and each further layer adds its own learned update to them.
    """
    images = backbone.check_images(images)
    rest = without_class_token(backbone, images)
    batch = images.shape[0]
    own = backbone.enter_class_tokens(task.class_tokens.to(rest.dtype)).expand(batch, -1, -1)
    x = torch.cat([own, rest], dim=1)  # (B, N, D)
    count = x.shape[1]
    regime = REGIMES[task.regime]
    memory = task.memory.to(x.dtype)
    if regime.enters:
        x = torch.cat([x, memory[0].expand(batch, -1, -1)], dim=1)  # (B, N + m, D)
    weights = []
    for index, (layer, positions) in enumerate(zip(backbone.layers, backbone.positions(), strict=True)):
        if regime.cells == UPDATED and index:
            x = torch.cat([x[:, :count], x[:, count:] + memory[index]], dim=1)
        cells = x.new_zeros(0, backbone.dim) if regime.enters else placed_memory(task, memory[index], layer)
        x, probabilities = dense_layer(layer, x, positions, range(count), count, cells)
        if attention:
            weights.append(probabilities[:, :, :1])
    final = backbone.final_norm(x[:, :1])
    attended = {}
    if attention:
        seen = torch.stack(weights)  # (L, B, H, 1, N + m); its own class token stands where the base one stood
        image = torch.cat([torch.zeros_like(seen[..., :1]), seen[..., 1:count]], dim=-1)
        attended[task.name] = TaskAttention(image, seen[..., :1], seen[..., count:])
    return Outputs(None, None, {task.name: task(final)}, attended, {task.name: final.flatten(1)})


def unmasked_outputs(backbone: Backbone, tasks: Sequence[Task], images: Tensor) -> Outputs:
    """Answers of tasks that are put side by side without a mask: every token sees every task. No base output.

    What the mask of Table 1 prevents, to measure what it is worth. The tasks' class tokens take the place of the base
    one, and all tokens see all class tokens and all memory cells, whatever a task was trained to see. With one task
    of regime `head+class` or `memory-shared` this is `variant_outputs`. Raises MemtokError for tasks without class
    tokens, with adapters or a readout, or with memory that passes through the layers.
    """
    for task in tasks:
        if not task.queries or task.adapter_rank or task.reads or REGIMES[task.regime].enters:
            raise MemtokError(
                f"expected tasks of class tokens and memory in every layer, found {task.name!r} of regime "
                f"{task.regime!r} ({', '.join(f'{name} {size}' for name, size in task.sizes.items())}); train it with "
                "regime 'memory' or 'memory-shared' and nothing else"
            )
    images = backbone.check_images(images)
    rest = without_class_token(backbone, images)
    tokens = backbone.enter_class_tokens(torch.cat([task.class_tokens for task in tasks]).to(rest.dtype))
    x = torch.cat([tokens.expand(images.shape[0], -1, -1), rest], dim=1)  # (B, T + N - 1, D)
    position_of = [*[0] * len(tokens), *range(1, rest.shape[1] + 1)]
    for index, (layer, positions) in enumerate(zip(backbone.layers, backbone.positions(), strict=True)):
        cells = torch.cat([placed_memory(task, task.memory[index].to(x.dtype), layer) for task in tasks])  # (M, D)
        x, _ = dense_layer(layer, x, positions, position_of, len(position_of), cells)
    final = backbone.final_norm(x[:, : len(tokens)])
    rows = slices([task.queries for task in tasks])
    read = {task.name: final[:, row] for task, row in zip(tasks, rows, strict=True)}
    logits = {task.name: task(read[task.name]) for task in tasks}
    return Outputs(None, None, logits, {}, {name: tokens.flatten(1) for name, tokens in read.items()})
