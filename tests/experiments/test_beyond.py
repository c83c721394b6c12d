"""`memtok reproduce beyond`: what it trains, chooses and tests, that it goes on where it stopped, what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memtok import MemtokError
from memtok.backbone import Backbone
from memtok.data import open_data
from memtok_experiments.beyond.columns import COLUMNS, find_columns
from memtok_experiments.beyond.records import Found, TrialRecord, best_of
from memtok_experiments.beyond.rows import MADE, find_rows
from memtok_experiments.beyond.settings import BeyondSettings
from memtok_experiments.beyond.table import make_cells
from memtok_experiments.beyond.trials import Listener, Trial
from memtok_experiments.beyond.work import Work
from tests.tiny import bytes_of, tiny_backbone


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny_backbone()


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A confusion matrix takes longer to draw than the tiny models take to train."""
    monkeypatch.setattr("memtok.training.finishing.write_confusion", lambda *_: None)


def settings(out: Path, **changes: Any) -> BeyondSettings:
    given: dict[str, Any] = {
        "backbone": "tiny",
        "out": out,
        "rows": ("digits@1-per-class",),
        "columns": ("head", "ridge", "readout", "lora-qv"),
        "seeds": (0,),
        "rates": 1,
        "more_rates": 0,
        "lengths": (1,),
        "augment": "none",
        "steps": 2,
        "batch_size": 8,
        "test_images": 20,
        "device": "cpu",
        "workers": 0,
    }
    return BeyondSettings(**(given | changes))


class Recorder(Listener):
    """Keeps what was told; raises after `stop` trials, as if the work had been interrupted."""

    def __init__(self, stop: int | None = None) -> None:
        self.trained: list[str] = []
        self.asked: list[str] = []
        self.left_out: list[str] = []
        self.amounts: list[float] = []
        self.stop = stop

    def left(self, amount: float) -> None:
        self.amounts.append(amount)

    def done(self, row: str, trial: Trial, record: TrialRecord) -> None:
        self.trained.append(f"{row}/{trial.name}")
        if len(self.trained) == self.stop:
            raise KeyboardInterrupt

    def tested(self, row: str, trial: Trial, top1: float, images: int) -> None:
        self.asked.append(f"{row}/{trial.name}")

    def skipped(self, row: str, reason: str) -> None:
        self.left_out.append(row)


def outcome(found: list[Found]) -> dict[str, Any]:
    """All but times and the sizes of files, which hold times."""
    return {
        str((one.record.row, one.record.column, one.record.rate, one.record.varied, one.record.steps)): (
            replace(one.record, seconds=0.0, trunk_seconds=0.0, bytes=0),
            one.test,
        )
        for one in found
    }


@pytest.mark.slow
def test_every_column_on_two_rows(backbone: Backbone, tmp_path: Path) -> None:
    before, recorder = bytes_of(backbone), Recorder()
    asked = settings(tmp_path, rows=("digits@1-per-class", "digits@30"), columns=("all",), equal_time="readout")
    found = Work(asked, backbone, listener=recorder).run()
    assert bytes_of(backbone) == before
    cells = {(cell.row, cell.column): cell for cell in make_cells(found, 0) if not cell.timed}
    assert set(cells) == {(row, column) for row in asked.rows for column in COLUMNS}
    for row, images in zip(asked.rows, (10, 30), strict=True):
        records = [one.record for one in found if one.record.row == row]
        assert {record.train_images for record in records} == {images}
        assert {record.validation_images for record in records} == {100}
        own = {column: cells[row, column] for column in COLUMNS}
        assert all(cell.test_images == 20 and 0 <= cell.mean <= 1 and cell.bytes > 0 for cell in own.values())
        assert own["head"].cost < own["readout"].cost < 1 < own["memory-5"].cost < own["full"].cost
        assert own["full"].cost < own["memory-5-unmasked"].cost < own["vpt-deep"].cost
        assert own["readout"].cost < own["both"].cost < own["both-memory"].cost < own["full"].cost
        assert own["head"].parameters == 330
        assert own["readout"].parameters == 330 + 10 * 3 * 6 * 32
        assert own["lora-qv"].parameters == 330 + 2 * 2 * 8 * (32 + 32)
        assert own["lora-all"].parameters == 330 + 2 * 8 * (3 * 64 + 64 + 2 * (32 + 128))
        assert own["vpt-deep"].parameters == 330 + 2 * 10 * 32
        assert own["full"].compared.keys() == {"head"}
        assert own["readout"].compared.keys() == {"head", "full"}
    timed = {(cell.row, cell.column) for cell in make_cells(found, 0) if cell.timed}
    trained = [name for name, column in COLUMNS.items() if not column.fitted and name != "readout"]
    assert timed == {(row, column) for row in asked.rows for column in trained}
    assert recorder.amounts[-1] == 0
    again = Recorder()
    assert Work(asked, backbone, listener=again).run() == found
    assert again.trained == again.asked == []


@pytest.mark.twice
def test_work_that_was_interrupted_goes_on(backbone: Backbone, tmp_path: Path) -> None:
    whole = Recorder()
    wanted = outcome(Work(settings(tmp_path / "whole"), backbone, listener=whole).run())
    for stop in (1, 2):
        broken = settings(tmp_path / "broken")
        with pytest.raises(KeyboardInterrupt):
            Work(broken, backbone, listener=Recorder(stop)).run()
    rest = Recorder()
    assert outcome(Work(broken, backbone, listener=rest).run()) == wanted
    assert len(whole.trained) == 4
    assert len(rest.trained) == 1  # the others were done in the first two calls


def test_the_choice_is_made_with_the_first_seed_and_only_it_is_tested(backbone: Backbone, tmp_path: Path) -> None:
    recorder = Recorder()
    asked = settings(tmp_path, columns=("readout",), rates=3, seeds=(3, 1), augment=None, views=1)
    found = Work(asked, backbone, listener=recorder).run()
    first = [one.record for one in found if one.record.seed == 3]
    assert len(first) == 6  # three rates, images as they are and varied
    best = best_of(first)
    assert best.validation == max(record.validation for record in first)
    tested = [one.record for one in found if one.test is not None]
    assert [(one.rate, one.varied) for one in tested] == [(best.rate, best.varied)] * 2
    assert {one.seed for one in tested} == {3, 1}
    assert len(found) == 7
    (cell,) = make_cells(found, 3)
    assert cell.seeds == (1, 3)
    assert cell.tried == 7
    assert cell.std is not None
    kept = sorted(path.name for path in tmp_path.glob("runs/*/readout/*.safetensors"))
    assert len(kept) == 2  # the chosen ones
    assert not list(tmp_path.glob("traces/*"))


def test_further_rates_are_tried_while_the_best_is_the_outermost(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(best_at: float, folder: str) -> list[float]:
        """The rates that are tried where accuracy falls with the distance from a rate."""
        keep, found = TrialRecord.write, []

        def write(record: TrialRecord, path: Path) -> None:
            assert record.rate is not None
            found.append(record.rate)
            keep(replace(record, validation=1 / (1.1 + abs(np.log(record.rate / best_at)))), path)

        monkeypatch.setattr(TrialRecord, "write", write)
        Work(settings(tmp_path / folder, columns=("head",), more_rates=3), backbone).run()
        monkeypatch.setattr(TrialRecord, "write", keep)
        return found

    assert trained(0.033, "up") == [0.01, 0.033, 0.11]
    assert trained(0.001, "down") == [0.01, 0.033, 0.003, 0.0009]  # up, then down
    assert trained(10.0, "far") == [0.01, 0.033, 0.11, 0.37]


def test_of_equal_choices_the_cheaper_one_is_taken(backbone: Backbone, tmp_path: Path) -> None:
    record = Work(settings(tmp_path, columns=("ridge",)), backbone).run()[0].record
    longer, varied, plain = replace(record, steps=2), replace(record, varied=True), replace(record, rate=0.1)
    assert best_of([longer, varied, plain, replace(record, rate=0.2)]) == plain
    assert best_of([replace(longer, validation=1.0), plain]).steps == 2


def test_rows_draw_their_images_by_seed() -> None:
    source = open_data("digits")
    (few,), (some,), (every,) = (find_rows((name,)) for name in ("digits@5-per-class", "digits@200", "digits"))
    drawn = few.drawn(source, 0, 50)
    assert np.bincount(drawn.train.labels).tolist() == [5] * 10
    assert len(drawn.validation) == 100
    assert len(drawn.test) == 50
    other = few.drawn(source, 1, 50)
    assert other.train.identities != drawn.train.identities
    assert other.test.identities == drawn.test.identities
    assert set(drawn.train.identities) <= set(source.train.identities)
    assert len(some.drawn(source, 0, None).train) == 200
    assert every.drawn(source, 0, None).train is source.train
    assert len(find_rows(("full-size", "letters"))) == len(find_rows(("full-size",)))
    assert find_rows(("folder:a@b@3",))[0].data == "folder:a@b"


def test_data_that_are_not_there_are_told_of(backbone: Backbone, tmp_path: Path) -> None:
    recorder = Recorder()
    found = Work(settings(tmp_path, rows=("letters", "digits@30"), columns=("head",)), backbone, listener=recorder)
    assert {one.record.row for one in found.run()} == {"digits@30"}
    assert recorder.left_out == ["letters"]
    with pytest.raises(MemtokError, match="letters/train"):
        Work(settings(tmp_path, rows=("letters",)), backbone).run()


def test_made_folders_are_mirrored_as_their_kind_allows(tmp_path: Path) -> None:
    (row,) = find_rows(("letters@3",))
    assert row.drawn(open_data("digits"), 0, None).flip is MADE["letters"] is False
    (tmp_path / "letters" / "train").mkdir(parents=True)
    assert row.spec(tmp_path) == f"folder:{tmp_path / 'letters'}"


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"rows": ("digts",)}, "digts"),
        ({"columns": ("heads",)}, "heads"),
        ({"seeds": ()}, "seeds"),
        ({"lengths": (1, 1)}, "lengths"),
        ({"equal_time": "full"}, "equal_time"),
        ({"rates": 0}, "rates"),
        ({"views": 2}, "views"),
    ],
)
def test_settings_that_make_no_sense(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    with pytest.raises(MemtokError, match=word):
        settings(tmp_path, **changes)


def test_work_in_a_folder_keeps_its_settings_and_its_images(backbone: Backbone, tmp_path: Path) -> None:
    asked = settings(tmp_path, columns=("head",))
    Work(asked, backbone).run()
    for changes in ({"steps": 3}, {"seeds": (1,)}, {"test_images": 10}):
        with pytest.raises(MemtokError, match=next(iter(changes)).rstrip("s")):
            Work(settings(tmp_path, columns=("head",), **changes), backbone).run()
    with pytest.raises(MemtokError, match="backbone"):
        Work(asked, tiny_backbone(seed=1)).run()
    (path,) = tmp_path.glob("runs/*/head/*.json")
    record = TrialRecord.read(path)
    replace(record, content="sha256:0").write(path)
    with pytest.raises(MemtokError, match="images"):
        Work(asked, backbone).run()
    path.write_text(path.read_text().replace('"plain"', '"other"').replace("0.", "1."))
    with pytest.raises(MemtokError, match="damaged"):
        Work(asked, backbone).run()


def test_columns_by_name() -> None:
    assert find_columns(("full", "head")) == (COLUMNS["head"], COLUMNS["full"])
    assert find_columns(("all",)) == tuple(COLUMNS.values())
    assert all(column.rates for column in COLUMNS.values() if not column.fitted)
    assert COLUMNS["readout"].composes
    assert not COLUMNS["full"].composes
