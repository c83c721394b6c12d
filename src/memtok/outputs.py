"""What a model answers: the backbone's own output and one for each task."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor
from torch.export import register_dataclass

from memtok.errors import MemtokError


@dataclass(frozen=True)
class TaskAttention:
    """Attention weights of the class tokens of one task, in every layer. The weights of a row add up to 1.

    image: (L, B, H, queries, N) over the trunk's tokens: prefix tokens (class, distillation, register), then patches
        row by row. class_tokens: (L, B, H, queries, queries) over its own class tokens, itself among them.
    memory: (L, B, H, queries, cells) over its own memory. extended: for each task that it extends, the same over that
        task's class tokens and then its memory, (L, B, H, queries, queries_j + cells_j).
    """

    image: Tensor
    class_tokens: Tensor
    memory: Tensor
    extended: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Outputs:
    """Outputs of one forward pass; `out["pets"]` gives a task's logits (B, classes).

    features: (B, D) the base class token after the final norm; base: (B, base classes). Both are None with base=False,
    and base is None for a backbone without classifier. attention: by task name, empty unless requested.
    embeddings: by task name, the input of its head: its concatenated class tokens after the final norm,
        (B, queries * D), or (B, D) features of the base class token in regime `head`. They are views and cost nothing.

    A pytree of torch: `torch.export` and `torch.func.vmap` return it as it is.
    """

    features: Tensor | None
    base: Tensor | None
    logits: dict[str, Tensor]
    attention: dict[str, TaskAttention] = field(default_factory=dict)
    embeddings: dict[str, Tensor] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks that were answered."""
        return tuple(self.logits)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.logits:
            known = ", ".join(repr(known) for known in self.logits) or "none"
            raise MemtokError(f"expected one of the tasks {known}, found {name!r}; add that task to the model")
        return self.logits[name]

    def __contains__(self, name: object) -> bool:
        return name in self.logits

    def __iter__(self) -> Iterator[str]:
        return iter(self.logits)

    def __len__(self) -> int:
        return len(self.logits)


for _answer in (TaskAttention, Outputs):
    register_dataclass(_answer, serialized_type_name=f"memtok.{_answer.__name__}")
