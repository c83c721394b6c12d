"""`memtok import-legacy`: checkpoints of the public reproduction become task files."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from memtok.cli.errors import UsageError
from memtok.cli.options import Parser, add, add_backbone, add_files, add_json, add_list, add_switch, require
from memtok.cli.output import check_outputs, progress, say, table, write_result
from memtok.display import shown_bytes
from memtok.errors import MemtokError
from memtok.regular import check_regular

if TYPE_CHECKING:
    from memtok.backbone import Backbone
    from memtok.task import Task

USAGE = "FILE.pt... --backbone SRC --out DIR"
EXAMPLES = """
  memtok import-legacy models/CIFAR100_model.pt --backbone google/vit-base-patch32-224-in21k \\
      --classes cifar100.txt --out tasks
  memtok import-legacy necrashter/transformers-learnable-memory --file Places_model.pt Sun_model.pt \\
      --backbone google/vit-base-patch32-224-in21k --classes places.txt sun.txt --out tasks
  memtok import-legacy mine_model.pt --backbone SRC --base-out base.safetensors --out tasks
"""


def configure(parser: Parser) -> None:
    """Adds the options."""
    add_files(parser, "old checkpoints: files, folders of *.pt, or org/name on the Hugging Face Hub")
    add_list(parser, "--file", "NAME", "which files of the folder or repository (default: all *.pt)")
    add_backbone(parser)
    add_list(
        parser,
        "--classes",
        "FILE",
        "class names, one FILE per task in their order: one name a line, or a JSON list (default: 0, 1, 2 ...)",
    )
    add(parser, "--out", None, "DIR", "the folder that the task files go into, each as NAME.safetensors")
    add(parser, "--base-out", None, "FILE", "also write the backbone inside, FILE.safetensors; the tasks belong to it")
    add_switch(parser, "--overwrite", "replace files that are there")
    add_json(parser)


def run(options: Namespace) -> int:
    """Reads and checks everything, then writes all files or none, and prints what they are."""
    require(options, "FILE", "--backbone", "--out")
    out, base_out = Path(options.out), None if options.base_out is None else Path(options.base_out)
    if out.exists() and not out.is_dir():
        raise UsageError(f"expected a folder after --out, found the file {out}; name another")
    if base_out and base_out.suffix != ".safetensors":
        raise UsageError(f"expected --base-out as FILE.safetensors, found {options.base_out!r}; change the ending")
    if options.file and len(options.files) > 1:
        raise UsageError(f"expected one folder or repository with --file, found {len(options.files)}; run it for each")
    inputs = [*old_files(options), *(options.classes or []), options.backbone]
    check_outputs(options.json, options.base_out, inputs=inputs)
    classes = None if options.classes is None else [read_classes(path) for path in options.classes]
    base, tasks = read_all(options, classes)
    files = [out / f"{task.name}.safetensors" for task in tasks]
    for path in files:
        if path.is_dir():  # no UsageError: the names of the tasks are in the files
            raise MemtokError(f"expected a file name for the result, found the folder {path}; name a file in it")
    check_outputs(*map(str, files), options.json, options.base_out, inputs=inputs)
    if not options.overwrite:
        check_absent([*files, *([base_out] if base_out else [])])
    write_all(base if base_out else None, base_out, tasks, files)
    write_result(options.json, summary(tasks, files, base, options))
    show(tasks, files, base, options)
    return 0


def old_files(options: Namespace) -> list[str]:
    """The old checkpoints that are read: of a folder its *.pt, or the files named by --file."""
    read: list[str] = []
    for source in options.files:
        folder = Path(source).expanduser()
        named = [folder / name for name in options.file or []] or folder.glob("*.pt")
        read += map(str, named) if folder.is_dir() else [source]
    return read


def read_classes(path: str) -> list[str]:
    """Class names from a text file, one a line (empty lines do not count), or from a JSON list of texts."""
    check_regular(path, "a text file of class names", streams=True)
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no UTF-8"
        raise MemtokError(f"expected a text file of class names, found {path}: {reason}; check the file") from error
    if not text.lstrip().startswith("["):
        return [line.strip() for line in text.split("\n") if line.strip()]
    try:
        names = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MemtokError(f"expected a JSON list of class names in {path}, found: {error}; mend it") from error
    if not all(isinstance(name, str) for name in names):
        raise MemtokError(f"expected a JSON list of texts in {path}, found other values; write the names in quotes")
    return list(names)


def read_all(options: Namespace, classes: Sequence[Sequence[str]] | None) -> tuple[Backbone, list[Task]]:
    """The backbone that the tasks belong to, and the tasks of all files with their class names."""
    from memtok.cli.sources import open_backbone
    from memtok.legacy import legacy_backbone, legacy_files
    from memtok.legacy.tasks import name_classes, read_file

    found = [file for source in options.files for file in legacy_files(source, options.file)]  # before the backbone
    base = open_backbone(options.backbone)
    if options.base_out:
        inside = legacy_backbone(found[0].path, base)
        inside.source = base.source if inside.fingerprint == base.fingerprint else options.base_out
        base = inside
    tasks: list[Task] = []
    with progress("reading checkpoints") as report:
        for done, file in enumerate(found, start=1):
            tasks += read_file(file, base)
            report(done, len(found))
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise MemtokError(
                f"expected tasks of different names, found {name!r} twice; import one into another folder"
            )
    if classes is not None:
        name_classes(tasks, classes, options.classes)
    return base, tasks


def check_absent(files: Sequence[Path]) -> None:
    """MemtokError if one of the files that are to be written is there."""
    for path in files:
        if path.exists():
            raise MemtokError(f"expected {path} free for the result, found a file there; move it, or use --overwrite")


def write_all(base: Backbone | None, base_out: Path | None, tasks: Sequence[Task], files: Sequence[Path]) -> None:
    """Writes every file under a temporary name first; they are renamed only when all are complete."""
    from memtok.checkpoint import save_checkpoint
    from memtok.files import atomic_write

    with ExitStack() as stack:
        if base is not None and base_out is not None:
            save_checkpoint(base.vit, base.preprocessing, stack.enter_context(atomic_write(base_out)))
        for task, path in zip(tasks, files, strict=True):
            task.save(stack.enter_context(atomic_write(path)))


def summary(tasks: Sequence[Task], files: Sequence[Path], base: Backbone, options: Namespace) -> dict[str, Any]:
    """The result for `--json`."""
    return {
        "tasks": [
            {
                "name": task.name,
                "file": str(path),
                "bytes": path.stat().st_size,
                "classes": len(task.classes),
                "cells": task.cells,
                "extends": [other.name for other in task.extends],
                "arrangement": task.record["arrangement"],
                "imported": task.record["imported"],
                "fingerprint": task.fingerprint,
            }
            for task, path in zip(tasks, files, strict=True)
        ],
        "backbone": {"fingerprint": base.fingerprint, "source": base.source},
        "base_file": options.base_out,
        "preprocessing": tasks[0].preprocessing.to_dict(),
    }


def show(tasks: Sequence[Task], files: Sequence[Path], base: Backbone, options: Namespace) -> None:
    """Prints the result and what to type next."""
    rows = [
        [
            task.name,
            len(task.classes),
            task.cells,
            ", ".join(other.name for other in task.extends) or "nothing",
            path,
            shown_bytes(path.stat().st_size),
        ]
        for task, path in zip(tasks, files, strict=True)
    ]
    table(["task", "classes", "cells", "extends", "file", "size"], rows, right=["classes", "cells", "size"])
    height, width = tasks[0].preprocessing.image_size
    say(f"Images: {height}x{width} px, pixels in [0, 1], not normalised, as the reproduction had them.")
    if options.base_out:
        size = shown_bytes(Path(options.base_out).stat().st_size)
        say(f"Backbone: {options.base_out}, {base.fingerprint[:19]}, {size}.")
    words = [*map(str, files), "--backbone", options.base_out or options.backbone]
    say()
    say("next:")
    say(f"  memtok verify {shlex.join(words)}")
    say(f"  memtok predict {shlex.join(words)} --images PATH")
