"""Numbers and tables for people: shares, bytes, durations, counts; a table as text for a terminal and as Markdown."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence

from memtok.errors import printable

PIPED_WIDTH = 100_000  # columns: a pipe has no edge at which to break lines


def percent(share: float, digits: int = 2, unit: str = " %") -> str:
    """0.8765 as 87.65 %."""
    return f"{100 * share:.{digits}f}{unit}"


def shown_bytes(count: int) -> str:
    """A size in powers of 1,000: 123 B, 12.3 kB, 4.56 MB."""
    if count < 1000:
        return f"{count} B"
    value = float(count)
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        if value < 999.5:
            return f"{value:.3g} {unit}"
    return f"{value:,.0f} TB"


def duration(seconds: float) -> str:
    """1 h 20 min, 12 min, 40 s."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def counted(number: int, noun: str) -> str:
    """1 image, 1,234 images."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def text_table(columns: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[str] = ()) -> str:
    """Rows under headings for standard output, which is a terminal or not; no headings where all are empty.

    right: the columns that hold numbers and are right-aligned. A line end in a cell becomes an escape.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    terminal = sys.stdout.isatty()
    text = io.StringIO()  # rich itself leaves the process when a pipe is closed
    console = Console(file=text, force_terminal=terminal, width=None if terminal else PIPED_WIDTH, soft_wrap=True)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_header=any(columns))
    for name in columns:
        table.add_column(Text(name), justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(str(cell))) for cell in row))
    console.print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def markdown_text(text: str) -> str:
    """A text on one line, without characters that would end a cell or begin HTML."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> Iterator[str]:
    """The lines of a table in GitHub's Markdown; the columns named in `right` hold numbers."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(map(markdown_text, cells))} |"

    yield line(columns)
    yield "|" + "".join("---:|" if name in right else "---|" for name in columns)
    for row in rows:
        yield line(row)
