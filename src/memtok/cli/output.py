"""Output of commands: tables on standard output, progress on standard error, plain text if they are redirected."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memtok.cli.errors import UsageError, arguments
from memtok.display import percent, text_table
from memtok.errors import MemtokError, printable
from memtok.files import is_stream, look_at, standard_descriptor, write_json

if TYPE_CHECKING:
    from memtok.metrics import Score

DATA_FOLDER = re.compile(r"^([^=]*=)?folder:")
RECALLS_SHOWN = 10  # classes
MOST_NAMED = 20  # of the images that are left out
RESULTS = ("json", "csv")  # the options that name a file for the result


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[str] = ()) -> None:
    """Prints rows under headings; the columns named in `right` are numbers and stand right-aligned."""
    print(text_table(columns, rows, right))


def say(text: str = "") -> None:
    """A line on standard output."""
    print(printable(text))


def note(text: str) -> None:
    """A line on standard error, for notes that are not part of the result."""
    print(f"memtok: note: {printable(text)}", file=sys.stderr)


def note_left_out(left_out: Sequence[tuple[str, str]]) -> None:
    """Notes what could not be read, (path, reason) each; of many only the first ones, as `--json` has them all."""
    for path, reason in left_out[:MOST_NAMED]:
        note(f"left out: {path} ({reason})")
    if len(left_out) > MOST_NAMED:
        note(f"left out: {len(left_out) - MOST_NAMED} more, which --json names")


def recall_words(score: Score) -> str:
    """The recall of each class, or of the worst ones where they are many; classes without images are left out."""
    seen = [(row.top1, row.name) for row in score.per_class if row.top1 is not None]
    shown = seen if len(seen) <= RECALLS_SHOWN else sorted(seen)[:RECALLS_SHOWN]
    what = "recall" if shown is seen else f"lowest recall of {len(seen):,} classes"
    return f"{what}: {', '.join(f'{name} {percent(share)}' for share, name in shown)}"


def write_result(path: str | None, result: Any) -> None:
    """Writes the result for `--json`."""
    if path is not None:
        write_json(path, result)


@contextmanager
def result_on_stdout(options: MutableMapping[str, Any]) -> Iterator[None]:
    """Writes the result to standard output if `--json` or `--csv` is `-` or /dev/stdout, and nothing else.

    options: of the command that runs in the block; everything that it prints goes to standard error. UsageError if both
    results are to go there.
    """
    asked = [name for name in RESULTS if is_standard_output(options.get(name))]
    if not asked:
        yield
        return
    if len(asked) > 1:
        raise UsageError("expected one result on standard output, found --json and --csv; name a file for one of them")
    stdout = sys.stdout
    with tempfile.TemporaryDirectory(prefix="memtok-") as folder, redirect_stdout(sys.stderr):
        result = Path(folder) / f"result.{asked[0]}"
        options[asked[0]] = str(result)
        try:
            yield
        finally:
            if result.exists():  # also where a check failed, which the exit code says
                stdout.flush()
                if hasattr(stdout, "buffer"):
                    stdout.buffer.write(result.read_bytes())
                else:  # of a notebook
                    stdout.write(result.read_text(encoding="utf-8", errors="backslashreplace"))
                stdout.flush()


def is_standard_output(path: str | None) -> bool:
    """Whether the path of a result means standard output."""
    if path is None or path == "-":
        return path == "-"
    try:
        return standard_descriptor(os.stat(path)) == 1
    except OSError:
        return False


def check_outputs(*paths: str | None, inputs: Iterable[str | None] = (), pictures: Iterable[str | None] = ()) -> None:
    """Raises for a result file that could not be written, or that would replace another file of the command.

    It is called before the work starts. inputs: files and folders that the command reads; no file in such a folder may
    be replaced. pictures: images, folders of them, and data sources such as NAME=folder:PATH; no image in or below them
    may be replaced.
    """
    read = {real(path) for path in inputs if path is not None}
    looked_at = {real(DATA_FOLDER.sub("", path)) for path in pictures if path is not None}
    written: set[Path] = set()
    files: list[Path] = []
    for path in (Path(path) for path in paths if path is not None):
        if path.is_dir():
            raise UsageError(f"expected a file name for the result, found the folder {path}; name a file in it")
        with arguments():
            status = look_at(path)
        if status is not None and is_stream(status):  # written into, not replaced
            if not os.access(path, os.W_OK):
                raise MemtokError(f"expected a place that can be written, found {path}; choose another")
            continue
        files.append(path)
        place = path.resolve()
        taken = place in read | looked_at or (path.is_file() and path.parent.resolve() in read)
        if taken or place in written or (path.is_file() and is_picture(path) and below(path, looked_at)):
            found = "the place of another result" if place in written and not taken else "a file that the command reads"
            raise UsageError(f"expected a file of its own for each result, found {path.name} as {found}; name another")
        written.add(place)
    for path in files:
        above = next(folder for folder in Path(os.path.realpath(path)).parents if folder.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise MemtokError(f"expected a folder that can be written for {path}, found {above}; choose another place")


def check_apart(data: Iterable[str], **folders: str | Path | None) -> None:
    """UsageError for a folder to write inside the folder of a data source, where it would count as a class.

    folders: by the name of their option, or None.
    """
    for spec in data:
        for name, folder in folders.items():
            if folder is None or not spec.startswith("folder:") or spec == "folder:":
                continue
            pictures, place = real(spec.removeprefix("folder:")), real(str(folder))
            if place == pictures or pictures in place.parents:
                flag = "--" + name.replace("_", "-")
                raise UsageError(f"expected {flag} outside the folder of images, found {folder} in it; name another")


def real(path: str) -> Path:
    """The resolved path of an input."""
    return Path(os.path.expanduser(path)).resolve()  # Path.expanduser raises for unknown users


def is_picture(path: Path) -> bool:
    """Whether a file is an image by its extension."""
    from memtok.data.images import IMAGE_EXTENSIONS

    return path.suffix.lower() in IMAGE_EXTENSIONS


def below(path: Path, folders: Iterable[Path]) -> bool:
    """Whether a file, or its target if it is a link, is in or below one of the folders."""
    above = {*(path.parent.resolve() / path.name).parents, *path.resolve().parents}
    return not above.isdisjoint(folders)


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A function (done, total) that updates a progress bar on standard error, or prints lines without a terminal."""
    from rich.console import Console

    from memtok.meter import Meter

    meter = Meter(Console(stderr=True), label, transient=True)

    def report(done: int, total: int) -> None:
        meter.move(done, total)
        meter.tick()

    try:
        yield report
    finally:
        meter.close()
