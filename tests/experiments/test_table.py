"""Tables of runs, against means, spreads and verdicts worked out by hand, and their forms."""

from __future__ import annotations

import csv
import io
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from memtok.errors import MemtokError
from memtok_experiments.columns import EVERY_COLUMN
from memtok_experiments.markdown import to_markdown
from memtok_experiments.orderings import Ordering, orderings
from memtok_experiments.records import RunRecord, Score
from memtok_experiments.render import to_console, to_csv, to_json
from memtok_experiments.saving import save
from memtok_experiments.table import Cell, Table, column_label, column_order, make_table
from tests.experiments.records import grid, run


def seeds_of(
    column: str, *top1: float, validation: float = 0.8, images: int = 10_000, **changes: Any
) -> list[RunRecord]:
    """A chosen and tested run per accuracy, seeds from 0."""
    return [
        run(
            column,
            seed=seed,
            test=Score(top1=value, images=images),
            validation=Score(top1=validation, images=1_000),
            **changes,
        )
        for seed, value in enumerate(top1)
    ]


def only_cell(table: Table) -> Cell:
    (row,) = table.rows
    (cell,) = row.cells.values()
    return cell


def statement(records: list[RunRecord], lower: str, upper: str) -> Ordering:
    (found,) = [one for one in orderings(make_table(records)) if (one.lower, one.upper) == (lower, upper)]
    return found


# Columns


def test_columns_stand_in_the_order_of_the_paper_whatever_the_order_of_the_runs() -> None:
    columns = [*EVERY_COLUMN, "memory-2"]
    random.Random(3).shuffle(columns)
    table = make_table(run(column) for column in columns)
    expected = [*EVERY_COLUMN]
    expected.insert(EVERY_COLUMN.index("memory-5"), "memory-2")
    assert list(table.columns) == list(table.rows[0].cells) == expected


def test_labels() -> None:
    assert [column_label(name) for name in ("full", "class", "memory-1", "memory-10")] == [
        "full",
        "head + class",
        "1 cell",
        "10 cells",
    ]
    assert column_label("class-unmasked") == "head + class, no mask"
    assert column_label("memory-5-unmasked") == "5 cells, no mask"
    assert column_label("additive-1") == "1 cell, additive"
    assert len({column_label(name) for name in EVERY_COLUMN}) == len(EVERY_COLUMN)


@pytest.mark.parametrize("column", ["memory", "memory-0", "full-unmasked", "head-5", "Memory-5"])
def test_unknown_columns_are_refused(column: str) -> None:
    with pytest.raises(MemtokError, match=column) as error:
        column_order(column)
    assert error.value.argument == "columns"
    record = run()
    object.__setattr__(record, "column", column)
    with pytest.raises(MemtokError) as error:
        make_table([record])
    assert error.value.argument == "columns"


# Cells


def test_mean_and_standard_deviation_over_seeds() -> None:
    cell = only_cell(make_table(seeds_of("memory-5", 0.80, 0.81, 0.85)))
    assert cell.mean == pytest.approx(0.82)
    assert cell.std == pytest.approx(math.sqrt((0.02**2 + 0.01**2 + 0.03**2) / 2))
    assert cell.images == 10_000
    assert [test.seed for test in cell.tests] == [0, 1, 2]


def test_one_seed_has_no_spread_and_no_test_no_mean() -> None:
    cell = only_cell(make_table(seeds_of("memory-5", 0.8)))
    assert (cell.mean, cell.std) == (0.8, None)
    untested = only_cell(make_table([run(chosen=False)]))
    assert (untested.mean, untested.std, untested.images, untested.validation) == (None, None, None, None)
    assert untested.chosen_rates == ()


def test_rates_are_compared_over_the_seeds_that_all_have() -> None:
    runs = [
        run(chosen=False, learning_rate=0.3, validation=Score(top1=0.70, images=10)),
        run(learning_rate=0.1, validation=Score(top1=0.75, images=10)),
        run(learning_rate=0.1, seed=1, validation=Score(top1=0.65, images=10)),
    ]
    cell = only_cell(make_table(runs))
    assert [(rate.learning_rate, rate.validation, rate.seeds) for rate in cell.rates] == [
        (0.1, 0.75, (0, 1)),
        (0.3, 0.70, (0,)),
    ]
    assert cell.chosen_rates == (0.1,)
    assert cell.validation == pytest.approx(0.70)  # of both chosen runs
    assert cell.seconds == pytest.approx(3 * 120.5)


def test_top5_is_known_only_if_every_seed_counted_it() -> None:
    both = [run(seed=seed, test=Score(top1=0.5, top5=top5, images=10)) for seed, top5 in ((0, 0.8), (1, 0.9))]
    assert only_cell(make_table(both)).top5 == pytest.approx(0.85)
    assert only_cell(make_table([both[0], run(seed=1, test=Score(top1=0.5, images=10))])).top5 is None


def test_other_settings_are_rows_of_their_own() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"data": "mnist"},
        {"backbone": "small"},
        {"image_size": (56, 56)},
        {"steps": 100},
        {"batch_size": 64},
        {"recipe": "default"},
        {"split": {"digest": "sha256:other"}},
        {"fingerprint": "sha256:other"},
    ]
    table = make_table(run(**change) for change in changes)
    assert len(table.rows) == len(changes)
    assert [row.data for row in table.rows][:2] == ["cifar100", "mnist"]


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([], "at least one trained run"),
        ([run(), run()], "one run of rate 0.1 and seed 0 for models/dinov2-small on cifar100, memory-5, found two"),
        ([run(), run(learning_rate=0.3)], "one chosen rate of seed 0 .* found 0.1 and 0.3"),
        ([*seeds_of("head", 0.5), *seeds_of("head", 0.5, 0.5, images=9)[1:]], "found 9 and 10000 images"),
    ],
)
def test_runs_that_do_not_fit_are_refused(runs: list[RunRecord], words: str) -> None:
    with pytest.raises(MemtokError, match=words):
        make_table(runs)


# Orderings


def test_a_clear_difference_holds_and_its_reverse_does_not() -> None:
    clear = [*seeds_of("head", 0.80, 0.80), *seeds_of("class", 0.90, 0.90)]
    found = statement(clear, "head", "class")
    assert (found.verdict, found.statement) == ("holds", "head < head + class")
    assert found.difference == pytest.approx(10.0)
    # No spread over seeds, so only the test images count: p (1 - p) / n of both, with one more right and one wrong.
    variance = sum((k + 1) / 10_002 * (1 - (k + 1) / 10_002) / 10_000 for k in (8_000, 9_000))
    assert found.error == pytest.approx(100 * math.sqrt(variance))
    swapped = [*seeds_of("head", 0.90, 0.90), *seeds_of("class", 0.80, 0.80)]
    assert statement(swapped, "head", "class").verdict == "does not hold"


def test_a_difference_within_the_spread_over_seeds_is_noise() -> None:
    # 1 point apart; the seeds of both spread by 2.8 points, so the standard error is 2.8 (2 cells, 2 seeds each).
    found = statement([*seeds_of("head", 0.80, 0.84), *seeds_of("class", 0.81, 0.85)], "head", "class")
    assert found.verdict == "within noise"
    assert found.error == pytest.approx(2.83, abs=0.06)


def test_few_test_images_make_noise_of_a_difference_without_spread() -> None:
    many = [*seeds_of("head", 0.80, 0.80), *seeds_of("class", 0.83, 0.83)]
    few = [*seeds_of("head", 0.80, 0.80, images=100), *seeds_of("class", 0.83, 0.83, images=100)]
    assert statement(many, "head", "class").verdict == "holds"
    assert statement(few, "head", "class").verdict == "within noise"


def test_a_lucky_pair_of_seeds_takes_the_spread_of_its_row() -> None:
    alone = [*seeds_of("head", 0.80, 0.80), *seeds_of("class", 0.82, 0.82)]
    spread = [*alone, *seeds_of("memory-1", 0.80, 0.90)]
    assert statement(alone, "head", "class").verdict == "holds"
    assert statement(spread, "head", "class").verdict == "within noise"


def test_single_seeds_are_said_to_lack_the_spread() -> None:
    found = statement([*seeds_of("head", 0.80), *seeds_of("class", 0.90)], "head", "class")
    assert (found.seeds, found.spread_known) == (1, False)
    assert "comes from the test images alone" in to_markdown(make_table(seeds_of("head", 0.8) + seeds_of("class", 0.9)))


def test_the_best_memory_is_chosen_on_the_validation_part_not_on_the_test() -> None:
    records = [
        *seeds_of("head", 0.70, 0.70),
        *seeds_of("memory-1", 0.95, 0.95, validation=0.80),
        *seeds_of("memory-5", 0.80, 0.80, validation=0.90),
        *seeds_of("memory-10", 0.80, 0.80, validation=0.90),
    ]
    table = make_table(records)
    assert ("head", "memory-5") in {(found.lower, found.upper) for found in orderings(table)}
    assert not {"memory-10", "memory-1"} & {found.upper for found in orderings(table)}


@pytest.mark.parametrize(
    ("memory", "verdict"), [(0.895, "holds"), (0.92, "holds"), (0.88, "within noise"), (0.85, "does not hold")]
)
def test_memory_close_to_full(memory: float, verdict: str) -> None:
    found = statement([*seeds_of("full", 0.90, 0.90), *seeds_of("memory-5", memory, memory)], "memory-5", "full")
    assert found.verdict == verdict
    assert found.statement == "5 cells at most 2 points below full"


def test_what_close_means_can_be_said() -> None:
    records = [*seeds_of("full", 0.90, 0.90), *seeds_of("memory-5", 0.85, 0.85)]
    (found,) = orderings(make_table(records, close=10))
    assert (found.verdict, found.margin) == ("holds", 10)


def test_the_papers_own_figures_are_asked_the_same() -> None:
    records = [
        run(column, data=data) for column in ("full", "head", "class", "memory-5") for data in ("sun397", "digits")
    ]
    records += [run(column, data="inaturalist2017") for column in ("full", "head", "class", "memory-5")]
    said = {(found.row.data, found.lower, found.upper): found.paper for found in orderings(make_table(records))}
    assert said["sun397", "head", "class"] is True
    assert said["sun397", "memory-5", "full"] is True  # 76.8 and 76.9
    assert said["inaturalist2017", "memory-5", "full"] is False  # 50.1 and 54.0
    assert said["digits", "head", "class"] is None


def test_with_and_without_mask_are_compared_among_themselves() -> None:
    pairs = [(found.lower, found.upper) for found in orderings(make_table(grid(seeds=2)))]
    assert ("head", "class-unmasked") in pairs
    assert ("class-unmasked", "memory-1-unmasked") in pairs
    assert not any("unmasked" in lower and "unmasked" not in upper for lower, upper in pairs if upper != "full")


def test_alternatives_are_compared_with_memory_of_as_many_cells() -> None:
    columns = ("memory-5", "memory-5-unmasked", "memory-1", "propagated-5", "additive-5", "propagated-3")
    pairs = {(found.lower, found.upper) for found in orderings(make_table(grid(columns=columns[:-1])))}
    assert {("propagated-5", "memory-5-unmasked"), ("additive-5", "memory-5-unmasked")} <= pairs
    masked_only = make_table(
        [*seeds_of("memory-5", 0.8), *seeds_of("propagated-5", 0.7), *seeds_of("propagated-3", 0.7)]
    )
    assert [(found.lower, found.upper) for found in orderings(masked_only)] == [("propagated-5", "memory-5")]


# Forms


def test_json_is_plain_and_in_shares() -> None:
    value = json.loads(json.dumps(to_json(make_table(grid())), allow_nan=False))
    (row,) = value["rows"]
    cell = row["cells"]["memory-1"]
    assert cell["published"] == {"paper": 0.909, "reproduction": 0.6408}
    assert 0 <= cell["mean"] <= 1
    assert 0 < cell["std"] < 0.02
    assert [len(cell["rates"]), cell["chosen_rates"], len(cell["tests"])] == [3, [0.1], 3]
    assert row["image_size"] == [98, 98]
    assert {found["verdict"] for found in row["orderings"]} <= {"holds", "does not hold", "within noise"}
    assert value["versions"] == {"memtok": "0.1.0", "torch": "2.15.0"}


def test_csv_has_a_line_per_cell() -> None:
    table = make_table(grid() + grid("digits", seeds=1, columns=("head",)) + [run("head", data="mnist", chosen=False)])
    lines = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert len(lines) == len(EVERY_COLUMN) + 2
    first = table.rows[0].cells["full"]
    assert float(lines[0]["top1"]) == first.mean
    assert (lines[0]["paper"], lines[0]["reproduction"]) == ("0.918", "")
    assert (lines[-2]["top1_std"], lines[-1]["top1"], lines[-1]["seeds"]) == ("", "", "0")


def test_markdown_shows_both_and_stays_within_its_cells() -> None:
    records = [
        *seeds_of("head", 0.8, 0.81),
        *seeds_of("class", 0.85),
        *seeds_of("memory-1", 0.9, 0.9, data="folder:a|b\nc"),
    ]
    text = to_markdown(make_table(records))
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert all(len({line.replace("\\|", "").count("|") for line in lines}) == 1 for lines in tables)
    assert "| cifar100 | 80.5 ± 0.7 (2) | 85.0 (1) |  |" in text
    assert "| *paper* | *85.8* | *88.6* | *90.9* |" in text
    assert "| *reproduction* |  |  | *64.1* |" in text
    assert "| folder:a\\|b c |" in text
    assert "backbone" not in tables[0][0]  # there is only one


def test_markdown_names_several_backbones_and_unfinished_cells() -> None:
    text = to_markdown(make_table([*seeds_of("head", 0.8), run("head", backbone="small", chosen=False)]))
    assert "| cifar100 | models/dinov2-small | 80.0 |" in text
    assert "| cifar100 | small | – |" in text
    assert "One seed each" in text


def test_markdown_marks_the_chosen_rate_and_what_diverged() -> None:
    runs = [run(), run(learning_rate=10.0, chosen=False, diverged=True, validation=Score(top1=0.0, images=10))]
    assert "**0.1: 80.0** · 10: 0.0 (diverged)" in to_markdown(make_table(runs))


def test_console_has_a_table_per_row_and_the_orderings() -> None:
    blocks = to_console(make_table(grid() + grid("mnist")))
    assert [block[0].split(" with ")[0] for block in blocks[:2]] == ["cifar100", "mnist"]
    for _, headings, lines, right in blocks:
        assert all(len(line) == len(headings) for line in lines)
        assert set(right) <= set(headings)
    assert "paper %" in blocks[0][1]
    assert "paper %" not in blocks[1][1]  # nothing is published on MNIST
    assert blocks[0][2][3][-2:] == ["90.9", "64.1"]


def test_saved_files(tmp_path: Path) -> None:
    table = make_table(grid(seeds=2, columns=("head", "memory-1")))
    paths = save(table, tmp_path / "results", "table2")
    assert [path.name for path in paths] == ["table2.json", "table2.csv", "table2.md", "table2.png"]
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == sorted(path.name for path in paths)
    assert json.loads(paths[0].read_text()) == json.loads(json.dumps(to_json(table)))
    assert paths[2].read_text() == to_markdown(table)
    assert paths[3].read_bytes().startswith(b"\x89PNG")


def test_a_table_without_tests_is_saved_without_a_picture(tmp_path: Path) -> None:
    paths = save(make_table([run("head", data="mnist", chosen=False)]), tmp_path)
    assert [path.suffix for path in paths] == [".json", ".csv", ".md"]
