"""Heads and readouts of a model's tasks: what several tasks read is read once, and multiplied by many weights at once.

What a part adds to the logits is mostly a product (`Part.inputs`, `Part.weights`). Weights of tasks that read the same
numbers, whatever their numbers of classes, are put into one matrix: with 1,000 tasks the calls and the reading would
otherwise take most of the time. That copies them, once per pass, or once for a block of passes (folding.py).
`Task.forward` is the same for one task by itself.

Letters for shapes: B images, F numbers that are read, C classes of all tasks of a product.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from memtok.folding import is_plain
from memtok.levels import Statistics
from memtok.parts import PARTS, Part, Together
from memtok.task import Task

# Rows of a block of a product on a CPU, about: libraries are slow at many weights for few images. 32 images times
# (8000, 59904) in a batch of such blocks took 0.8 of the time of products of 256 rows (MKL, two threads; 0.9 with one),
# and times (3000, 59904) 0.6 of that of one product.
ROWS = 400
AT_ONCE = 128  # tasks whose states lie in memory at the same time


@dataclass(frozen=True)
class Own:
    """A task by its position in the model: its tensors and choices, as `Part.logits` takes them."""

    position: int
    tensors: Mapping[str, Tensor]
    words: Mapping[str, str]

    @property
    def classes(self) -> int:
        """How many it has."""
        return len(self.tensors["head.bias"])


@dataclass(frozen=True)
class Product:
    """Tasks whose weights stand in one matrix: the classes of each by position, weight (C, F), bias (C,) or none."""

    classes: Mapping[int, int]
    weight: Tensor
    bias: Tensor | None

    def of(self, inputs: Tensor) -> Iterator[tuple[int, Tensor]]:
        """For each task its (B, classes), from inputs (B, F)."""
        rows, start = multiplied(inputs, self.weight, self.bias), 0
        for position, count in self.classes.items():
            yield position, rows[:, start : start + count]
            start += count


@dataclass(frozen=True)
class Group:
    """Tasks that read the same numbers with a part, in one product; or one that reads its own, without any."""

    part: Part
    first: Own
    product: Product | None

    def of(self, features: Mapping[int, Tensor], statistics: Statistics) -> Iterator[tuple[int, Tensor]]:
        """What the part adds to the logits of each task that it adds something to."""
        tensors, words = self.first.tensors, self.first.words
        own = features[self.first.position].flatten(1).to(tensors["head.weight"].dtype)
        if self.product is not None:
            inputs = self.part.inputs(tensors, words, own, statistics)
            assert inputs is not None
            yield from self.product.of(inputs)
            return
        found = self.part.logits(tensors, words, own, statistics)
        if found is not None:
            yield self.first.position, found

    def tensors(self) -> Iterator[Tensor]:
        """The weight and the bias, where they are copies; those of a task by itself are its own."""
        if self.product is not None and len(self.product.classes) > 1:
            yield from (tensor for tensor in (self.product.weight, self.product.bias) if tensor is not None)


@dataclass(frozen=True)
class Joint:
    """Tasks of one shape, by position, for which a part computes at once."""

    positions: tuple[int, ...]
    computed: Together

    def of(self, features: Mapping[int, Tensor], statistics: Statistics) -> Iterator[tuple[int, Tensor]]:
        """What the part adds to the logits of each task."""
        return zip(self.positions, self.computed.logits(statistics), strict=True)

    def tensors(self) -> Iterable[Tensor]:
        """Copies of what belongs to the tasks."""
        return self.computed.tensors()


@dataclass(frozen=True)
class Heads:
    """All that comes after the layers, of the tasks that a model answers, part by part."""

    groups: tuple[Group | Joint, ...]

    def logits(self, features: Mapping[int, Tensor], statistics: Statistics) -> dict[int, Tensor]:
        """(B, classes) of each task by position, from features by position and statistics as of `Task.forward`."""
        total: dict[int, Tensor] = {}
        for group in self.groups:
            for position, found in group.of(features, statistics):
                total[position] = total[position] + found if position in total else found
        return {position: found.contiguous() for position, found in total.items()}

    def tensors(self) -> Iterator[Tensor]:
        """Those that are copies of what belongs to the tasks."""
        return (tensor for group in self.groups for tensor in group.tensors())


def heads_of(tasks: Sequence[Task], answered: Sequence[int]) -> Heads:
    """The heads of the tasks at these positions, as the tasks are now; gradients reach their parameters."""
    owns = [Own(position, tasks[position].everything, tasks[position].words) for position in answered]
    parts = [part for part in PARTS if not part.in_layers]
    return Heads(tuple(group for part in parts for group in grouped(part, owns)))


def grouped(part: Part, owns: Sequence[Own]) -> Iterator[Group | Joint]:
    """The tasks that have a part by what they read with it, or by its shape."""
    having = [own for own in owns if any(name in own.tensors for name in part.names)]
    shapes: dict[Hashable, list[Own]] = {}
    for own in having:
        shapes.setdefault(part.shape(own.tensors), []).append(own)
    yield from by_source(part, shapes.pop(None, []))
    for members in shapes.values():
        for start in range(0, len(members), AT_ONCE):
            some = members[start : start + AT_ONCE]
            yield Joint(tuple(own.position for own in some), part.together([own.tensors for own in some]))


def by_source(part: Part, owns: Sequence[Own]) -> Iterator[Group]:
    """The tasks by what they read with a part."""
    known: dict[Hashable, list[list[Own]]] = {}
    for own in owns:
        alike = known.setdefault(key_of(part, own), [])
        mates = next((mates for mates in alike if same_values(part, mates[0], own)), None)
        if mates is None:
            alike.append([own])
        else:
            mates.append(own)
    for mates in (mates for alike in known.values() for mates in alike):
        shares = part.source(mates[0].tensors, mates[0].words) is not None
        yield Group(part, mates[0], joined(part, mates) if shares else None)


def key_of(part: Part, own: Own) -> Hashable:
    """Equal for tasks that read the same numbers, given `same_values`; the position of one that reads its own."""
    source = part.source(own.tensors, own.words)
    if source is None:
        return own.position
    return source[0], own.tensors["head.weight"].dtype, part.weights(own.tensors)[0].dtype


def same_values(part: Part, one: Own, other: Own) -> bool:
    """Whether two tasks of one key read by tensors of the same values."""
    pairs = (part.source(own.tensors, own.words) for own in (one, other))
    values = [source[1] if source else () for source in pairs]
    return all(map(equal, *values))


def equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are known to have equal values: no GPU is waited for, and no graph depends on values."""
    if torch.compiler.is_compiling() or one.device.type != "cpu" or not (is_plain(one) and is_plain(other)):
        return one is other
    return torch.equal(one, other)


def joined(part: Part, owns: Sequence[Own]) -> Product:
    """The product of a part for these tasks; that of one task copies nothing."""
    weights, biases = zip(*(part.weights(own.tensors) for own in owns), strict=True)
    bias = None if biases[0] is None else side_by_side(biases)
    return Product({own.position: own.classes for own in owns}, side_by_side(weights), bias)


def multiplied(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(B, C): inputs (B, F) times weight (C, F), on a CPU in blocks of equally many rows."""
    blocks = len(weight) // ROWS
    if blocks < 2 or weight.device.type != "cpu" or torch.compiler.is_compiling():
        return F.linear(inputs, weight, bias)
    rows = len(weight) // blocks * blocks
    batched = weight[:rows].view(blocks, -1, weight.shape[1]).transpose(1, 2)  # (blocks, F, rows of one)
    found = torch.bmm(inputs.expand(blocks, -1, -1), batched).transpose(0, 1).flatten(1)
    found = torch.cat([found, F.linear(inputs, weight[rows:])], dim=1)
    return found if bias is None else found + bias


def side_by_side(rows: Sequence[Tensor]) -> Tensor:
    """All rows of some tensors; of one, itself."""
    return rows[0] if len(rows) == 1 else torch.cat(list(rows))
