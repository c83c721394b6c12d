"""A task: all that memtok learns. Class tokens, memory cells in every layer, a head, and optional adapters.

Source: Sandler et al., CVPR 2022 (arXiv 2203.15243), sections 3.1 to 3.3. Several class tokens (`queries`) and adapters
on the task's own tokens are memtok's additions; both are off by default.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, Unpack

import torch
from torch import Tensor, nn

from memtok.backbone import Backbone
from memtok.checks import check_classes, check_count, check_name, new_classes
from memtok.errors import Argument, MemtokError
from memtok.levels import Reads, Statistics
from memtok.parts import (
    CHOICES,
    IN_LAYERS,
    OPTIONS,
    PARTS,
    TENSORS,
    Form,
    Moments,
    Options,
    choose,
    combined,
    contributions,
    folded,
    made_of,
    measure,
    measured,
    rates,
    reads,
    sizes_of,
    specs,
)
from memtok.preprocessing import Preprocessing
from memtok.regimes import REGIMES, Regime, task_regime
from memtok.surroundings import plain_torch
from memtok.writing import write_tasks

GROUPS: dict[str, dict[str, str]] = {
    group: {name: name.partition(".")[2].replace(".", "_") for name in TENSORS if name.startswith(f"{group}.")}
    for group in dict.fromkeys(name.partition(".")[0] for name in TENSORS if "." in name)
    if group != "head"
}
"""Tensors of a task that lie in a ParameterDict: attribute -> name in a task file -> key, such as `qkv_down`."""


class Task(nn.Module):
    """One task beside a frozen backbone. Make one with `Task.create`, or read one with `load_task`.

    Attributes:
        class_tokens: (queries, D), without position embedding; (0, D) in regimes `head`, `readout` and `side`, which
            read the base one.
        memory: (L, cells, D), the cells of each layer; (1, cells, D) in regime `memory-propagated`.
        head: linear, from the concatenated class tokens (max(queries, 1) * D) to the classes.
        adapters: low-rank updates of the layers' projections that act on this task's class tokens only:
            `qkv_down` (L, rank, D), `qkv_up` (L, 3 H d, rank), the same for `proj`, and for `mlp` a branch beside it.
        placement: "before-norm" or "after-norm", whether memory passes each layer's norm.
        extends: the tasks whose class tokens and memory this one sees. They are frozen when this one is made.
        record: how it was trained, as JSON-able values.
        measurable: the names of what it measures when a training begins, see `measured`.

    `parameters()` yields exactly what trains: neither the backbone nor extended tasks are among them.
    """

    placement: str
    adapters: nn.ParameterDict

    def __init__(
        self,
        backbone: Backbone,
        *,
        name: str,
        classes: Sequence[str],
        tensors: dict[str, Tensor],
        regime: str = "memory",
        choices: Mapping[str, str] | None = None,
        extends: Sequence[Task] = (),
        preprocessing: Preprocessing | None = None,
        record: dict[str, Any] | None = None,
    ) -> None:
        """From given tensors, named as in a task file; MemtokError if a shape does not fit the backbone.

        choices: those of the parts, such as `placement`, by default that of each.
        """
        super().__init__()
        self._bound = (backbone,)  # a tuple, so that the backbone does not become a submodule
        self._name = check_name(name)
        self.classes = check_classes(classes)
        rules = task_regime(regime)
        self.regime = regime
        for choice in CHOICES:
            setattr(self, choice.name, choice.check((choices or {}).get(choice.name, choice.default)))
        self.extends = check_extends(self.name, backbone, rules, extends)
        self.preprocessing = preprocessing or backbone.preprocessing
        self.record: dict[str, Any] = dict(record or {})
        check_shapes(self.name, backbone, rules, len(self.classes), self.words, tensors)
        check_finite(self.name, tensors)
        self._take(tensors)
        for ancestor in self.ancestors():
            ancestor.requires_grad_(False)
            for parameter in ancestor.parameters():
                parameter.grad = None  # or an optimizer that holds it would move it once more

    @plain_torch()
    def _take(self, tensors: dict[str, Tensor]) -> None:
        """Makes its parameters, copies of `tensors`."""
        own = {key: nn.Parameter(tensor.detach().clone()) for key, tensor in tensors.items()}
        classes, width = own["head.weight"].shape
        # On the meta device a fresh layer draws nothing from the global generator.
        head = nn.Linear(width, classes, device="meta")
        head.weight, head.bias = own.pop("head.weight"), own.pop("head.bias")
        self.class_tokens, self.memory, self.head = own.pop("class_tokens"), own.pop("memory"), head
        for group, keys in GROUPS.items():
            chosen = {key: own[name] for name, key in sorted(keys.items()) if name in own}
            setattr(self, group, nn.ParameterDict(chosen))
        self.measurable = tuple(measured(self.backbone, self.form))
        for name in self.measurable:
            group, _, key = name.partition(".")
            getattr(self, group).register_buffer(key, None)

    @classmethod
    def create(
        cls,
        backbone: Backbone,
        *,
        name: str,
        classes: Sequence[str],
        extends: Sequence[Task] = (),
        regime: str = "memory",
        preprocessing: Preprocessing | None = None,
        seed: int | None = None,
        **options: Unpack[Options],
    ) -> Task:
        """A new task, ready to train.

        extends: tasks that this one may see; they are frozen from now on. preprocessing: what images go through; that
        of the extended tasks, else the backbone's, unless told. seed: of the initial values, from 0 to 2**63 - 1;
        without it they come from torch's global generator. options: those of the parts, where the regime has them:

        memory: cells per layer, 0 or more (default: 5). queries: class tokens, 1 or more. adapter_rank: 0 for none.
        placement: "before-norm" (default) or "after-norm", whether memory passes each layer's norm.

        readout: how many of the last levels of the trunk the head reads too, L + 1 at most, "all" for so many (default:
        0, in regime "readout" all). statistics: what it reads of each, some of "class", "registers", "mean",
        "deviation" and "regions" joined by a plus sign; see `memtok.levels` (default: "class+deviation+regions").
        readout_rank: how many numbers it answers through, for many classes (default: 0, its full width).
        side: the width of a side stream over the patches (default: 0, none; in regime "side" 16).

        A regime without class tokens that is asked for some, or for memory, becomes regime "memory" with the parts of
        both, as regime "side" with memory=5.

        Memory is drawn from N(0, 0.02). The first class token is a copy of the base one, further ones are copies with
        N(0, 0.02) added; see `Backbone.start_token` for backbones without class token. Raises MemtokError for values
        that make no task.
        """
        if not isinstance(backbone, Backbone):
            raise MemtokError(
                f"expected a memtok backbone, found {type(backbone).__name__}; wrap it with "
                "memtok.load_backbone(model)",
                argument="backbone",
            )
        rules, given = combined(task_regime(regime), options)
        chosen, choices = choose(rules, given)
        sizes = made_of(backbone, rules, chosen)
        for part in PARTS:
            part.check(backbone, {**sizes, **choices})
        if seed is not None:
            check_count("seed", seed, 0)
            if seed >= 2**63:
                raise MemtokError(f"expected {Argument('seed')} below 2**63, found {seed}; choose a smaller one")
        generator = torch.Generator().manual_seed(seed) if seed is not None else None
        classes = new_classes(classes)
        tensors = initial_tensors(backbone, rules, {"classes": len(classes)} | sizes | choices, generator)
        extends = check_extends(check_name(name), backbone, rules, extends)
        return cls(
            backbone,
            name=name,
            classes=classes,
            tensors=tensors,
            regime=rules.name,
            choices=choices,
            extends=extends,
            preprocessing=preprocessing or preprocessing_of(name, extends),
        )

    def __setattr__(self, name: str, value: Any) -> None:
        """As for every module, but a tensor or a head that does not fit the task is refused."""
        if name in ("class_tokens", "memory", "head") and hasattr(self, "adapters"):  # made already
            self.check(**{name: value})
        super().__setattr__(name, value)

    def check(self, **replaced: Any) -> dict[str, int]:
        """Its sizes; MemtokError unless its tensors fit its backbone, its regime and its classes.

        replaced: some tensors by others.
        """
        words = {choice.name: choice.check(self.words[choice.name]) for choice in CHOICES}
        head = replaced.pop("head", self.head)
        if not isinstance(head, nn.Linear):
            raise MemtokError(
                f"expected a linear head in task {self.name!r}, found {type(head).__name__}; assign to "
                "task.head.weight and task.head.bias, or make another task"
            )
        tensors = self.named() | {"head.weight": head.weight, "head.bias": head.bias} | replaced
        return check_shapes(self.name, self.backbone, REGIMES[self.regime], len(self.classes), words, tensors)

    @property
    def name(self) -> str:
        """What it is called in outputs and files; assign to it to rename the task."""
        return self._name

    @name.setter
    def name(self, name: str) -> None:
        self._name = check_name(name)

    @property
    def backbone(self) -> Backbone:
        """The backbone that this task belongs to."""
        return self._bound[0]

    @property
    def queries(self) -> int:
        """Number of class tokens of its own; 0 in regimes `head`, `readout` and `side`."""
        return int(self.class_tokens.shape[0])

    @property
    def cells(self) -> int:
        """Memory cells per layer."""
        return int(self.memory.shape[1])

    @property
    def adapter_rank(self) -> int:
        """Rank of the adapters, 0 without."""
        return int(self.adapters["qkv_down"].shape[1]) if "qkv_down" in self.adapters else 0

    @property
    def choices(self) -> dict[str, str]:
        """The choices of all parts that mean something here, such as `placement`, as a file's header has them."""
        sizes, words = self.sizes, self.words
        return {choice.name: words[choice.name] for choice in CHOICES if choice.means(sizes)}

    @property
    def words(self) -> dict[str, str]:
        """The choices of all parts, those that mean nothing here among them."""
        return {choice.name: getattr(self, choice.name) for choice in CHOICES}

    @property
    def reads(self) -> Reads:
        """The statistics of the trunk's levels that it reads; see `memtok.levels`."""
        return reads(self.form)

    @property
    def composable(self) -> bool:
        """Whether it can share a pass with other tasks: True where image tokens never see it."""
        return REGIMES[self.regime].composable

    def ancestors(self) -> tuple[Task, ...]:
        """All that it extends, directly or through others, every one before those that extend it."""
        return topological(self.extends, trail=(self,))

    def tensors(self) -> dict[str, Tensor]:
        """What a task file has of it: its parameters, detached, in float32, with what was measured folded in."""
        self.check()
        everything = {key: value.detach() for key, value in self.everything.items()}
        return {key: value.to(torch.float32) for key, value in folded(everything).items()}

    def named(self) -> dict[str, Tensor]:
        """Its parameters under the names of a task file."""
        found: dict[str, Tensor] = {"class_tokens": self.class_tokens, "memory": self.memory}
        found |= {"head.weight": self.head.weight, "head.bias": self.head.bias}
        for group, keys in GROUPS.items():
            own = getattr(self, group)
            found |= {name: own[key] for name, key in keys.items() if key in own} if len(own) else {}
        return found

    @property
    def everything(self) -> dict[str, Tensor]:
        """What its answers are computed from: `named` and `measured`."""
        return self.named() | self.measured

    @property
    def measured(self) -> dict[str, Tensor]:
        """What training measured on its images, such as `readout.mean`; empty unless it is being trained."""
        places = {name: name.partition(".") for name in self.measurable}
        found = {name: getattr(getattr(self, group), key) for name, (group, _, key) in places.items()}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    @measured.setter
    def measured(self, tensors: Mapping[str, Tensor]) -> None:
        for name, spec in measured(self.backbone, self.form).items():
            group, _, key = name.partition(".")
            value = tensors.get(name)
            if value is not None and tuple(value.shape) != spec.shape:
                raise MemtokError(f"expected {name} of {self.name!r} in shape {spec.shape}, found {tuple(value.shape)}")
            own = None if value is None else value.detach().to(self.head.weight, copy=True)
            setattr(getattr(self, group), key, own)

    def measure(self, moments: Moments) -> None:
        """Takes what it measures from statistics of training images. Its answers change; it is to be trained now."""
        self.measured = measure(self.form, moments)

    @torch.no_grad()
    def fold(self) -> None:
        """Folds what was measured into the parameters: the answers stay the same to rounding."""
        if self.measured:
            found = self.tensors()
            for name, parameter in self.named().items():
                parameter.copy_(found[name])
            self.measured = {}

    def in_layers(self, *, frozen: bool) -> dict[str, Tensor]:
        """Of `named` what acts inside the layers; `frozen`: detached, so that no gradient reaches it."""
        found = {name: tensor for name, tensor in self.named().items() if name in IN_LAYERS}
        return {name: tensor.detach() for name, tensor in found.items()} if frozen else found

    @property
    def sizes(self) -> dict[str, int]:
        """The number of classes, and the options of all parts that it was made with."""
        return sizes_of(len(self.classes), self.named())

    @property
    def form(self) -> dict[str, Any]:
        """Its sizes and the choices of all parts."""
        return self.sizes | self.words

    def rates(self) -> dict[nn.Parameter, float]:
        """The learning rate of each parameter with Adam, as a multiple of that of class tokens."""
        found = rates(self.backbone, REGIMES[self.regime], self.form)
        return {tensor: found[name] for name, tensor in self.named().items() if isinstance(tensor, nn.Parameter)}

    def without_decay(self) -> set[nn.Parameter]:
        """Its parameters that weight decay leaves alone: tokens, memory, biases."""
        declared = specs(self.backbone, REGIMES[self.regime], self.form)
        spared = [tensor for key, tensor in self.named().items() if not declared[key].decays]
        return {tensor for tensor in spared if isinstance(tensor, nn.Parameter)}

    @property
    def fingerprint(self) -> str:
        """`sha256:` over what determines its answers: tensors, regime, backbone, preprocessing and what it extends.

        Its name and the names of its classes are not part of it: a renamed task is the same task.
        """
        known: dict[int, str] = {}
        for task in topological([self]):  # each ancestor once, however often it is extended
            known[id(task)] = content_fingerprint(
                task.tensors(),
                backbone=task.backbone.fingerprint,
                extends=[known[id(ancestor)] for ancestor in task.extends],
                choices=task.choices,
                preprocessing=task.preprocessing.to_dict(),
                regime=task.regime,
            )
        return known[id(self)]

    def save(self, path: str | Path) -> None:
        """Writes a task file, atomically; see `memtok.bundle`."""
        write_tasks([(header_of(self), self.tensors())], path)

    def forward(self, features: Tensor, statistics: Statistics | None = None) -> Tensor:
        """(B, classes) logits from its class tokens after the final norm, (B, max(queries, 1), D).

        statistics: of the trunk's last levels, in any precision, for a task that reads some; see `memtok.levels`.
        """
        own = features.flatten(1).to(self.head.weight.dtype)
        return functools.reduce(torch.add, contributions(self.everything, self.words, own, statistics or {}))

    def extra_repr(self) -> str:
        extends = f", extends {[task.name for task in self.extends]}" if self.extends else ""
        return (
            f"{self.name!r}, {self.regime}, {len(self.classes)} classes, {self.queries} queries, {self.cells} cells, "
            f"adapter rank {self.adapter_rank}{extends}"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy of what it owns; the backbone and the tasks that it extends stay shared."""
        for shared in (self.backbone, *self.extends):
            memo.setdefault(id(shared), shared)  # unless it is being copied as well, as part of a model
        clone = self.__class__.__new__(self.__class__)
        memo[id(self)] = clone
        clone.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return clone


def header_of(task: Task) -> dict[str, Any]:
    """What a file says of a task beside its tensors."""
    sees = {"sees": len(task.ancestors())} if task.extends else {}
    return {
        "name": task.name,
        "classes": list(task.classes),
        "regime": task.regime,
        "composable": task.composable,
        **task.choices,
        "backbone": {"fingerprint": task.backbone.fingerprint, "source": task.backbone.source},
        "preprocessing": task.preprocessing.to_dict(),
        "extends": [{"name": ancestor.name, "fingerprint": ancestor.fingerprint} for ancestor in task.extends],
        **sees,
        "fingerprint": task.fingerprint,
        "record": task.record,
    }


def content_fingerprint(
    tensors: dict[str, Tensor],
    *,
    backbone: str,
    choices: Mapping[str, str],
    extends: list[str],
    preprocessing: dict[str, Any],
    regime: str,
) -> str:
    """`sha256:` of a task's tensors, widened to float32, and of the facts that its answers depend on besides."""
    facts = {
        "backbone": backbone,
        "extends": extends,
        "preprocessing": preprocessing,
        "regime": regime,
        **choices,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for key, tensor in sorted(tensors.items()):
        digest.update(f"{key}{tuple(tensor.shape)}".encode())
        digest.update(tensor.to("cpu", torch.float32).contiguous().numpy().data)
    return "sha256:" + digest.hexdigest()


def topological(tasks: Sequence[Task], trail: tuple[Task, ...] = ()) -> tuple[Task, ...]:
    """`tasks` and all that they extend, every task after those that it extends; MemtokError names a cycle."""
    ordered: dict[int, Task] = {}

    def visit(task: Task, trail: tuple[Task, ...]) -> None:
        if any(task is other for other in trail):
            names = " -> ".join(repr(other.name) for other in (*trail, task))
            raise MemtokError(f"expected tasks that extend each other without a cycle, found {names}; break it")
        if id(task) not in ordered:
            for ancestor in task.extends:
                visit(ancestor, (*trail, task))
            ordered[id(task)] = task

    for task in tasks:
        visit(task, trail)
    return tuple(ordered.values())


def preprocessing_of(name: str, extends: Sequence[Task]) -> Preprocessing | None:
    """What images of the extended tasks go through, None without any; MemtokError if these differ."""
    for task in extends[1:]:
        if task.preprocessing != extends[0].preprocessing:
            raise MemtokError(
                f"expected tasks of one preprocessing for {name!r} to extend, found a difference between "
                f"{extends[0].name!r} and {task.name!r}: {extends[0].preprocessing.difference(task.preprocessing)}; "
                "give preprocessing=",
                argument="preprocessing",
            )
    return extends[0].preprocessing if extends else None


def initial_tensors(
    backbone: Backbone, regime: Regime, form: Form, generator: torch.Generator | None
) -> dict[str, Tensor]:
    """Initial values, float32 on the backbone's device; drawn on the CPU, so that a seed means the same everywhere."""
    drawn = {
        name: torch.randn(spec.shape, generator=generator, dtype=torch.float32, device="cpu") * spec.std
        if spec.std
        else torch.zeros(spec.shape, dtype=torch.float32, device="cpu")
        for name, spec in specs(backbone, regime, form).items()
    }
    for part in PARTS:
        part.begin(backbone, regime, drawn)
    return {key: value.to(backbone.device) for key, value in drawn.items()}


def check_finite(name: str, tensors: Mapping[str, Tensor]) -> None:
    """MemtokError unless the tensors of a task are floating-point and finite."""
    for key in sorted(tensors):
        if not tensors[key].is_floating_point() or not bool(torch.isfinite(tensors[key]).all()):
            raise MemtokError(f"expected finite numbers in {key} of task {name!r}, found others; train it again")


def check_shapes(
    name: str,
    backbone: Backbone,
    regime: Regime,
    classes: int,
    choices: Mapping[str, str],
    tensors: Mapping[str, Any],
) -> dict[str, int]:
    """The sizes of such a task; MemtokError unless `tensors` are all that it has, in their shapes."""
    for key in ("class_tokens", "memory", "head.weight", "head.bias"):
        if not isinstance(tensors.get(key), Tensor):
            raise MemtokError(f"expected the tensor {key} in task {name!r}, found none; the file is not whole")
    sizes = sizes_of(classes, tensors)
    cells, queries = sizes["memory"], sizes["queries"]
    if queries < 0 or cells < 0:
        raise MemtokError(
            f"expected class_tokens (queries, {backbone.dim}) and memory (layers, cells, {backbone.dim}) in task "
            f"{name!r}, found {tuple(tensors['class_tokens'].shape)}, {tuple(tensors['memory'].shape)}; another format"
        )
    shapes = {key: spec.shape for key, spec in specs(backbone, regime, {**sizes, **choices}).items()}
    for key in sorted(shapes.keys() | tensors.keys()):
        if key not in tensors:
            raise MemtokError(f"expected the tensor {key} in task {name!r}, found none; the file is not whole")
        if key not in shapes:
            raise MemtokError(
                f"expected no tensor {key} in task {name!r} of regime {regime.name!r}, found one; not this format"
            )
        if tuple(tensors[key].shape) != shapes[key]:
            raise MemtokError(
                f"expected {key} of task {name!r} in shape {shapes[key]}, found {tuple(tensors[key].shape)}; "
                "it belongs to another backbone or format"
            )
    if (queries > 0) != regime.class_token:
        raise MemtokError(f"expected class tokens that fit regime {regime.name!r} in task {name!r}, found {queries}")
    for option in OPTIONS:
        size = sizes[option.name]
        if size > option.least and not option.fits(regime):
            raise MemtokError(
                f"expected {option.name} {option.least} in task {name!r} of regime {regime.name!r}, found {size}; not "
                "this format"
            )
        if size == option.least and option.name in regime.needs:
            raise MemtokError(
                f"expected {option.name} of {option.least + 1} or more in task {name!r} of regime {regime.name!r}, "
                f"found {size}; not this format"
            )
    for part in PARTS:
        part.check(backbone, {**sizes, **choices})
    return sizes


def check_extends(name: str, backbone: Backbone, regime: Regime, extends: Sequence[Task]) -> tuple[Task, ...]:
    """The tasks to extend, in the given order: composable, of this backbone, of different names."""
    if not isinstance(extends, Sequence) or not all(isinstance(task, Task) for task in extends):
        raise MemtokError(
            f"expected {Argument('extends')} as a list of tasks, found something else; load them with memtok.load_task"
        )
    if extends and not regime.streams:
        raise MemtokError(
            f"expected regime 'memory' for a task that extends others, found {regime.name!r}", argument="regime"
        )
    names = {name}
    for task in topological(extends):
        if not task.composable:
            raise MemtokError(
                f"expected tasks of regime 'memory' to extend, found {task.name!r} of regime {task.regime!r}, which "
                "changes what the image tokens are; train it again with regime 'memory'",
                argument="extends",
            )
        if task.backbone.fingerprint != backbone.fingerprint:
            raise MemtokError(
                f"expected a task of backbone {backbone.fingerprint[:19]} to extend, found {task.name!r} of "
                f"{task.backbone.fingerprint[:19]} ({task.backbone.source}); use one backbone",
                argument="extends",
            )
        if task.name in names:
            raise MemtokError(
                f"expected different names in extends, found {task.name!r} twice; rename one", argument="extends"
            )
        names.add(task.name)
    return tuple(extends)
