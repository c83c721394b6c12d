"""`memtok inspect`: what is in a file. Reads headers only, and needs neither torch nor a backbone."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from memtok.cli.options import Parser, add_files, add_json, require
from memtok.cli.output import check_outputs, say, table, write_result
from memtok.display import shown_bytes
from memtok.errors import MemtokError
from memtok.header import Header, StoredTensor, check_digest, parse_metadata, read_safetensors_header, tensors_of

USAGE = "FILE..."
EXAMPLES = """
  memtok inspect pets.safetensors
  memtok inspect all.safetensors --json contents.json
"""
CLASSES_SHOWN = 10


def configure(parser: Parser) -> None:
    """Adds the options."""
    add_files(parser, "task files, or a whole model: a .safetensors file, or a folder with one")
    add_json(parser)


def run(options: Namespace) -> int:
    """Reads every header, then prints."""
    require(options, "FILE")
    check_outputs(options.json, inputs=options.files)
    found = [look(path) for path in options.files]
    write_result(options.json, {"files": found})
    for number, contents in enumerate(found):
        if number:
            say()
        show(contents)
    return 0


def look(path: str) -> dict[str, Any]:
    """The content of one file: {"path", "bytes", "kind": "tasks", "tasks": [...]} or "kind": "model" with its facts."""
    if Path(path).is_dir():
        return look_at_folder(Path(path))
    header = read_safetensors_header(path)
    facts: dict[str, Any] = {"path": path, "bytes": header.nbytes}
    if "memtok" in header.metadata:
        tasks = parse_metadata(Path(path), header.metadata)
        own, _ = tensors_of(tasks, header.tensors)
        described = [describe_task(path, *one, header) for one in zip(tasks, own, strict=True)]
        return facts | {"kind": "tasks", "tasks": described}
    if "architecture" not in header.metadata:
        raise MemtokError(
            f"expected a task file or a model written by memtok, found a safetensors file of neither kind in {path}; "
            "name another"
        )
    check_digest(Path(path), header.metadata)
    return facts | {"kind": "model"} | describe_tensors(header.tensors) | {"metadata": unfold(header.metadata)}


def look_at_folder(folder: Path) -> dict[str, Any]:
    """A backbone in a folder: facts of its config.json and its weights."""
    config, weights = folder / "config.json", folder / "model.safetensors"
    if not config.is_file():
        raise MemtokError(
            f"expected a file, or a folder with config.json, found the folder {folder}; name the file in it"
        )
    try:
        facts = json.loads(config.read_text(encoding="utf-8"))
        layout = "timm" if "architecture" in facts else "transformers"
        name = facts["architecture"] if layout == "timm" else facts["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise MemtokError(
            f"expected architecture (timm) or model_type (transformers) in {config}, found neither; name another folder"
        ) from error
    found: dict[str, Any] = {"path": str(folder), "kind": "model", "metadata": {"layout": layout, "architecture": name}}
    if weights.is_file():
        header = read_safetensors_header(weights)
        found |= {"bytes": header.nbytes} | describe_tensors(header.tensors)
    return found


def describe_task(path: str, task: Mapping[str, Any], own: Mapping[str, str], header: Header) -> dict[str, Any]:
    """The header of a task with its tensors: shapes, types, sizes. own: the name of each tensor in the file."""
    if not own:
        raise MemtokError(f"expected the tensors of task {task['name']!r} in {path}, found none; get the file again")
    return dict(task) | describe_tensors({key: header.tensors[name] for key, name in own.items()})


def describe_tensors(tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    """{"parameters": how many numbers, "tensors": {name: {"shape", "dtype", "bytes"}}}."""
    return {
        "parameters": sum(math.prod(tensor.shape) for tensor in tensors.values()),
        "tensors": {
            name: {"shape": list(tensor.shape), "dtype": tensor.dtype, "bytes": tensor.nbytes}
            for name, tensor in tensors.items()
        },
    }


def unfold(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Metadata with the values that are JSON read as such."""

    def read(value: str) -> Any:
        try:
            return json.loads(value)
        except ValueError:
            return value

    return {name: read(value) for name, value in sorted(metadata.items())}


def show(contents: Mapping[str, Any]) -> None:
    """Prints what `look` found."""
    stored = f", {shown_bytes(contents['bytes'])}" if "bytes" in contents else ""
    if contents["kind"] == "model":
        say(f"{contents['path']}: a whole model, no task{stored}")
        facts = [(name, value) for name, value in flatten(contents["metadata"]) if len(str(value)) <= 200]
        if "parameters" in contents:
            facts.append(("parameters", f"{contents['parameters']:,} in {len(contents['tensors'])} tensors"))
        table(["", ""], [[f"  {name}", value] for name, value in facts])
        return
    tasks = contents["tasks"]
    say(f"{contents['path']}: {len(tasks)} {'task' if len(tasks) == 1 else 'tasks'}{stored}")
    for task in tasks:
        say()
        show_task(task)


def show_task(task: Mapping[str, Any]) -> None:
    """Prints one task: what it is, its tensors, how it was trained."""
    classes = task["classes"]
    named = ", ".join(classes[:CLASSES_SHOWN]) + (", ..." if len(classes) > CLASSES_SHOWN else "")
    extends = ", ".join(f"{entry['name']} ({short(entry['fingerprint'])})" for entry in task["extends"])
    backbone = task["backbone"]
    rows: list[tuple[str, object]] = [
        ("task", task["name"]),
        ("classes", f"{len(classes)}: {named}"),
        ("regime", task["regime"] + ("" if task["composable"] else " (not composable)")),
        ("memory placement", task["placement"]),
        ("extends", extends or "nothing"),
        ("backbone", f"{backbone['source']} ({short(backbone['fingerprint'])})"),
        ("preprocessing", ", ".join(f"{name} {value}" for name, value in flatten(task["preprocessing"]))),
        ("fingerprint", task["fingerprint"]),
        ("parameters", f"{task['parameters']:,}"),
    ]
    rows += [
        (f"  {name}", f"{tuple(tensor['shape'])} {tensor['dtype']}, {shown_bytes(tensor['bytes'])}")
        for name, tensor in task["tensors"].items()
    ]
    record = [(f"  {name}", value) for name, value in flatten(task["record"])]
    rows += [("training record", "" if record else "none"), *record]
    table(["", ""], rows)


def short(fingerprint: str) -> str:
    """The beginning of a fingerprint, enough to distinguish files."""
    return fingerprint[:19]


def flatten(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, object]]:
    """(name, value) pairs of nested tables, the names joined by dots; long lists are counted, not printed."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{above}{name}.")
        elif isinstance(value, list) and len(value) > CLASSES_SHOWN:
            yield f"{above}{name}", f"{len(value)} entries"
        elif isinstance(value, list):
            yield (
                f"{above}{name}",
                " x ".join(map(str, value)) if name in ("image_size", "resize") else json.dumps(value),
            )
        else:
            yield f"{above}{name}", value
