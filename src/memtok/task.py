"""A task: all that memtok learns. Class tokens, memory cells in every layer, a head, and optional adapters.

Source: Sandler et al., CVPR 2022 (arXiv 2203.15243), sections 3.1 to 3.3. Several class tokens (`queries`) and adapters
on the task's own tokens are memtok's additions; both are off by default.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from memtok.backbone import Backbone
from memtok.checks import check_choice, check_classes, check_count, check_name, new_classes
from memtok.errors import Argument, MemtokError
from memtok.parts import OPTIONS, PARTS, Sizes, sizes_of, specs
from memtok.preprocessing import Preprocessing
from memtok.surroundings import plain_torch
from memtok.writing import write_tasks

DEFAULT_CELLS = 5
PLACEMENTS = ("before-norm", "after-norm")

# Regime -> does it own memory, may it share a pass with other tasks. `full` trains a backbone and is no task.
REGIMES: dict[str, tuple[bool, bool]] = {
    "memory": (True, True),
    "head": (False, True),
    "head+class": (False, False),
    "memory-shared": (True, False),
    "memory-propagated": (True, False),
    "memory-additive": (True, False),
}


class Task(nn.Module):
    """One task beside a frozen backbone. Make one with `Task.create`, or read one with `load_task`.

    Attributes:
        class_tokens: (queries, D), without position embedding; (0, D) in regime `head`, which reads the base one.
        memory: (L, cells, D), the cells of each layer; (1, cells, D) in regime `memory-propagated`.
        head: linear, from the concatenated class tokens (max(queries, 1) * D) to the classes.
        adapters: low-rank updates of the layers' projections that act on this task's class tokens only:
            `qkv.down` (L, rank, D), `qkv.up` (L, 3 H d, rank), the same for `proj`, and for `mlp` a branch beside it.
        extends: the tasks whose class tokens and memory this one sees. They are frozen when this one is made.
        record: how it was trained, as JSON-able values.

    `parameters()` yields exactly what trains: neither the backbone nor extended tasks are among them.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        name: str,
        classes: Sequence[str],
        tensors: dict[str, Tensor],
        regime: str = "memory",
        placement: str = "before-norm",
        extends: Sequence[Task] = (),
        preprocessing: Preprocessing | None = None,
        record: dict[str, Any] | None = None,
    ) -> None:
        """From given tensors, named as in a task file; MemtokError if a shape does not fit the backbone."""
        super().__init__()
        self._bound = (backbone,)  # a tuple, so that the backbone does not become a submodule
        self._name = check_name(name)
        self.classes = check_classes(classes)
        self.regime = check_choice("regime", regime, tuple(REGIMES))
        self.placement = check_choice("placement", placement, PLACEMENTS)
        self.extends = check_extends(self.name, backbone, self.regime, extends)
        self.preprocessing = preprocessing or backbone.preprocessing
        self.record: dict[str, Any] = dict(record or {})
        check_tensors(self.name, backbone, self.regime, len(self.classes), tensors)
        self._take(tensors)
        for ancestor in self.ancestors():
            ancestor.requires_grad_(False)
            for parameter in ancestor.parameters():
                parameter.grad = None  # or an optimizer that holds it would move it once more

    @plain_torch()
    def _take(self, tensors: dict[str, Tensor]) -> None:
        """Makes its parameters, copies of `tensors`."""
        own = {key: nn.Parameter(tensor.detach().clone()) for key, tensor in tensors.items()}
        self.class_tokens, self.memory = own["class_tokens"], own["memory"]
        classes, width = own["head.weight"].shape
        # On the meta device a fresh layer draws nothing from the global generator.
        self.head = nn.Linear(width, classes, device="meta")
        self.head.weight, self.head.bias = own["head.weight"], own["head.bias"]
        adapters = {key.removeprefix("adapters."): own[key] for key in sorted(own) if key.startswith("adapters.")}
        self.adapters = nn.ParameterDict({key.replace(".", "_"): tensor for key, tensor in adapters.items()})

    @classmethod
    def create(
        cls,
        backbone: Backbone,
        *,
        name: str,
        classes: Sequence[str],
        memory: int | None = None,
        queries: int = 1,
        adapter_rank: int = 0,
        extends: Sequence[Task] = (),
        regime: str = "memory",
        placement: str = "before-norm",
        preprocessing: Preprocessing | None = None,
        seed: int | None = None,
    ) -> Task:
        """A new task, ready to train.

        memory: cells per layer, 0 or more (5 unless told, in regimes that have memory). queries: class tokens, 1 or
        more. adapter_rank: 0 for none. extends: tasks that this one may see; they are frozen from now on.
        preprocessing: what images go through; that of the extended tasks, else the backbone's, unless told.
        seed: of the initial values; without it they come from torch's global generator.

        Memory is drawn from N(0, 0.02). The first class token is a copy of the base one, further ones are copies with
        N(0, 0.02) added. Raises MemtokError for values that make no task.
        """
        if not isinstance(backbone, Backbone):
            raise MemtokError(
                f"expected a memtok backbone, found {type(backbone).__name__}; wrap it with "
                "memtok.load_backbone(model)",
                argument="backbone",
            )
        check_choice("regime", regime, tuple(REGIMES))
        has_memory, _ = REGIMES[regime]
        cells = (DEFAULT_CELLS if has_memory else 0) if memory is None else memory
        sizes = {"memory": cells, "queries": queries, "adapter_rank": adapter_rank}
        for option in OPTIONS:
            check_count(option.name, sizes[option.name], option.least)
        if cells and not has_memory:
            raise MemtokError(
                f"expected no memory in regime {regime!r}, found {cells} cells; use regime 'memory'", argument="memory"
            )
        if (queries > 1 or adapter_rank) and regime != "memory":
            raise MemtokError(
                f"expected {Argument('queries', 1)} and {Argument('adapter_rank', 0)} in regime {regime!r}, found "
                f"{Argument('queries', queries)} and {Argument('adapter_rank', adapter_rank)}; use regime 'memory'",
                argument="queries" if queries > 1 else "adapter_rank",
            )
        if seed is not None:
            check_count("seed", seed, 0)
            if seed >= 2**63:
                raise MemtokError(f"expected {Argument('seed')} below 2**63, found {seed}; choose a smaller one")
        generator = torch.Generator().manual_seed(seed) if seed is not None else None
        if regime == "head":
            sizes["queries"] = 0
        classes = new_classes(classes)
        tensors = initial_tensors(backbone, regime, {"classes": len(classes)} | sizes, generator)
        extends = check_extends(check_name(name), backbone, regime, extends)
        return cls(
            backbone,
            name=name,
            classes=classes,
            tensors=tensors,
            regime=regime,
            placement=placement,
            extends=extends,
            preprocessing=preprocessing or preprocessing_of(name, extends),
        )

    def __setattr__(self, name: str, value: Any) -> None:
        """As for every module, but a tensor or a head that does not fit the task is refused."""
        if name in ("class_tokens", "memory", "head") and hasattr(self, "adapters"):  # made already
            self.check(**{name: value})
        super().__setattr__(name, value)

    def check(self, **replaced: Any) -> None:
        """MemtokError unless its tensors fit its backbone, its regime and its classes; `replaced`: some by others."""
        check_choice("placement", self.placement, PLACEMENTS)
        parts = {"class_tokens": self.class_tokens, "memory": self.memory, "head": self.head} | replaced
        head = parts.pop("head")
        if not isinstance(head, nn.Linear):
            raise MemtokError(
                f"expected a linear head in task {self.name!r}, found {type(head).__name__}; assign to "
                "task.head.weight and task.head.bias, or make another task"
            )
        parts |= {"head.weight": head.weight, "head.bias": head.bias}
        parts |= {"adapters." + key.replace("_", "."): value for key, value in self.adapters.items()}
        check_shapes(self.name, self.backbone, self.regime, len(self.classes), parts)

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
        """Number of class tokens of its own; 0 in regime `head`."""
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
    def composable(self) -> bool:
        """Whether it can share a pass with other tasks: True where image tokens never see it."""
        return REGIMES[self.regime][1]

    def ancestors(self) -> tuple[Task, ...]:
        """All that it extends, directly or through others, every one before those that extend it."""
        return topological(self.extends, trail=(self,))

    def tensors(self) -> dict[str, Tensor]:
        """Its parameters under the names of a task file, detached, in float32."""
        self.check()
        return {key: value.detach().to(torch.float32) for key, value in self.named().items()}

    def named(self) -> dict[str, Tensor]:
        """Its parameters under the names of a task file."""
        found: dict[str, Tensor] = {"class_tokens": self.class_tokens, "memory": self.memory}
        found |= {"head.weight": self.head.weight, "head.bias": self.head.bias}
        return found | {"adapters." + key.replace("_", "."): value for key, value in self.adapters.items()}

    @property
    def sizes(self) -> dict[str, int]:
        """The number of classes, and the options of all parts that it was made with."""
        return sizes_of(len(self.classes), self.named())

    def without_decay(self) -> set[nn.Parameter]:
        """Its parameters that weight decay leaves alone: tokens, memory, biases."""
        declared = specs(self.backbone, self.regime, self.sizes)
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
                placement=task.placement,
                preprocessing=task.preprocessing.to_dict(),
                regime=task.regime,
            )
        return known[id(self)]

    def save(self, path: str | Path) -> None:
        """Writes a task file, atomically; see `memtok.bundle`."""
        write_tasks([(header_of(self), self.tensors())], path)

    def forward(self, features: Tensor) -> Tensor:
        """(B, classes) logits from its class tokens after the final norm, (B, max(queries, 1), D)."""
        logits: Tensor = self.head(features.flatten(1).to(self.head.weight.dtype))
        return logits

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
        "placement": task.placement,
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
    extends: list[str],
    placement: str,
    preprocessing: dict[str, Any],
    regime: str,
) -> str:
    """`sha256:` of a task's tensors, widened to float32, and of the facts that its answers depend on besides."""
    facts = {
        "backbone": backbone,
        "extends": extends,
        "placement": placement,
        "preprocessing": preprocessing,
        "regime": regime,
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
    backbone: Backbone, regime: str, sizes: Sizes, generator: torch.Generator | None
) -> dict[str, Tensor]:
    """Initial values, float32 on the backbone's device; drawn on the CPU, so that a seed means the same everywhere."""
    drawn = {
        name: torch.randn(spec.shape, generator=generator, dtype=torch.float32, device="cpu") * spec.std
        if spec.std
        else torch.zeros(spec.shape, dtype=torch.float32, device="cpu")
        for name, spec in specs(backbone, regime, sizes).items()
    }
    for part in PARTS:
        part.begin(backbone, regime, drawn)
    return {key: value.to(backbone.device) for key, value in drawn.items()}


def check_tensors(name: str, backbone: Backbone, regime: str, classes: int, tensors: Mapping[str, Tensor]) -> None:
    """MemtokError unless `tensors` are all that such a task has, in their shapes, finite and floating-point."""
    check_shapes(name, backbone, regime, classes, tensors)
    for key in sorted(tensors):
        if not tensors[key].is_floating_point() or not bool(torch.isfinite(tensors[key]).all()):
            raise MemtokError(f"expected finite numbers in {key} of task {name!r}, found others; train it again")


def check_shapes(name: str, backbone: Backbone, regime: str, classes: int, tensors: Mapping[str, Any]) -> None:
    """MemtokError unless `tensors` are all that such a task has, in their shapes."""
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
    shapes = {key: spec.shape for key, spec in specs(backbone, regime, sizes).items()}
    for key in sorted(shapes.keys() | tensors.keys()):
        if key not in tensors:
            raise MemtokError(f"expected the tensor {key} in task {name!r}, found none; the file is not whole")
        if key not in shapes:
            raise MemtokError(
                f"expected no tensor {key} in task {name!r} of regime {regime!r}, found one; not this format"
            )
        if tuple(tensors[key].shape) != shapes[key]:
            raise MemtokError(
                f"expected {key} of task {name!r} in shape {shapes[key]}, found {tuple(tensors[key].shape)}; "
                "it belongs to another backbone or format"
            )
    if (queries == 0) != (regime == "head") or (queries > 1 and regime != "memory"):
        raise MemtokError(f"expected class tokens that fit regime {regime!r} in task {name!r}, found {queries}")
    if cells and not REGIMES[regime][0]:
        raise MemtokError(f"expected no memory in task {name!r} of regime {regime!r}, found {cells} cells")


def check_extends(name: str, backbone: Backbone, regime: str, extends: Sequence[Task]) -> tuple[Task, ...]:
    """The tasks to extend, in the given order: composable, of this backbone, of different names."""
    if not isinstance(extends, Sequence) or not all(isinstance(task, Task) for task in extends):
        raise MemtokError(
            f"expected {Argument('extends')} as a list of tasks, found something else; load them with memtok.load_task"
        )
    if extends and regime != "memory":
        raise MemtokError(
            f"expected regime 'memory' for a task that extends others, found {regime!r}", argument="regime"
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
