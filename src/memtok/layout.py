"""Which rows of the streams belong to which task: families of tasks, and buckets of families that are computed at once.

Tasks joined by extension form a family; a lone task is a family of one. Families of one shape form a bucket. Nothing
here grows with the square of the number of tasks, and nothing depends on the values of tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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
    """Which rows belong to which task. It depends on the sizes and the extension of tasks only, not on their values.

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
        """Equal for families that can be computed at once: sizes of the tasks, and which attends to which."""
        sizes = tuple((tasks[position].queries, tasks[position].cells) for position in family)
        sees = tuple(
            tuple(column for column, other in enumerate(family) if other in self.seen[position]) for position in family
        )
        return sizes, sees

    def family_mask(self, tasks: Sequence[Task], family: tuple[int, ...]) -> Tensor:
        """(t, t + m) bool, True where row i attends to column j; columns: class tokens, then memory of the family."""
        owners_of_tokens = [position for position in family for _ in range(tasks[position].queries)]
        owners_of_cells = [position for position in family for _ in range(tasks[position].cells)]
        columns = owners_of_tokens + owners_of_cells
        rows = [[column == row or column in self.seen[row] for column in columns] for row in owners_of_tokens]
        return torch.tensor(rows, dtype=torch.bool, device="cpu").reshape(len(owners_of_tokens), len(columns))

    def split_attention(self, tasks: Sequence[Task], weights: Sequence[Sequence[Tensor]]) -> dict[int, TaskAttention]:
        """Attention weights of every layer and bucket, (B, H, G t, N + t + m), by task."""
        found: dict[int, TaskAttention] = {}
        for number, bucket in enumerate(self.buckets):
            layers = torch.stack([layer[number] for layer in weights])  # (L, B, H, G t, N + t + m)
            count = layers.shape[-1] - bucket.tokens - bucket.cells
            for index, family in enumerate(bucket.families):
                rows = slice(index * bucket.tokens, (index + 1) * bucket.tokens)
                found |= self.split_family(tasks, family, layers[:, :, :, rows], count)
        return found

    def split_family(
        self, tasks: Sequence[Task], family: tuple[int, ...], weights: Tensor, count: int
    ) -> dict[int, TaskAttention]:
        """The same for one family, (L, B, H, t, N + t + m) with N = `count`."""
        first = self.rows[family[0]]
        total = sum(tasks[position].queries for position in family)

        def tokens_of(position: int) -> slice:
            start = self.rows[position].token_start - first.token_start
            return slice(start, start + tasks[position].queries)

        def weights_of(position: int, other: int) -> tuple[Tensor, Tensor]:
            columns, start = tokens_of(other), count + total + self.rows[other].cell_start - first.cell_start
            of_tokens = weights[..., tokens_of(position), count + columns.start : count + columns.stop]
            return of_tokens, weights[..., tokens_of(position), start : start + tasks[other].cells]

        found = {}
        for position in family:
            extended = {
                tasks[other].name: torch.cat(weights_of(position, other), dim=-1)
                for other in family
                if other in self.seen[position]
            }
            image = weights[..., tokens_of(position), :count]
            found[position] = TaskAttention(image, *weights_of(position, position), extended)
        return found


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
