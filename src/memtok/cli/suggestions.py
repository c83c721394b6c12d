"""Suggestions for a mistyped command or option."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

# As other tools of the field call it -> as memtok does, the first of these that the command has.
OPTIONS: dict[str, tuple[str, ...]] = {
    "--lr": ("--learning-rate", "--learning-rates"),
    "--rate": ("--learning-rate", "--learning-rates"),
    "--wd": ("--weight-decays",),
    "--weight-decay": ("--weight-decays",),
    "--bs": ("--batch-size",),
    "-b": ("--batch-size",),
    "--batch": ("--batch-size",),
    "--iterations": ("--steps",),
    "--max-steps": ("--steps",),
    "--num-steps": ("--steps",),
    "--num-epochs": ("--epochs",),
    "--num-train-epochs": ("--epochs",),
    "--gradient-accumulation-steps": ("--accumulate",),
    "-o": ("--out",),
    "--output": ("--out", "--csv"),
    "--output-dir": ("--out",),
    "--save": ("--out",),
    "--model": ("--backbone",),
    "--checkpoint": ("--backbone",),
    "--weights": ("--backbone",),
    "-d": ("--data",),
    "--dataset": ("--data",),
    "--train-dir": ("--data",),
    "--root": ("--data-dir",),
    "-i": ("--images",),
    "--input": ("--images", "--data"),
    "--resolution": ("--image-size",),
    "--size": ("--image-size",),
    "--img-size": ("--image-size",),
    "-j": ("--workers",),
    "--num-workers": ("--workers",),
    "--gpu": ("--device",),
    "--cuda": ("--device",),
    "--cpu": ("--device",),
    "--amp": ("--precision",),
    "--bf16": ("--precision",),
    "--fp16": ("--precision",),
    "--dtype": ("--precision",),
    "--cells": ("--memory",),
    "--tokens": ("--memory",),
    "--method": ("--regime",),
    "--mode": ("--regime",),
    "--topk": ("--top",),
    "--top-k": ("--top",),
    "--threshold": ("--unknown-below",),
    "--continue": ("--resume",),
    "--force": ("--overwrite",),
    "--random-seed": ("--seed",),
    "--augmentation": ("--augment",),
    "--verbose": ("--debug",),
}
COMMANDS = {
    "fit": "train",
    "finetune": "train",
    "fine-tune": "train",
    "test": "evaluate",
    "eval": "evaluate",
    "validate": "evaluate",
    "infer": "predict",
    "inference": "predict",
    "classify": "predict",
    "merge": "concat",
    "combine": "concat",
    "compose": "concat",
    "check": "verify",
    "info": "inspect",
    "show": "inspect",
    "import": "import-legacy",
    "convert": "import-legacy",
    "search": "sweep",
    "tune": "sweep",
    "benchmark": "bench",
    "demo": "quickstart",
    "start": "quickstart",
}


def command_like(word: str, commands: Sequence[str]) -> str:
    """The command that is like `word`, in parentheses; nothing where none is."""
    found = COMMANDS.get(word.casefold(), "")
    return meant([found] if found in commands else difflib.get_close_matches(word.casefold(), commands, 1))


def options_like(words: Iterable[str], options: Sequence[str]) -> str:
    """The same for the options that are like `words`: unknown ones, `--lr` or `--lr=0.1`."""
    known = [option for option in options if option.startswith("--")]
    found: dict[str, None] = {}
    for word in words:
        flag = word.split("=")[0].casefold().replace("_", "-")
        aliases = [option for option in OPTIONS.get(flag, ()) if option in known]
        found |= dict.fromkeys(aliases[:1] or difflib.get_close_matches(flag, known, 1, cutoff=0.7))
    return meant(list(found))


def meant(found: Sequence[str]) -> str:
    """In words."""
    return f" (did you mean {' or '.join(found)}?)" if found else ""
