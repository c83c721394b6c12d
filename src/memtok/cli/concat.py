"""`memtok concat`: several task files as one. The backbone is not loaded, only its fingerprint is compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from memtok.cli.errors import UsageError
from memtok.cli.options import Parser, add, add_files, add_json, require
from memtok.cli.output import check_outputs, say, table, write_result
from memtok.display import shown_bytes
from memtok.errors import MemtokError
from memtok.regimes import COMPOSABLE

if TYPE_CHECKING:
    from memtok.stored import StoredTask

USAGE = "FILE... --out FILE.safetensors"
EXAMPLES = """
  memtok concat pets.safetensors digits.safetensors --out all.safetensors
"""


def configure(parser: Parser) -> None:
    """Adds the options."""
    add_files(parser, "task files, with all that they extend; any order")
    add(parser, "--out", None, "FILE", "the composed file, FILE.safetensors")
    add_json(parser)


def run(options: Namespace) -> int:
    """Reads, checks, writes, prints."""
    require(options, "FILE", "--out")
    check_outputs(options.out, options.json, inputs=options.files)
    out = Path(options.out)
    if out.suffix != ".safetensors":
        raise UsageError(f"expected --out as FILE.safetensors, found {options.out!r}; change the ending")
    from memtok.bundle import write_stored
    from memtok.cli.sources import IN_FILES, check_content, check_same_preprocessing, read_files
    from memtok.stored import as_one_file

    found = as_one_file(read_files(options.files), IN_FILES)
    check_content(found)
    check_composable(found)
    check_same_preprocessing([stored.header for stored in found])
    write_stored(found, out)
    rows = [[stored.name, str(len(stored.header["classes"])), stored.where] for stored in found]
    table(["task", "classes", "from"], rows, right=["classes"])
    say(f"wrote {out}: {len(found)} tasks, {shown_bytes(out.stat().st_size)}")
    written = {"file": str(out), "bytes": out.stat().st_size, "tasks": [stored.name for stored in found]}
    write_result(options.json, written)
    return 0


def check_composable(tasks: Sequence[StoredTask]) -> None:
    """MemtokError unless all can be in one model: composable, and of one backbone."""
    first = tasks[0]
    for stored in tasks:
        header = stored.header
        if not header["composable"] and len(tasks) > 1:
            raise MemtokError(
                f"expected composable tasks, found {stored.name!r} of regime {header['regime']!r} in {stored.where}; "
                f"train it again with --regime {' or '.join(COMPOSABLE)}"
            )
        expected, found = first.header["backbone"], header["backbone"]
        if found["fingerprint"] != expected["fingerprint"]:
            raise MemtokError(
                f"expected tasks of one backbone, found {expected['source']} ({expected['fingerprint'][:19]}) in "
                f"{first.where} and {found['source']} ({found['fingerprint'][:19]}) in {stored.where}; use one"
            )
