"""Suggestions for a mistyped command or option."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

# Option or command -> its names in other tools.
OPTIONS: dict[str, tuple[str, ...]] = {
    "--accumulate": ("--gradient-accumulation-steps",),
    "--augment": ("--augmentation",),
    "--backbone": ("--model", "--checkpoint", "--weights"),
    "--batch-size": ("--bs", "-b", "--batch"),
    "--data-dir": ("--root",),
    "--debug": ("--verbose",),
    "--device": ("--gpu", "--cuda", "--cpu"),
    "--epochs": ("--num-epochs", "--num-train-epochs"),
    "--image-size": ("--resolution", "--size", "--img-size"),
    "--images": ("-i", "--input"),
    "--data": ("-d", "--dataset", "--train-dir", "--input"),
    "--learning-rate": ("--lr", "--rate"),
    "--learning-rates": ("--lr", "--rate"),
    "--memory": ("--cells", "--tokens"),
    "--out": ("-o", "--output", "--output-dir", "--save"),
    "--csv": ("--output",),
    "--overwrite": ("--force",),
    "--precision": ("--amp", "--bf16", "--fp16", "--dtype"),
    "--regime": ("--method", "--mode"),
    "--resume": ("--continue",),
    "--seed": ("--random-seed",),
    "--steps": ("--iterations", "--max-steps", "--num-steps"),
    "--top": ("--topk", "--top-k"),
    "--unknown-below": ("--threshold",),
    "--weight-decays": ("--wd", "--weight-decay"),
    "--workers": ("-j", "--num-workers"),
}
COMMANDS: dict[str, tuple[str, ...]] = {
    "train": ("fit", "finetune", "fine-tune"),
    "evaluate": ("test", "eval", "validate"),
    "predict": ("infer", "inference", "classify"),
    "concat": ("merge", "combine", "compose"),
    "verify": ("check",),
    "inspect": ("info", "show"),
    "import-legacy": ("import", "convert"),
    "sweep": ("search", "tune"),
    "bench": ("benchmark",),
    "quickstart": ("demo", "start"),
}


def command_like(word: str, commands: Sequence[str]) -> str:
    """The command that is like `word`, in parentheses; nothing where none is."""
    return meant(like(word.casefold(), COMMANDS, commands))


def options_like(words: Iterable[str], options: Sequence[str]) -> str:
    """The same for the options that are like `words`: unknown ones, `--lr` or `--lr=0.1`."""
    known = [option for option in options if option.startswith("--")]
    flags = [word.split("=")[0].casefold().replace("_", "-") for word in words]
    return meant(list(dict.fromkeys(found for flag in flags for found in like(flag, OPTIONS, known, cutoff=0.7))))


def like(word: str, aliases: dict[str, tuple[str, ...]], known: Sequence[str], cutoff: float = 0.6) -> list[str]:
    """The first of the `known` names that is called `word` elsewhere, else the one that is spelled most like it."""
    called = [name for name, others in aliases.items() if word in others and name in known]
    return called[:1] or difflib.get_close_matches(word, known, 1, cutoff)


def meant(found: Sequence[str]) -> str:
    """In words."""
    return f" (did you mean {' or '.join(found)}?)" if found else ""
