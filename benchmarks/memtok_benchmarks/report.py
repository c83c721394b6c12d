"""A run of the benchmarks as JSON, as Markdown and on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memtok.display import markdown_table
from memtok.files import write_json, write_text
from memtok_benchmarks.lines import Entry, Line, RowResult
from memtok_benchmarks.sizes import Sizes

FORMAT_VERSION = 1
COLUMNS = ("what", "memtok", "peers", "must", "aim", "reached")


@dataclass
class Report:
    """The rows of one run, in order, with the machine, the sizes and the floors."""

    machine: dict[str, Any]
    sizes: Sizes
    floors: dict[str, float]
    command: str
    rows: dict[str, RowResult] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Everything that was measured, every time in seconds."""
        return {
            "format_version": FORMAT_VERSION,
            "command": self.command,
            "machine": self.machine,
            "sizes": self.sizes.to_json(),
            "floors": self.floors,
            "rows": [
                {
                    "row": name,
                    "seconds": round(self.seconds[name], 3),
                    "lines": [line.to_json() for line in result.lines],
                    "tables": [vars(table) for table in result.tables],
                    "notes": list(result.notes),
                    "data": result.data,
                }
                for name, result in self.rows.items()
            ],
        }

    def lines(self) -> list[Line]:
        """The lines of all rows."""
        return [line for result in self.rows.values() for line in result.lines]

    def to_markdown(self) -> str:
        """The main table, the machine, notes, the floors and the further tables."""
        parts = [
            "# Results of `memtok bench`",
            "",
            f"Written by `{self.command}`. What each line means: docs/performance.md.",
        ]
        parts += ["", *markdown_table(COLUMNS, [cells(line) for line in self.lines()])]
        notes = [note for result in self.rows.values() for note in result.notes]
        parts += ["", *(f"- {note}" for note in notes)]
        parts += ["", "## Machine and sizes", "", *markdown_table(("", ""), list(facts(self)))]
        floors = [(name, f"{value:.4g}") for name, value in self.floors.items()]
        parts += ["", "## Floors, over the trunk's own pass", ""]
        parts += markdown_table(("what", "floor"), floors, right=("floor",))
        for table in (table for result in self.rows.values() for table in result.tables):
            parts += ["", f"## {table.title}", "", *markdown_table(table.columns, table.rows, right=table.columns[1:])]
        return "\n".join(parts) + "\n"

    def save(self, folder: str | Path) -> list[Path]:
        """Writes results.json and results.md, and growth.png where growth was measured; atomically, one by one."""
        into = Path(folder)
        written = [into / "results.json", into / "results.md"]
        write_json(written[0], self.to_json())
        write_text(written[1], self.to_markdown())
        if "growth" in self.rows:
            from memtok_benchmarks.pictures import draw_growth

            written.append(into / "growth.png")
            draw_growth(self.rows["growth"].data["points"], written[-1])
        return written


def cells(line: Line) -> tuple[str, ...]:
    """A line as it is shown."""
    return (
        line.what,
        shown(line.memtok, line, named=False),
        "; ".join(shown(peer, line, named=True) for peer in line.peers) or "-",
        bound(line.must, line),
        bound(line.aim, line),
        line.reached or "-",
    )


def shown(entry: Entry, line: Line, *, named: bool) -> str:
    """The number of a contender, with its name and note."""
    value = "-" if entry.value is None else f"{entry.value:.{line.digits}f}"
    text = f"{entry.label} {value}" if named else value
    return f"{text} ({entry.note})" if entry.note else text


def bound(value: float | None, line: Line) -> str:
    """A bound as text: a number, or 1 / n for small ones."""
    if value is None:
        return "-"
    sign = "≥ " if line.least else "≤ "
    return sign + (
        f"1 / {1 / value:.0f}" if 0 < value < 0.2 and abs(1 / value - round(1 / value)) < 1e-9 else f"{value:g}"
    )


def facts(report: Report) -> Iterator[tuple[str, str]]:
    """Machine and sizes, name and value."""
    for name, value in {**report.machine, **report.sizes.to_json()}.items():
        if isinstance(value, Mapping):
            for inner, found in value.items():
                yield inner, str(found or "not installed")
        elif isinstance(value, list):
            yield name, ", ".join(map(str, value))
        elif value is not None:
            yield name, str(value)


def console_tables(result: RowResult) -> Iterator[tuple[str, Sequence[str], Sequence[Sequence[str]], Sequence[str]]]:
    """Title, columns, rows and right-aligned columns of what a row prints on the terminal."""
    if result.lines:
        yield "", COLUMNS, [cells(line) for line in result.lines], ()
    for table in result.tables:
        yield table.title, table.columns, table.rows, table.columns[1:]
