"""Task streams: the class tokens of all tasks walk up the layers beside the trunk, over its trace.

In each layer a class token attends to the N traced keys, to the class tokens of its task, to its task's memory, and to
the class tokens and memory of what its task extends (Table 1 of the paper). Tasks joined by extension form a family;
attention is dense and masked inside a family, and families of one shape form a bucket that is computed at once. A lone
task is a family of one. Nothing here grows with the square of the number of tasks.

Letters as in backbone.py; in a bucket: G families, t class tokens and m cells per family.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from memtok.backbone import Backbone, Trace, join_heads, project_keys_and_values, split_heads
from memtok.outputs import TaskAttention
from memtok.task import Task


@dataclass(frozen=True)
class Rows:
    """Where one task's class tokens and memory cells lie among those of all tasks."""

    token_start: int
    tokens: int
    cell_start: int
    cells: int


@dataclass(frozen=True)
class Bucket:
    """Families of one shape. Their rows are consecutive: family by family, task by task."""

    families: tuple[tuple[int, ...], ...]  # positions of the tasks, in the order of their rows
    token_start: int
    tokens: int  # t, per family
    cell_start: int
    cells: int  # m, per family


class Layout:
    """Which rows belong to whom. It depends on the sizes and the extension of tasks only, not on their values.

    tasks: the given tasks; extends: for each, the positions of the tasks that it extends directly.
    The order of rows is canonical: it does not depend on the order in which the tasks were given.
    """

    def __init__(self, tasks: Sequence[Task], extends: Sequence[Sequence[int]]) -> None:
        self.seen = [seen_by(position, extends) for position in range(len(tasks))]
        self.extended = frozenset(ancestor for ancestors in extends for ancestor in ancestors)
        self.rows: dict[int, Rows] = {}
        self.buckets: list[Bucket] = []
        shapes: dict[tuple[object, ...], list[tuple[int, ...]]] = {}
        for family in families_of(tasks, extends):
            ordered = self.order_family(tasks, family)
            shapes.setdefault(self.family_shape(tasks, ordered), []).append(ordered)
        token_start = cell_start = 0
        for shape in sorted(shapes, key=repr):
            members = sorted(shapes[shape], key=lambda family: [tasks[position].name for position in family])
            tokens = sum(tasks[position].queries for position in members[0])
            cells = sum(tasks[position].cells for position in members[0])
            self.buckets.append(Bucket(tuple(members), token_start, tokens, cell_start, cells))
            for position in (position for family in members for position in family):
                task = tasks[position]
                self.rows[position] = Rows(token_start, task.queries, cell_start, task.cells)
                token_start += task.queries
                cell_start += task.cells
        self.order = tuple(self.rows)  # positions of tasks in the order of their rows
        self.tokens, self.cells = token_start, cell_start

    def order_family(self, tasks: Sequence[Task], family: Sequence[int]) -> tuple[int, ...]:
        """Fewest ancestors first, then by size and name, so that families of one shape come out alike."""

        def key(position: int) -> tuple[int, int, int, str]:
            task = tasks[position]
            return len(self.seen[position]), task.queries, task.cells, task.name

        return tuple(sorted(family, key=key))

    def family_shape(self, tasks: Sequence[Task], family: tuple[int, ...]) -> tuple[object, ...]:
        """Equal for families that can be computed at once: sizes of the tasks, and who sees whom."""
        sizes = tuple((tasks[position].queries, tasks[position].cells) for position in family)
        sees = tuple(
            tuple(column for column, other in enumerate(family) if other in self.seen[position]) for position in family
        )
        return sizes, sees

    def family_mask(self, tasks: Sequence[Task], family: tuple[int, ...]) -> Tensor:
        """(t, t + m) bool, True where row i sees column j; columns are the family's class tokens, then its memory."""
        owners_of_tokens = [position for position in family for _ in range(tasks[position].queries)]
        owners_of_cells = [position for position in family for _ in range(tasks[position].cells)]
        columns = owners_of_tokens + owners_of_cells
        rows = [[column == row or column in self.seen[row] for column in columns] for row in owners_of_tokens]
        return torch.tensor(rows, dtype=torch.bool).reshape(len(owners_of_tokens), len(columns))


def seen_by(position: int, extends: Sequence[Sequence[int]]) -> frozenset[int]:
    """Positions of all tasks that the task at `position` extends, directly or through others."""
    found: set[int] = set()
    waiting = list(extends[position])
    while waiting:
        ancestor = waiting.pop()
        if ancestor not in found:
            found.add(ancestor)
            waiting.extend(extends[ancestor])
    return frozenset(found)


def families_of(tasks: Sequence[Task], extends: Sequence[Sequence[int]]) -> list[list[int]]:
    """Connected components of extension among the tasks that have class tokens."""
    neighbours: dict[int, set[int]] = {position: set() for position in range(len(tasks)) if tasks[position].queries}
    for position in neighbours:
        for ancestor in seen_by(position, extends):
            if ancestor in neighbours:
                neighbours[position].add(ancestor)
                neighbours[ancestor].add(position)
    families: list[list[int]] = []
    left = set(neighbours)
    while left:
        waiting = [left.pop()]
        family = []
        while waiting:
            position = waiting.pop()
            family.append(position)
            fresh = neighbours[position] & left
            left -= fresh
            waiting.extend(fresh)
        families.append(family)
    return families


class AdapterGroup(nn.Module):
    """Adapters of one rank on tasks with equally many class tokens, computed at once."""

    index: Tensor

    def __init__(self, members: Sequence[int], rows: Sequence[Rows]) -> None:
        super().__init__()
        self.members = tuple(members)
        index = [row for task in rows for row in range(task.token_start, task.token_start + task.tokens)]
        self.register_buffer("index", torch.tensor(index), persistent=False)

    def forward(self, down: Tensor, up: Tensor, tokens: Tensor, total: Tensor) -> Tensor:
        """`total` (B, T, outputs) with the update of this group's rows added; `tokens` (B, T, inputs) are its input.

        down: (K, rank, inputs), up: (K, outputs, rank), for the K tasks of the group.
        """
        index = self.index.to(tokens.device)  # models share backbone and tasks, which another model may have moved
        picked = tokens.index_select(1, index)
        queries = len(index) // len(self.members)
        picked = picked.reshape(tokens.shape[0], len(self.members), queries, tokens.shape[2])  # (B, K, queries, inputs)
        low = picked @ down.transpose(-2, -1)  # (B, K, queries, rank)
        update = (low @ up.transpose(-2, -1)).flatten(1, 2)  # (B, K queries, outputs)
        return total.index_add(1, index, update.to(total.dtype))


class TaskStreams(nn.Module):
    """Computes all task streams over a trace. It owns no parameter: the values come from the tasks at every call."""

    def __init__(self, tasks: Sequence[Task], extends: Sequence[Sequence[int]], device: torch.device) -> None:
        super().__init__()
        self.layout = Layout(tasks, extends)
        for number, bucket in enumerate(self.layout.buckets):
            mask = self.layout.family_mask(tasks, bucket.families[0])
            # A lone task sees all that its family has: no mask is needed.
            self.register_buffer(f"mask_{number}", None if bool(mask.all()) else mask, persistent=False)
        groups: dict[tuple[int, int], list[int]] = {}
        for position in self.layout.order:
            if tasks[position].adapter_rank:
                groups.setdefault((tasks[position].adapter_rank, tasks[position].queries), []).append(position)
        self.groups = nn.ModuleList(
            AdapterGroup(members, [self.layout.rows[position] for position in members]) for members in groups.values()
        )
        self.to(device)

    def forward(
        self, backbone: Backbone, tasks: Sequence[Task], trace: Trace, attention: bool = False
    ) -> tuple[dict[int, Tensor], dict[int, TaskAttention]]:
        """Class tokens after the final norm, (B, queries, D) for each task that has some, by position.

        With `attention`, also where they look.
        """
        values = {position: self.task_tensors(tasks, position) for position in self.layout.order}
        start = torch.cat([values[position]["class_tokens"] for position in self.layout.order]).to(backbone.dtype)
        batch = trace.keys[0].shape[0]
        x = backbone.embed_class_tokens(start).expand(batch, -1, -1)  # (B, T, D)
        looks: list[list[Tensor]] = []
        for layer, block in enumerate(backbone.vit.blocks):
            normed = block.norm1(x)
            qkv = self.adapt("qkv", values, layer, normed, block.attn.qkv(normed))
            query, key, value = split_heads(block.attn, qkv)  # (B, H, T, d) each
            cells = self.memory_of_layer(backbone, tasks, values, layer)
            memory_key, memory_value = project_keys_and_values(block.attn, cells.unsqueeze(0))  # (1, H, M, d) each
            parts: list[Tensor] = []
            looks.append([])
            for number, bucket in enumerate(self.layout.buckets):
                heads, probabilities = attend_bucket(
                    bucket,
                    self.get_buffer(f"mask_{number}") if getattr(self, f"mask_{number}") is not None else None,
                    query * block.attn.scale,
                    (trace.keys[layer], trace.values[layer]),
                    (key, value),
                    (memory_key[0], memory_value[0]),
                )
                parts.append(heads)
                if attention:
                    looks[-1].append(probabilities)
            joined = join_heads(block.attn, torch.cat(parts, dim=2), normed)
            x = x + block.ls1(self.adapt("proj", values, layer, joined, block.attn.proj(joined)))
            normed = block.norm2(x)
            x = x + block.ls2(self.adapt("mlp", values, layer, normed, block.mlp(normed)))
        normed = backbone.final_norm(x)
        rows = self.layout.rows
        features = {p: normed[:, row.token_start : row.token_start + row.tokens] for p, row in rows.items()}
        return features, self.split_attention(tasks, looks, trace.keys[0].shape[2]) if attention else {}

    def task_tensors(self, tasks: Sequence[Task], position: int) -> dict[str, Tensor]:
        """What the streams read of a task. That of an extended task is cut off: no gradient reaches it."""
        task = tasks[position]
        tensors: dict[str, Tensor] = {
            "class_tokens": task.class_tokens,
            "memory": task.memory,
            **task.adapters,
        }
        if position in self.layout.extended:
            return {key: value.detach() for key, value in tensors.items()}
        return tensors

    def memory_of_layer(
        self, backbone: Backbone, tasks: Sequence[Task], values: dict[int, dict[str, Tensor]], layer: int
    ) -> Tensor:
        """(M, D) the memory cells of one layer in the order of the rows, as the key and value projections see them."""
        norm = backbone.vit.blocks[layer].norm1
        order = self.layout.order
        cells = torch.cat([values[position]["memory"][layer] for position in order]).to(backbone.dtype)
        placements = {tasks[position].placement for position in order if tasks[position].cells}
        if placements == {"before-norm"}:
            normed: Tensor = norm(cells)
            return normed
        if placements <= {"after-norm"}:
            return cells
        before = [
            tasks[position].placement == "before-norm" for position in order for _ in range(tasks[position].cells)
        ]
        return torch.where(torch.tensor(before, device=cells.device).unsqueeze(1), norm(cells), cells)

    def adapt(
        self, name: str, values: dict[int, dict[str, Tensor]], layer: int, tokens: Tensor, total: Tensor
    ) -> Tensor:
        """`total`, the output (B, T, outputs) of a frozen projection of `tokens`, with the tasks' adapters added."""
        for group in self.groups:
            assert isinstance(group, AdapterGroup)
            down = torch.stack([values[position][f"{name}_down"][layer] for position in group.members])
            up = torch.stack([values[position][f"{name}_up"][layer] for position in group.members])
            total = group(down.to(tokens.dtype), up.to(tokens.dtype), tokens, total)
        return total

    def split_attention(
        self, tasks: Sequence[Task], looks: Sequence[Sequence[Tensor]], count: int
    ) -> dict[int, TaskAttention]:
        """Probabilities of every layer and bucket, (B, H, G, t, N + t + m), sorted out by task."""
        found: dict[int, TaskAttention] = {}
        for number, bucket in enumerate(self.layout.buckets):
            layers = torch.stack([look[number] for look in looks])  # (L, B, H, G, t, N + t + m)
            for index, family in enumerate(bucket.families):
                found |= self.split_family(tasks, family, layers[:, :, :, index], count)
        return found

    def split_family(
        self, tasks: Sequence[Task], family: tuple[int, ...], looks: Tensor, count: int
    ) -> dict[int, TaskAttention]:
        """The same for one family, (L, B, H, t, N + t + m)."""
        first = self.layout.rows[family[0]]
        total = sum(tasks[position].queries for position in family)

        def tokens_of(position: int) -> slice:
            start = self.layout.rows[position].token_start - first.token_start
            return slice(start, start + tasks[position].queries)

        def look_at(position: int, other: int) -> tuple[Tensor, Tensor]:
            columns, start = (
                tokens_of(other),
                count + total + self.layout.rows[other].cell_start - first.cell_start,
            )
            of_tokens = looks[..., tokens_of(position), count + columns.start : count + columns.stop]
            return of_tokens, looks[..., tokens_of(position), start : start + tasks[other].cells]

        found = {}
        for position in family:
            extended = {
                tasks[other].name: torch.cat(look_at(position, other), dim=-1)
                for other in family
                if other in self.layout.seen[position]
            }
            image = looks[..., tokens_of(position), :count]
            found[position] = TaskAttention(image, *look_at(position, position), extended)
        return found


def attend_bucket(
    bucket: Bucket,
    mask: Tensor | None,
    query: Tensor,
    trunk: tuple[Tensor, Tensor],
    tokens: tuple[Tensor, Tensor],
    memory: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """Attention of one bucket's class tokens, (B, H, G t, d), and its probabilities (B, H, G, t, N + t + m).

    query: (B, H, T, d), scaled, of all tasks. Pairs of keys and values: of the trunk (B, H, N, d), of the class tokens
    of all tasks (B, H, T, d), and of the memory of all tasks (H, M, d). mask: (t, t + m), True: row i sees column j.
    """
    families, t, m = len(bucket.families), bucket.tokens, bucket.cells
    batch, heads, _, width = query.shape
    count = trunk[0].shape[2]
    rows = slice(bucket.token_start, bucket.token_start + families * t)
    columns = slice(bucket.cell_start, bucket.cell_start + families * m)

    flat = query[:, :, rows]  # (B, H, G t, d)
    grouped = flat.reshape(batch, heads, families, t, width)
    token_key, token_value = (part[:, :, rows].reshape(batch, heads, families, t, width) for part in tokens)
    memory_key, memory_value = (part[:, columns].reshape(heads, families, m, width) for part in memory)

    over_trunk = (flat @ trunk[0].transpose(-2, -1)).reshape(batch, heads, families, t, count)
    over_tokens = grouped @ token_key.transpose(-2, -1)  # (B, H, G, t, t)
    over_memory = grouped @ memory_key.transpose(-2, -1)  # (B, H, G, t, m), the same cells for every image
    family = torch.cat([over_tokens, over_memory], dim=-1)
    if mask is not None:
        family = family.masked_fill(~mask.to(family.device), float("-inf"))
    probabilities = torch.cat([over_trunk, family], dim=-1).softmax(dim=-1).to(trunk[1].dtype)

    on_trunk, on_tokens, on_memory = torch.split(probabilities, [count, t, m], dim=-1)
    out = on_tokens @ token_value + on_memory @ memory_value
    out = out.flatten(2, 3) + on_trunk.flatten(2, 3) @ trunk[1]
    return out, probabilities
