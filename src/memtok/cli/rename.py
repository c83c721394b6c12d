"""`memtok rename`: other names for the tasks of a file, or for their classes. No tensor and no fingerprint changes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from memtok.cli.errors import UsageError, arguments
from memtok.cli.options import Parser, add, add_files, add_json, add_list, require
from memtok.cli.output import check_outputs, say, table, write_result
from memtok.display import shown_bytes

USAGE = "FILE [NEW | OLD=NEW...] [--class OLD=NEW...]"
EXAMPLES = """
  memtok rename pets.safetensors cats-and-dogs
  memtok rename all.safetensors pets=cats birds=raptors --out renamed.safetensors
  memtok rename all.safetensors --task pets --class dog=Dog cat=Cat
"""


def configure(parser: Parser) -> None:
    """Adds the options."""
    add_files(parser, "the task file, then NEW for its only task, or OLD=NEW for each task to rename")
    add_list(parser, "--class", "OLD=NEW", "classes of one task to rename")
    add(parser, "--task", None, "NAME", "the task whose classes they are, by its old name (default: the only one)")
    add(parser, "--out", None, "FILE", "another file to write, FILE.safetensors (default: FILE itself)")
    add_json(parser)


def run(options: Namespace) -> int:
    """Reads, checks, writes, prints."""
    require(options, "FILE")
    file, *words = options.files
    out = Path(options.out or file)
    if out.suffix != ".safetensors":
        raise UsageError(f"expected a file FILE.safetensors to write, found {str(out)!r}; give --out")
    if not words and not options["class"]:
        raise UsageError("expected a new name, found none; write NEW, OLD=NEW or --class OLD=NEW")
    check_outputs(str(out), options.json)
    check_outputs(options.json, inputs=[file])
    from memtok.checks import check_name
    from memtok.header import read_header

    headers = read_header(file)
    names = new_names(words, [str(header["name"]) for header in headers], "task")
    with arguments():
        for name in names.values():
            check_name(name)
    header = owner(headers, options.task) if options["class"] else {"name": None, "classes": []}
    classes = new_names(options["class"] or [], header["classes"], "class")
    from memtok.bundle import read_stored, write_stored
    from memtok.cli.sources import check_content
    from memtok.stored import renamed

    stored = read_stored(file)
    check_content(stored)
    written = renamed(stored, names, {header["name"]: classes})
    write_stored(written, out)
    rows = [["task", *pair] for pair in names.items()] + [["class", *pair] for pair in classes.items()]
    table(["", "was", "is"], rows)
    say(f"wrote {out}: {len(written)} {'task' if len(written) == 1 else 'tasks'}, {shown_bytes(out.stat().st_size)}")
    listed = {"tasks": [task.name for task in written], "renamed": names, "renamed_classes": classes}
    write_result(options.json, {"file": str(out), "bytes": out.stat().st_size, **listed})
    return 0


def new_names(words: Sequence[str], known: Sequence[str], what: str) -> dict[str, str]:
    """{old: new} of `OLD=NEW` words; a lone NEW is for the only one of `known`. Names may hold equals signs."""
    found: dict[str, str] = {}
    for word in words:
        old = next((name for name in sorted(known, key=len, reverse=True) if word.startswith(f"{name}=")), None)
        new = word.removeprefix(f"{old}=")
        if old is None and len(known) == len(words) == 1:
            old, new = known[0], word
        if old is None:
            listed = ", ".join(map(repr, known[:10])) + (", ..." if len(known) > 10 else "")
            raise UsageError(f"expected OLD=NEW with a {what} out of {listed}, found {word!r}; check the spelling")
        if old in found:
            raise UsageError(f"expected one new name for {old!r}, found {found[old]!r} and {new!r}; drop one")
        found[old] = new
    return found


def owner(headers: Sequence[dict[str, Any]], name: str | None) -> dict[str, Any]:
    """The header of the task whose classes are renamed."""
    found = [header for header in headers if name in (None, header["name"])]
    if len(found) != 1:
        listed = ", ".join(repr(header["name"]) for header in headers)
        raise UsageError(f"expected --task with one of {listed}, found {name or 'none'}; say whose classes they are")
    return found[0]
