"""Writes docs/api.md from the signatures and docstrings of the public names: `python scripts/api_page.py`.

A test compares the page with the code, so run this after a change of either.
"""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from collections.abc import Iterator
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import memtok

PAGE = Path(__file__).resolve().parent.parent / "docs" / "api.md"

# Where each name of `memtok` stands; one that is missing here comes last.
SECTIONS = {
    "Backbone and preprocessing": ("load_backbone", "Backbone", "Preprocessing"),
    "Tasks and models": ("Task", "MemoryViT", "Outputs", "TaskAttention", "FullModel"),
    "Task files": ("load_task", "load_tasks", "save_tasks", "read_legacy"),
    "Data": ("open_data", "training_transform", "evaluation_transform"),
    "Training": ("train", "choose_form", "train_together", "sweep"),
    "Evaluation and prediction": ("evaluate", "predict", "verify"),
    "Export": ("export", "load_onnx"),
    "Reference": ("reference_outputs", "attention_mask"),
    "Errors": ("MemtokError",),
}
# What they take and give: public names of the modules below.
MORE = {
    "memtok.data": ("DataSource", "ImageSet", "from_dataset"),
    "memtok.training": ("create", "Recipe", "TrainResult", "Progress"),
    "memtok.training.head_alone": ("HeadAlone",),
    "memtok.runs": ("Listener",),
    "memtok.sweeps": ("Range", "SweepResult", "DataResult", "SweepListener"),
    "memtok.evaluation": ("EvaluationTable",),
    "memtok.rounding": ("TaskDifferences",),
    "memtok.prediction": ("Predictions", "Prediction"),
    "memtok.metrics": ("Score",),
    "memtok.verification": ("VerifyReport",),
    "memtok.intervals": ("Difference",),
    "memtok.exports.writing": ("ExportResult",),
    "memtok.exports.progress": ("ExportListener",),
    "memtok.exports.parity": ("Parity", "OutputParity"),
    "memtok.exports.opened": ("OnnxModel",),
    "memtok.exports.description": ("Description", "ExportedTask"),
}
INTRODUCTION = """# Python API

Written by `python scripts/api_page.py` from the signatures and docstrings; a test keeps it up to date. Examples are in
the [README](../README.md) and in [examples](../examples/README.md).

Shapes: images are (batch, 3, height, width), already normalised, features (batch, dim), logits (batch, classes).
Accuracies and probabilities are shares in [0, 1]. All errors that memtok raises for what it is given are
`memtok.MemtokError`, one line each: what was expected, what was found, what to do.
"""


def page() -> str:
    """The whole page."""
    known = {name for names in SECTIONS.values() for name in names}
    others = tuple(name for name in memtok.__all__ if name not in known and name != "__version__")
    sections = SECTIONS | ({"More": others} if others else {})
    parts = [INTRODUCTION]
    for title, names in sections.items():
        parts.append(f"## {title}\n")
        parts += [entry("memtok", name) for name in names if name in memtok.__all__]
    parts.append("## What these take and give\n")
    parts += [entry(module, name) for module, names in MORE.items() for name in names]
    parts.append("`memtok.__version__` is the version, a string.\n")
    return "\n".join(parts)


def entry(module: str, name: str) -> str:
    """A heading and the signatures with their docstrings."""
    value = getattr(import_module(module), name)
    code = of_class(name, value) if inspect.isclass(value) else of_function(name, value)
    return f"### `{module}.{name}`\n\n```python\n{code}\n```\n"


def of_function(name: str, value: Any, *, indent: str = "") -> str:
    """`def name(...) -> ...:` and the docstring."""
    wrapped, kind = wrapped_by(value), ""
    if isinstance(value, property | cached_property):
        kind = "@property\n"
    elif isinstance(value, classmethod | staticmethod):
        kind = f"@{type(value).__name__}\n"
    signature = inspect.signature(wrapped)
    shown = [parameter(each) for each in with_marks(signature)]
    returns = "" if signature.return_annotation is signature.empty else f" -> {plain(signature.return_annotation)}"
    head = f"def {name}({', '.join(shown)}){returns}:"
    if len(indent + head) > 100:
        head = f"def {name}(\n" + "".join(f"    {each},\n" for each in shown) + f"){returns}:"
    return textwrap.indent(f"{kind}{head}\n{docstring(wrapped)}", indent)


def of_class(name: str, value: type) -> str:
    """`class name(...)`, its docstring, what it is made from, and its public methods and properties."""
    bases = [base.__name__ for base in value.__bases__ if base is not object]
    head = f"class {name}({', '.join(bases)}):" if bases else f"class {name}:"
    parts = [f"{head}\n{docstring(value)}"]
    if dataclasses.is_dataclass(value):
        parts.append(
            "\n".join(f"    {field.name}: {plain(field.type)}{default(field)}" for field in shown_fields(value))
        )
    parts += [of_function(each, member, indent="    ") for each, member in members(value)]
    return "\n\n".join(parts)


def members(value: type) -> Iterator[tuple[str, Any]]:
    """What the class itself defines for others: methods and properties with a docstring."""
    for name, member in vars(value).items():
        inner = wrapped_by(member)
        called = name in ("__init__", "__getitem__") and not dataclasses.is_dataclass(value)
        if inspect.isfunction(inner) and (called or not name.startswith("_")) and inner.__doc__:
            yield name, member


def wrapped_by(member: Any) -> Any:
    """The function inside a property, cached property, class or static method; else the member itself."""
    for name in ("fget", "__func__", "func"):
        if hasattr(member, name):
            return getattr(member, name)
    return member


def shown_fields(value: Any) -> list[dataclasses.Field[Any]]:
    """The public fields of a dataclass."""
    return [field for field in dataclasses.fields(value) if not field.name.startswith("_")]


def default(field: dataclasses.Field[Any]) -> str:
    """` = value`, where a field has one."""
    if field.default_factory is not dataclasses.MISSING:
        return f" = {field.default_factory()!r}"
    return "" if field.default is dataclasses.MISSING else f" = {field.default!r}"


def with_marks(signature: inspect.Signature) -> list[inspect.Parameter | str]:
    """The parameters, with `*` before those that are given by name only."""
    found: list[inspect.Parameter | str] = []
    for each in signature.parameters.values():
        if each.kind is each.KEYWORD_ONLY and not any(one == "*" or star(one) for one in found):
            found.append("*")
        found.append(each)
    return found


def star(one: inspect.Parameter | str) -> bool:
    """Whether it takes all that is left by position."""
    return isinstance(one, inspect.Parameter) and one.kind is one.VAR_POSITIONAL


def parameter(each: inspect.Parameter | str) -> str:
    """`name: type = default`."""
    if isinstance(each, str):
        return each
    marks = {each.VAR_POSITIONAL: "*", each.VAR_KEYWORD: "**"}
    text = marks.get(each.kind, "") + each.name
    if each.annotation is not each.empty:
        text += f": {plain(each.annotation)}"
    return text if each.default is each.empty else f"{text} = {each.default!r}"


def plain(annotation: Any) -> str:
    """A type as it is written."""
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def docstring(value: Any) -> str:
    """The docstring, indented as it stands in the code."""
    return textwrap.indent(f'"""{inspect.getdoc(value) or ""}"""', "    ")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
