"""Which of timm's published checkpoints memtok reads, and why not the others: a table in Markdown.

    python scripts/checkpoints.py

Every architecture of `timm.list_pretrained()` whose name or class belongs to a family of plain Vision Transformers is
made without weights (on torch's meta device, with the arguments of its published checkpoints) and shown to memtok's
`check_supported`. It takes some minutes. The table stands in docs/backbones.md.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg
from torch import nn

from memtok.checkpoint import check_supported
from memtok.errors import MemtokError

# The modules of timm in which its plain Vision Transformers are.
MODULES = ("vision_transformer", "vision_transformer_hybrid", "deit", "eva", "beit")
# Models of other classes that look like them: they are listed, and not counted.
RELATED_MODULES = ("vision_transformer_relpos", "vision_transformer_sam", "naflexvit")


@dataclass(frozen=True)
class Answer:
    """The class of a model, whether it has a class token, and why memtok refuses it ("" where it reads it)."""

    kind: str
    class_token: bool
    refused: str


def published(modules: tuple[str, ...]) -> Iterator[tuple[str, Answer]]:
    """Every published checkpoint of these modules of timm; models that are made alike are made once."""
    known: dict[str, Answer] = {}
    for name in timm.list_pretrained():
        architecture = name.partition(".")[0]
        if timm.models.model_entrypoint(architecture).__module__.rpartition(".")[2] not in modules:
            continue
        config = get_pretrained_cfg(name)
        arguments: dict[str, Any] = dict(getattr(config, "model_args", None) or {})
        # The number of classes and the image size of a checkpoint change nothing in what memtok understands.
        key = f"{architecture} {sorted(arguments.items())}"
        if key not in known:
            with torch.device("meta"):
                model = timm.create_model(architecture, **arguments)
            known[key] = Answer(type(model).__name__, getattr(model, "cls_token", None) is not None, reason(model))
        yield name, known[key]


def reason(model: nn.Module) -> str:
    """Why memtok refuses a model: what was found, by memtok's own words; "" for one that it reads."""
    try:
        check_supported(model)
    except MemtokError as error:
        return str(error).partition("found ")[2].partition(" in blocks")[0].partition(";")[0]
    return ""


def main() -> None:
    """Prints the table."""
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    read: Counter[tuple[str, bool]] = Counter()
    refused: dict[tuple[str, bool], Counter[str]] = {}
    for _, answer in published((*MODULES, *RELATED_MODULES)):
        row = answer.kind, answer.class_token
        if answer.refused:
            refused.setdefault(row, Counter())[answer.refused] += 1
        else:
            read[row] += 1
    known = {kind for kind, _ in read}
    inside = sum(found.total() for (kind, _), found in refused.items() if kind in known)
    print("| model of timm | class token | read | not read, and why |")
    print("|---|---|---|---|")
    for row in sorted(read, key=lambda row: (row[0], not row[1])):
        why = ", ".join(f"{count} `{reason}`" for reason, count in sorted(refused.get(row, Counter()).items()))
        print(f"| `{row[0]}` | {'yes' if row[1] else 'no'} | {read[row]} | {why} |")
    print(f"| together | | {read.total()} of {read.total() + inside} | {inside} |")
    others: Counter[str] = Counter()
    for (kind, _), found in refused.items():
        if kind not in known:
            others[kind] += found.total()
    for kind, count in sorted(others.items()):
        print(f"| `{kind}` | | 0 of {count} | another class |")


if __name__ == "__main__":
    main()
