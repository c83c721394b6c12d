"""Numbers and tables for people."""

from __future__ import annotations

import pytest

from memtok.display import counted, duration, markdown_table, percent, shown_bytes, text_table


def test_shares() -> None:
    assert (percent(0.87654), percent(0.87654, 1), percent(0.87654, 0, "")) == ("87.65 %", "87.7 %", "88")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (2304, "2.3 kB"),
        (20_676, "20.7 kB"),
        (924_672, "925 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (2_431_892, "2.43 MB"),
        (31 * 10**9, "31 GB"),
        (4 * 10**15, "4,000 TB"),
    ],
)
def test_bytes(count: int, text: str) -> None:
    assert shown_bytes(count) == text


def test_durations() -> None:
    assert [duration(seconds) for seconds in (5, 100, 3600, 6000)] == ["5 s", "2 min", "60 min", "1 h 40 min"]


def test_counts() -> None:
    assert [counted(number, "image") for number in (0, 1, 1234)] == ["0 images", "1 image", "1,234 images"]


def test_a_table_is_aligned_and_keeps_every_row_in_a_line() -> None:
    lines = text_table(["name", "images"], [["a\nb", 5], ["long name", "1,234"]], right=["images"]).splitlines()
    assert lines == ["name       images", "a\\nb            5", "long name   1,234"]


def test_no_headings_where_all_are_empty() -> None:
    assert text_table(["", ""], [["a", "b"]]).split() == ["a", "b"]


def test_markdown_keeps_cells_in_their_columns() -> None:
    lines = list(markdown_table(["name", "images"], [["a|b", "5"], ["<i>\nx", "6"]], right=["images"]))
    assert lines == ["| name | images |", "|---|---:|", "| a\\|b | 5 |", "| &lt;i> x | 6 |"]
