"""The files of a table."""

from __future__ import annotations

from pathlib import Path

from memtok.files import write_csv, write_json, write_text
from memtok_experiments.markdown import to_markdown
from memtok_experiments.pictures import draw
from memtok_experiments.render import to_csv, to_json
from memtok_experiments.table import Table


def save(table: Table, folder: Path, name: str = "table2") -> list[Path]:
    """Writes the table as NAME.json, .csv, .md and, once something is tested, .png into `folder`; returns the paths."""
    paths = [folder / f"{name}.{ending}" for ending in ("json", "csv", "md", "png")]
    if not any(cell.tests for row in table.rows for cell in row.cells.values()):
        paths.pop()
    write_json(paths[0], to_json(table))
    write_csv(paths[1], to_csv(table))
    write_text(paths[2], to_markdown(table))
    for path in paths[3:]:
        draw(table, path)
    return paths
