"""MemoryViT: one backbone and any number of tasks, answered in one forward pass, each as if it were alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from memtok.backbone import INPUTS, KEYS_AND_VALUES, NOTHING, Backbone
from memtok.compiling import Compiled, shared_layers
from memtok.composing import (
    built_for,
    check_agreement,
    check_tasks,
    common_preprocessing,
    merge,
    named,
    refuse_alone,
    resolve_extends,
    two_of_one_name,
)
from memtok.errors import MemtokError
from memtok.folding import Folding, Snapshot, precision
from memtok.heads import heads_of
from memtok.levels import union
from memtok.outputs import Outputs, TaskAttention
from memtok.preprocessing import Preprocessing
from memtok.reference import variant_outputs
from memtok.streams import TaskStreams, Walk
from memtok.task import Task, topological
from memtok.trace import Kept, Trace, matched

if TYPE_CHECKING:
    from memtok.inputs import Pictures

# Of the trunk's arithmetic: what a step may spend on absorbed projections to halve the memory of its trace.
INPUTS_SHARE = 0.02


class MemoryViT(nn.Module):
    """A backbone with tasks. It holds the tasks that it is given, uncopied; making a model computes nothing.

    tasks: each with a name of its own, together with all that they extend. A task that is not composable stands alone.
    preprocessing: what images go through; needed only where the tasks' own differ or do not fit the backbone's size.

    Every method that changes the set of tasks returns a new model and leaves this one as it is.
    """

    def __init__(
        self, backbone: Backbone, tasks: Sequence[Task] = (), *, preprocessing: Preprocessing | None = None
    ) -> None:
        super().__init__()
        if not isinstance(backbone, Backbone):
            raise MemtokError(
                f"expected a memtok backbone, found {type(backbone).__name__}; wrap it with "
                "memtok.load_backbone(model)",
                argument="backbone",
            )
        check_tasks(backbone, tasks)
        self.backbone = backbone
        self._tasks = nn.ModuleList(tasks)
        self._answered = tuple(range(len(tasks)))  # positions in self._tasks
        self._explicit = preprocessing
        self.preprocessing = common_preprocessing(backbone, tasks, preprocessing)
        composable = [task for task in tasks if task.composable]
        extends = resolve_extends(tasks) if composable else []
        self.streams = (
            TaskStreams(composable, extends, backbone.device) if any(task.queries for task in composable) else None
        )
        self._built_for = tuple(built_for(task) for task in tasks)
        self._reads = tuple(task.reads for task in tasks)
        self._folding = Folding()
        self._compiled: Compiled | None = None

    @property
    def tasks(self) -> tuple[Task, ...]:
        """All tasks that are computed, those among them that are only extended by others."""
        return tuple(task for task in self._tasks if isinstance(task, Task))

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks that are answered, in order."""
        tasks = self.tasks
        return tuple(tasks[position].name for position in self._answered)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Lets the tasks train, or stops them. The backbone and what a task extends stay frozen."""
        extended = {id(ancestor) for task in self.tasks for ancestor in task.ancestors()}
        for task in self.tasks:
            if id(task) not in extended:
                task.requires_grad_(requires_grad)
        return self

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles the layers of trunk and streams, in place; the arguments are those of `torch.compile`.

        Models made from this one (add, remove, select, concat) share the compiled code: a task swapped for another of
        the same shape, whatever it is called, compiles nothing. The base output stays bitwise what a compiled model
        without tasks answers, for the trunk is compiled by itself. Use this instead of `torch.compile(model)`.

        The first batch of another size compiles once more, for all sizes from 2 on. Torch keeps 8 versions of a layer
        in a process (`torch.compiler.config.recompile_limit`), for all models together; what is beyond runs uncompiled.
        """
        self.run_with(shared_layers(*args, **kwargs))

    def run_with(self, compiled: Compiled | None) -> None:
        """Takes over compiled layers, for itself and for models made from it; None takes them away."""
        self._compiled = compiled

    def folded(self) -> AbstractContextManager[None]:
        """A block in which what follows from the tasks alone is computed once: `with model.folded(), torch.no_grad():`.

        In it the model answers as it stood on entry, in every thread; what changes in a task meanwhile shows after the
        block. Blocks may be nested and may overlap. The model may be moved, copied and pickled in it; models made from
        it start outside. No gradient reaches the tasks: with gradients on, a model whose tasks train is refused.
        """
        self._check()
        return self._folding.block(self.tasks)

    def forward(self, images: Tensor, *, base: bool = True, attention: bool = False) -> Outputs:
        """Outputs for (B, 3, height, width) images, preprocessed by `self.preprocessing`.

        base: also the backbone's own output and features; without it the rest of the trunk's last layer is skipped.
        attention: also the attention weights of the class tokens, as `TaskAttention`. Images that require a gradient
        get one. Raises MemtokError for images that do not fit, and for tasks that no longer fit this model.
        """
        tasks, snapshot = self._standing()
        if tasks and not tasks[0].composable:
            own = variant_outputs(self.backbone, tasks[0], images, attention=attention)
            features, answer = self.backbone(images) if base else (None, None)
            return Outputs(features, answer, own.logits, own.attention, own.embeddings)
        if self.streams is None:
            return self._collect(tasks, snapshot, self.trace(images, base=base), None, base)
        if self._trains():
            # The trace stays for the backward pass anyway. What the streams keep for it would lie between what a layer
            # of the trunk gives back and the next one needs, and the heap would grow by that in every layer.
            trace = self._run_trunk(images, self._form_of_trace(), base)
            return self.answer(trace, base=base, attention=attention)
        # Layer by layer, the streams right behind the trunk: what a layer leaves need not outlive it.
        images = self.backbone.check_images(images)
        walk = self._begin(tasks, snapshot, images.shape[0], attention)
        trace = self._run_trunk(images, KEYS_AND_VALUES, base, walk.step)
        return self._collect(tasks, snapshot, trace, walk, base)

    def prepare(self, images: Pictures) -> Tensor:
        """(B, 3, height, width) on the model's device: what `forward` takes, of paths, PIL images, arrays or tensors.

        images: one or several, see `memtok.inputs.Picture`; they are resized, cropped and normalised as
        `self.preprocessing` says. Raises MemtokError for what is no picture or cannot be read.
        """
        from memtok.inputs import prepare  # it brings torchvision along

        return prepare(images, self.preprocessing, self.backbone.device)

    def trace(self, images: Tensor, *, base: bool = True) -> Trace:
        """The trunk's pass over images; `answer` turns it into outputs, for this model or one made from it."""
        return self._run_trunk(images, NOTHING if self.streams is None else KEYS_AND_VALUES, base)

    def answer(self, trace: Trace, *, base: bool = True, attention: bool = False) -> Outputs:
        """Outputs of all answered tasks from one pass of the trunk; see `forward`.

        One trace serves many models of the same backbone, if it was made by one that has all their tasks. It may have
        been made in another precision, under autocast or without. Raises MemtokError for a trace of another backbone.
        """
        check_trace(self.backbone, trace)
        tasks, snapshot = self._standing()
        if tasks and not tasks[0].composable:
            raise MemtokError(
                f"expected composable tasks to answer from a trace, found {tasks[0].name!r} of regime "
                f"{tasks[0].regime!r}, whose image tokens see the task; call the model on the images"
            )
        if self.streams is None:
            return self._collect(tasks, snapshot, trace, None, base)
        layers = trace.layers
        if not layers:
            raise MemtokError(
                "expected a trace that task streams can read, found none; make it with a model that has tasks"
            )
        walk = self._begin(tasks, snapshot, layers[0][0].shape[0], attention)
        for index, kept in enumerate(layers):
            walk.step(index, matched(kept, self.backbone.dtype))
        return self._collect(tasks, snapshot, trace, walk, base)

    def _standing(self) -> tuple[tuple[Task, ...], Snapshot | None]:
        """The tasks to answer with: as they are, or in a folded block as they were on entry."""
        snapshot = self._folding.snapshot
        if snapshot is None:
            self._check()
            return self.tasks, None
        if self._trains():
            raise MemtokError(
                "expected no gradients for the tasks of a folded model, found tasks that train; answer under "
                "torch.no_grad(), or leave the block `with model.folded()` to train"
            )
        return snapshot.on(self.backbone.device), snapshot

    def _check(self) -> None:
        """MemtokError unless the tasks are those that this model was built for: of these sizes, and told apart."""
        named(self.tasks)
        for task, expected in zip(self.tasks, self._built_for, strict=True):
            if built_for(task) != expected:
                raise MemtokError(
                    f"expected {task.name!r} with the sizes and the extended tasks that it had when this model was "
                    "made, found others; make the model anew with MemoryViT(backbone, tasks)"
                )

    def _run_trunk(
        self, images: Tensor, keep: str, base: bool, visit: Callable[[int, Kept], None] | None = None
    ) -> Trace:
        """The trunk's pass. It goes to its end for the base, or for a head that reads its features."""
        tasks = self.tasks
        reads_features = any(not tasks[position].queries for position in self._answered)
        outputs = base or self.streams is None or reads_features
        reads = union(self._reads[position] for position in self._answered)
        run = self._compiled.trunk if self._compiled else None
        return self.backbone.trace(images, keep=keep, outputs=outputs, reads=reads, visit=visit, run=run)

    def _begin(self, tasks: Sequence[Task], snapshot: Snapshot | None, batch: int, attention: bool) -> Walk:
        """The class tokens before the first layer, of a batch of so many images."""
        assert self.streams is not None
        run = self._compiled.streams if self._compiled else None
        compute = partial(self.streams.values, self.backbone, tasks)
        around = precision(self.backbone)
        values = compute() if snapshot is None else snapshot.once("values", self.backbone, compute, *around)
        return self.streams.begin(self.backbone, values, batch, attention=attention, run=run)

    def _trains(self) -> bool:
        """Whether a backward pass may follow."""
        return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in self._tasks.parameters())

    def _form_of_trace(self) -> str:
        """What the trunk keeps of a layer while tasks train, until the backward pass.

        Inputs are half as large as keys and values, and the trunk has them ready; absorbing their projections costs
        something for each query.
        """
        assert self.streams is not None
        layer, tokens = self.backbone.layers[0], self.backbone.tokens
        cost = 3 * self.streams.layout.tokens * layer.absorbing_cost(tokens)  # forward, and twice that backward
        return INPUTS if layer.absorbs and cost <= INPUTS_SHARE * layer.cost(tokens) else KEYS_AND_VALUES

    def _collect(
        self, tasks: Sequence[Task], snapshot: Snapshot | None, trace: Trace, walk: Walk | None, base: bool
    ) -> Outputs:
        """Outputs from the class tokens after the last layer, and from the trunk's own output."""
        tokens: dict[int, Tensor] = {}
        weights: dict[int, TaskAttention] = {}
        if walk is not None and self.streams is not None:
            tokens = self.streams.split(walk.finish())
            weights = self.streams.layout.split_attention(tasks, walk.weights) if walk.attention else {}
        features: dict[int, Tensor] = {}
        for position in self._answered:
            found = tokens.get(position, trace.features)
            if found is None:
                raise MemtokError(
                    f"expected a trace with features for {tasks[position].name!r}, found none; make it with base=True"
                )
            features[position] = found
        compute = partial(heads_of, tasks, self._answered)
        heads = compute() if snapshot is None else snapshot.once("heads", self.backbone, compute)
        found_logits = heads.logits(features, trace.statistics)
        names = {position: tasks[position].name for position in self._answered}
        return Outputs(
            trace.features if base else None,
            trace.base if base else None,
            {name: found_logits[position] for position, name in names.items()},
            {name: weights[position] for position, name in names.items() if position in weights},
            {name: features[position].flatten(1) for position, name in names.items()},
        )

    def concat(self, other: MemoryViT, *, preprocessing: Preprocessing | None = None) -> MemoryViT:
        """A model with the tasks of both. A task that tasks of both extend is taken once."""
        if not isinstance(other, MemoryViT):
            raise MemtokError(
                f"expected a model to concatenate, found {type(other).__name__}; use add() for a task", argument="other"
            )
        if other.backbone.fingerprint != self.backbone.fingerprint:
            raise MemtokError(
                f"expected models of one backbone, found {self.backbone.source} ({self.backbone.fingerprint[:19]}) and "
                f"{other.backbone.source} ({other.backbone.fingerprint[:19]}); train the tasks on the same backbone"
            )
        refuse_alone("concatenate", (*self.tasks, *other.tasks))
        chosen = preprocessing or self._agreed(other.tasks, other._explicit)
        if preprocessing is None and chosen is not None and self._explicit is None:
            check_agreement(chosen, self.tasks)
        # A task that others extend may be answered by both.
        answered = tuple(dict.fromkeys((*self.names, *other.names)))
        return self._derive(merge(self.tasks, other.tasks), answered, chosen)

    def add(self, task: Task, *, preprocessing: Preprocessing | None = None) -> MemoryViT:
        """A model with one more task; all that it extends must be here already."""
        if not isinstance(task, Task):
            raise MemtokError(
                f"expected a task to add, found {type(task).__name__}; load one with memtok.load_task", argument="task"
            )
        refuse_alone("add", (*self.tasks, task))
        if task.name in self.names:
            raise two_of_one_name(task.name)
        chosen = preprocessing or self._agreed([task], None)
        return self._derive(merge(self.tasks, (task,)), (*self.names, task.name), chosen)

    def remove(self, name: str) -> MemoryViT:
        """A model without one task; MemtokError if another extends it."""
        self._check_known([name])
        for task in self.tasks:
            if any(ancestor.name == name for ancestor in task.extends):
                raise MemtokError(
                    f"expected a task that no other extends, found {name!r}, which {task.name!r} extends; remove "
                    f"{task.name!r} first, or use select() to stop answering {name!r}"
                )
        return self.select([other for other in self.names if other != name])

    def select(self, names: Sequence[str]) -> MemoryViT:
        """A model that answers these tasks only. What they extend is computed and not answered."""
        if isinstance(names, str):
            raise MemtokError(
                f"expected a list of task names, found the string {names!r}; write [{names!r}]", argument="names"
            )
        self._check_known(names)
        if len(set(names)) != len(names):
            raise MemtokError(f"expected each task once, found {list(names)}; remove the repetition", argument="names")
        by_name = named(self.tasks)
        needed = {task.name for task in topological([by_name[name] for name in names])}
        return self._derive([task for task in self.tasks if task.name in needed], tuple(names), self._explicit)

    def _agreed(self, tasks: Sequence[Task], explicit: Preprocessing | None) -> Preprocessing | None:
        """The explicit preprocessing that a model with these tasks too keeps; MemtokError if they do not share it."""
        if self._explicit is not None and explicit is not None and self._explicit != explicit:
            raise MemtokError(
                f"expected models of one preprocessing, found a difference: "
                f"{self._explicit.difference(explicit)}; give preprocessing=",
                argument="preprocessing",
            )
        if self._explicit is not None and explicit is None:
            check_agreement(self._explicit, tasks)
        return self._explicit or explicit

    def extra_repr(self) -> str:
        return f"answers {list(self.names)}"

    def _check_known(self, names: Sequence[str]) -> None:
        known = named(self.tasks)
        for name in names:
            if not isinstance(name, str) or name not in known:
                listed = ", ".join(repr(other) for other in sorted(known)) or "none"
                raise MemtokError(f"expected one of the tasks {listed}, found {name!r}; check the spelling")

    def _derive(
        self, tasks: Sequence[Task], answered: tuple[str, ...], preprocessing: Preprocessing | None
    ) -> MemoryViT:
        model = MemoryViT(self.backbone, tasks, preprocessing=preprocessing)
        positions = {task.name: position for position, task in enumerate(tasks)}
        model._answered = tuple(positions[name] for name in answered)
        model._compiled = self._compiled
        return model

    def __getstate__(self) -> dict[str, Any]:
        """A pickled model goes without compiled code, as every module does."""
        return {**super().__getstate__(), "_compiled": None}  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy of everything, the backbone too; tasks of the copy belong to it and extend each other."""
        copy.deepcopy(self.backbone, memo)
        for task in topological(self.tasks):
            copy.deepcopy(task, memo)
        clone = self.__class__.__new__(self.__class__)
        memo[id(self)] = clone
        clone.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return clone


def check_trace(backbone: Backbone, trace: Trace) -> None:
    """MemtokError unless it is a trace that this backbone made."""
    if not isinstance(trace, Trace):
        raise MemtokError(
            f"expected a trace, found {type(trace).__name__}; make one with model.trace(images), or call the model on "
            "the images",
            argument="trace",
        )
    if trace.backbone not in (None, backbone.fingerprint):
        raise MemtokError(
            f"expected a trace of this backbone ({backbone.fingerprint[:19]}), found one of another "
            f"({str(trace.backbone)[:19]}); make it with this model",
            argument="trace",
        )
