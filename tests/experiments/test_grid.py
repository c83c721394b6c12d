"""The grid: what it trains, chooses and tests, that it goes on where it stopped, and what it refuses."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import memtok
from memtok.backbone import Backbone
from memtok.data import DataSource, open_data
from memtok.files import write_json
from memtok.folders import check_fixed, locked, slug
from memtok.training.trainer import Trainer
from memtok_experiments.columns import EVERY_COLUMN, find_column, find_columns
from memtok_experiments.grid import Grid
from memtok_experiments.records import RunRecord, read_record, write_record
from memtok_experiments.records import Score as RecordedScore
from memtok_experiments.runs import Listener, Run
from memtok_experiments.settings import GridSettings
from tests.tiny import tiny_backbone
from tests.training.helpers import Recorder as TrainingRecorder
from tests.training.helpers import fingerprint


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny_backbone()


@pytest.fixture
def two_digits(monkeypatch: pytest.MonkeyPatch) -> DataSource:
    """The digits 0 and 1 take the place of all data sets of a grid."""
    data = open_data("digits").only(["0", "1"])
    monkeypatch.setattr(Grid, "source", lambda self, spec: data)
    return data


def settings(out: Path, **changes: Any) -> GridSettings:
    given: dict[str, Any] = {
        "backbone": "tiny",
        "data": ("digits",),
        "out": out,
        "columns": ("head", "memory-1"),
        "recipe": "default",
        "steps": 4,
        "batch_size": 16,
        "learning_rates": (0.01, 0.05),
        "full_learning_rates": (1e-4, 1e-3),
        "augment": "none",
        "device": "cpu",
        "workers": 0,
    }
    return GridSettings(**(given | changes))


class Recorder(Listener):
    """Keeps what was trained and tested; raises after `stop` trainings, as if the grid had been interrupted."""

    def __init__(self, stop: int | None = None) -> None:
        self.trained: list[list[str]] = []
        self.asked: list[list[str]] = []
        self.amounts: list[float] = []
        self.stop = stop

    def left(self, amount: float) -> None:
        self.amounts.append(amount)

    def done(self, data: str, runs: Any, records: Any) -> None:
        self.trained.append([str(run) for run in runs])
        if len(self.trained) == self.stop:
            raise KeyboardInterrupt

    def tested(self, data: str, runs: Any, records: Any) -> None:
        self.asked.append([str(run) for run in runs])


def by_run(records: list[RunRecord]) -> dict[tuple[str, float, int], RunRecord]:
    return {(record.column, record.learning_rate, record.seed): record for record in records}


@pytest.mark.slow
def test_every_column_is_trained_chosen_and_tested(backbone: Backbone, two_digits: DataSource, tmp_path: Path) -> None:
    before = fingerprint(backbone)
    recorder = Recorder()
    asked = settings(tmp_path, columns=EVERY_COLUMN, seeds=(0, 1), steps=2)
    records = by_run(Grid(asked, backbone, listener=recorder).run())
    assert fingerprint(backbone) == before
    for name in EVERY_COLUMN:
        column = find_column(name)
        found = [record for record in records.values() if record.column == name]
        assert len(found) == 3, name  # two rates with the first seed, the chosen one with the second
        first = [record for record in found if record.seed == 0]
        best = min(first, key=lambda record: (-record.validation.top1, record.learning_rate))
        for record in found:
            chosen = record.learning_rate == best.learning_rate
            assert (record.chosen, record.test is not None) == (chosen, chosen), record
            model = (
                tmp_path / "runs" / "digits" / name / f"rate-{record.learning_rate:g}-seed-{record.seed}.safetensors"
            )
            assert model.exists() is (chosen and name != "full")
            assert record.regime == column.regime
            assert record.together == (12 if column.composable and record.seed == 0 else 6 if column.composable else 1)
    assert recorder.amounts[-1] == 0
    assert recorder.amounts == sorted(recorder.amounts, reverse=True)


@pytest.mark.twice
def test_a_run_is_what_train_gives_alone(backbone: Backbone, two_digits: DataSource, tmp_path: Path) -> None:
    records = by_run(Grid(settings(tmp_path), backbone).run())
    for (column, rate, seed), record in records.items():
        task = memtok.training.create(
            backbone,
            regime="head" if column == "head" else "memory",
            name="alone",
            classes=two_digits.classes,
            memory=None if column == "head" else 1,
            seed=seed,
        )
        alone = memtok.train(
            task,
            two_digits,
            steps=4,
            batch_size=16,
            learning_rate=rate,
            seed=seed,
            augment="none",
            device="cpu",
            validate_every=4,
        )
        assert alone.final_accuracy == pytest.approx(record.validation.top1)
        if record.test:
            table = memtok.evaluate(memtok.MemoryViT(backbone, [alone.task]), two_digits)
            assert table.tasks["alone"].top1 == pytest.approx(record.test.top1)


@pytest.mark.twice
def test_goes_on_where_it_stopped(backbone: Backbone, two_digits: DataSource, tmp_path: Path) -> None:
    asked = settings(tmp_path / "a", columns=("head", "memory-1", "class-unmasked"), seeds=(0, 1), together=2)
    straight = Recorder()
    whole = by_run(Grid(asked, backbone, listener=straight).run())
    again = settings(tmp_path / "b", columns=asked.columns, seeds=(0, 1), together=2)
    first, second, third = Recorder(stop=2), Recorder(), Recorder()
    with pytest.raises(KeyboardInterrupt):
        Grid(again, backbone, listener=first).run()
    resumed = by_run(Grid(again, backbone, listener=second).run())
    assert first.trained + second.trained == straight.trained
    for key, record in whole.items():
        assert resumed[key].test == record.test, key
        assert resumed[key].validation == record.validation, key
    Grid(again, backbone, listener=third).run()
    assert (third.trained, third.asked) == ([], [])  # all is there


@pytest.mark.twice
def test_a_part_can_be_added_later(backbone: Backbone, two_digits: DataSource, tmp_path: Path) -> None:
    Grid(settings(tmp_path, columns=("head",)), backbone).run()
    recorder = Recorder()
    records = Grid(settings(tmp_path, columns=("memory-1",), seeds=(0, 3)), backbone, listener=recorder).run()
    assert {record.column for record in records} == {"head", "memory-1"}
    assert all("head" not in run for runs in recorder.trained for run in runs)


def test_the_rate_is_chosen_on_validation_and_of_equal_ones_the_smaller(
    backbone: Backbone, two_digits: DataSource, tmp_path: Path
) -> None:
    made = Grid(settings(tmp_path, columns=("head",), learning_rates=(0.01, 0.02, 0.05)), backbone)
    made.run()
    column = find_column("head")
    for accuracies, chosen in (((0.5, 0.9, 0.9), 0.02), ((0.7, 0.6, 0.5), 0.01), ((0.1, 0.2, 0.3), 0.05)):
        for rate, accuracy in zip((0.01, 0.02, 0.05), accuracies, strict=True):
            path = made.on("digits").path(Run(column, rate, 0))
            record = read_record(path).to_dict() | {"validation": {"top1": accuracy, "images": 10}}
            write_record(path, RunRecord.from_dict(record))
        assert made.on("digits").chosen_rate(column) == chosen


def test_a_rate_that_is_added_later_can_take_the_choice(
    backbone: Backbone, two_digits: DataSource, tmp_path: Path
) -> None:
    Grid(settings(tmp_path, columns=("head",), learning_rates=(1e-9,)), backbone).run()
    records = by_run(Grid(settings(tmp_path, columns=("head",), learning_rates=(1e-9, 0.05)), backbone).run())
    old, new = records["head", 1e-9, 0], records["head", 0.05, 0]
    assert old.validation.top1 < new.validation.top1
    assert (old.chosen, old.test, new.chosen) == (False, None, True)
    assert new.test is not None


def test_diverging_rates_are_never_chosen(backbone: Backbone, two_digits: DataSource, tmp_path: Path) -> None:
    asked = settings(
        tmp_path,
        columns=("head", "memory-1", "class-unmasked"),
        recipe="paper",
        learning_rates=(0.01, 1e38),
    )
    records = by_run(Grid(asked, backbone).run())
    for column in ("head", "memory-1", "class-unmasked"):
        assert records[column, 1e38, 0].diverged, column
        assert records[column, 1e38, 0].validation.top1 == 0
        assert records[column, 0.01, 0].chosen, column
    with pytest.raises(memtok.MemtokError, match="all of 1e\\+38 diverge"):
        Grid(settings(tmp_path / "b", recipe="paper", learning_rates=(1e38,)), backbone).run()


def test_a_later_seed_that_diverges_counts_as_zero(backbone: Backbone, two_digits: DataSource, tmp_path: Path) -> None:
    made = Grid(settings(tmp_path, columns=("head",), learning_rates=(0.01,)), backbone)
    made.run()
    run = Run(find_column("head"), 0.01, 5)
    first = read_record(made.on("digits").path(Run(run.column, 0.01, 0))).to_dict()
    lost = first | {
        "seed": 5,
        "chosen": False,
        "test": None,
        "diverged": True,
        "validation": {"top1": 0.0, "images": 9},
    }
    write_record(made.on("digits").path(run), RunRecord.from_dict(lost))
    asked = Grid(settings(tmp_path, columns=("head",), learning_rates=(0.01,), seeds=(0, 5)), backbone)
    record = by_run(asked.run())["head", 0.01, 5]
    assert record.test is not None
    assert (record.test.top1, record.test.images) == (0.0, len(two_digits.test))
    with pytest.raises(memtok.MemtokError, match="seed 5 diverged"):
        asked.on("digits").task(run.column, 5)


@pytest.mark.twice
def test_fewer_images_are_always_the_same(backbone: Backbone, two_digits: DataSource, tmp_path: Path) -> None:
    made = Grid(settings(tmp_path, test_images=20, validation_images=10), backbone)
    records = made.run()
    assert {record.test.images for record in records if record.test} == {20}
    assert {record.validation.images for record in records} == {10}
    assert (
        made.on("digits").test_images.identities
        == Grid(settings(tmp_path, test_images=20), backbone).on("digits").test_images.identities
    )


def test_another_setting_in_one_folder_is_refused(backbone: Backbone, two_digits: DataSource, tmp_path: Path) -> None:
    Grid(settings(tmp_path), backbone).run()
    for changes, words in (
        ({"steps": 5}, r"steps 4, found 5"),
        ({"seeds": (1, 0)}, "first_seed 0, found 1"),
        ({"test_images": 7}, "no test_images, found 7"),
    ):
        with pytest.raises(memtok.MemtokError, match=words):
            Grid(settings(tmp_path, **changes), backbone).run()
    with pytest.raises(memtok.MemtokError, match="backbone"):
        Grid(settings(tmp_path), tiny_backbone(seed=9)).run()
    (tmp_path / "grid.json").write_text("{")
    with pytest.raises(memtok.MemtokError, match="settings of a grid"):
        Grid(settings(tmp_path), backbone).run()


@pytest.mark.parametrize("column", ["memory-1", "full"])
def test_another_preprocessing_in_one_folder_is_refused(
    backbone: Backbone, two_digits: DataSource, tmp_path: Path, column: str
) -> None:
    changes = {"columns": (column,), "learning_rates": (0.01,), "full_learning_rates": (1e-4,), "keep_models": True}
    Grid(settings(tmp_path, **changes), backbone).run()
    path = tmp_path / "grid.json"
    written = json.loads(path.read_text())
    other = copy.deepcopy(backbone)
    other.preprocessing = replace(backbone.preprocessing, std=(0.25, 0.5, 0.5))
    assert other.fingerprint == backbone.fingerprint
    words = r"preprocessing.std \[0.5, 0.5, 0.5\], found \[0.25, 0.5, 0.5\]"
    with pytest.raises(memtok.MemtokError, match=words):
        Grid(settings(tmp_path, **changes), other).run()
    # Settings of a time when they did not tell the preprocessing: what was trained does.
    path.write_text(json.dumps({name: value for name, value in written.items() if name != "preprocessing"}))
    with pytest.raises(memtok.MemtokError, match=r"which this grid trained, std \[0.5, 0.5, 0.5\], found"):
        Grid(settings(tmp_path, **changes), other).run()
    Grid(settings(tmp_path, **changes), backbone).run()
    assert json.loads(path.read_text()) == written


def test_settings_without_a_preprocessing_and_no_models_go_on(backbone: Backbone, tmp_path: Path) -> None:
    """As an earlier version left them, with the models removed."""
    path = tmp_path / "grid.json"
    now = settings(tmp_path).fixed(backbone.fingerprint, backbone.preprocessing)
    path.write_text(json.dumps({name: value for name, value in now.items() if name != "preprocessing"}))
    check_fixed(path, now, saved=())
    assert json.loads(path.read_text()) == now


def test_two_processes_that_start_at_once_agree_on_the_settings(
    backbone: Backbone, two_digits: DataSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memtok_experiments.grid.LOCK_SECONDS", 0.0)
    tried = []

    class Free(Listener):
        """While it trains, others may work on other data sets."""

        def done(self, data: str, runs: Any, records: Any) -> None:
            with locked(tmp_path):
                tried.append(data)

    def write(path: Path, value: dict[str, Any]) -> None:
        monkeypatch.setattr("memtok.folders.write_json", write_json)
        with pytest.raises(memtok.MemtokError, match="nobody else at work"):
            Grid(settings(tmp_path, steps=5), backbone).run()
        tried.append(path.name)
        write_json(path, value)

    monkeypatch.setattr("memtok.folders.write_json", write)
    Grid(settings(tmp_path), backbone, listener=Free()).run()
    assert tried == ["grid.json", "digits"]
    assert json.loads((tmp_path / "grid.json").read_text())["steps"] == 4


def test_another_split_under_existing_runs_is_refused(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (0, 1):
        data = open_data("digits", seed=seed).only(["0", "1"])
        monkeypatch.setattr(Grid, "source", lambda self, spec, data=data: data)
        made = Grid(settings(tmp_path), backbone)
        if seed == 0:
            made.run()
            continue
        with pytest.raises(memtok.MemtokError, match="split as it was"):
            made.run()


def test_data_without_a_test_part_of_their_own_are_refused(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = open_data("digits").only(["0", "1"])
    monkeypatch.setattr(
        "memtok_experiments.opening.open_data", lambda spec, **more: replace(data, test=data.validation)
    )
    with pytest.raises(memtok.MemtokError, match="--split 80-20"):
        Grid(settings(tmp_path), backbone).run()


def test_all_columns_validate_on_the_same_images(
    backbone: Backbone, two_digits: DataSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a run of this length would look at fewer of them by itself."""
    monkeypatch.setattr("memtok.training.plan.LEAST_VALIDATED", 5)
    seen: list[int] = []
    looked = Trainer.validate
    monkeypatch.setattr(
        Trainer, "validate", lambda self, *rest: seen.append(len(rest[1].validated)) or looked(self, *rest)
    )
    asked = settings(tmp_path, columns=("head", "class-unmasked"), learning_rates=(0.01,), batch_size=4)
    records = Grid(asked, backbone).run()
    count = len(two_digits.validation)
    assert seen == [count, count]  # those that train together, and the one that trains alone
    assert [record.validation.images for record in records] == [count, count]


@pytest.mark.twice
def test_a_group_that_was_killed_goes_on_as_the_group_it_was(
    backbone: Backbone, two_digits: DataSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memtok.training.run.SAVE_SECONDS", 0.0)
    monkeypatch.setattr("memtok.training.run.SAVE_SHARE", math.inf)
    whole = by_run(Grid(settings(tmp_path / "a"), backbone).run())

    class Killed(Listener):
        def training(self, *_: Any) -> TrainingRecorder:
            return TrainingRecorder(stop=3)

    with pytest.raises(KeyboardInterrupt):
        Grid(settings(tmp_path / "b"), backbone, listener=Killed()).run()
    steps = TrainingRecorder()

    class Watched(Recorder):
        def training(self, *_: Any) -> TrainingRecorder:
            return steps

    # A column that is asked for in addition does not start the others anew.
    watched = Watched()
    found = by_run(
        Grid(settings(tmp_path / "b", columns=("head", "memory-1", "class")), backbone, listener=watched).run()
    )
    assert steps.said("step")[0] == 3  # step 3 was not saved when the kill came
    assert [len(runs) for runs in watched.trained] == [4, 2]
    for key, record in whole.items():
        assert found[key].validation == record.validation, key
        assert found[key].test == record.test, key
    assert not list((tmp_path / "b").glob("runs/*/together-*"))


def test_two_processes_do_not_train_the_same(backbone: Backbone, two_digits: DataSource, tmp_path: Path) -> None:
    made = Grid(settings(tmp_path), backbone)
    with locked(made.on("digits").folder), pytest.raises(memtok.MemtokError, match="another process"):
        made.run()
    made.run()


def test_a_damaged_record_is_one_line(backbone: Backbone, two_digits: DataSource, tmp_path: Path) -> None:
    made = Grid(settings(tmp_path), backbone)
    made.run()
    made.on("digits").path(Run(find_column("head"), 0.01, 0)).write_text("{")
    with pytest.raises(memtok.MemtokError, match="run record as JSON"):
        made.run()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"columns": ("heads",)}, "expected a column"),
        ({"columns": ("memory-0",)}, "expected a column"),
        ({"columns": ()}, "columns, each once"),
        ({"data": ("cifar1000",)}, "digits, mnist"),
        ({"seeds": (0, 0)}, "seeds, each once"),
        ({"seeds": (-1,)}, "seed"),
        ({"learning_rates": ()}, "learning rates"),
        ({"learning_rates": (-1.0,)}, "learning_rate"),
        ({"learning_rates": (0.1, 0.10000001)}, "six digits"),
        ({"test_images": 0}, "test_images"),
        ({"steps": 3, "epochs": 1.0}, "steps or epochs"),
        ({"recipe": "papers"}, "recipe"),
    ],
)
def test_bad_settings_are_one_line(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(memtok.MemtokError, match=words) as caught:
        settings(tmp_path, **changes)
    assert "\n" not in str(caught.value)


def test_columns_and_slugs() -> None:
    assert find_columns(["paper", "memory-3", "head"])[-1].cells == 3
    assert len(find_columns(["all"])) == len(EVERY_COLUMN)
    assert slug("digits") == "digits"
    assert slug("folder:/a/b") != slug("folder:/a-b")
    assert "/" not in slug("folder:/a/b")


def test_grid_json_holds_what_must_agree(backbone: Backbone, two_digits: DataSource, tmp_path: Path) -> None:
    Grid(settings(tmp_path), backbone).run()
    found = json.loads((tmp_path / "grid.json").read_text())
    assert found["backbone"] == backbone.fingerprint
    assert found["steps"] == 4


def test_scores_are_shares() -> None:
    with pytest.raises(memtok.MemtokError):
        RecordedScore(top1=1.2, images=3)


def count_images(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The images of every pass of the trunk that is made from now on."""
    passes: list[int] = []
    trace = Backbone.trace

    def counting(self: Backbone, images: Any, **options: Any) -> Any:
        passes.append(len(images))
        return trace(self, images, **options)

    monkeypatch.setattr(Backbone, "trace", counting)
    return passes


@pytest.mark.parametrize("place", ["ram", "disk"])
def test_kept_traces_run_the_trunk_once_per_image_for_all_groups_and_seeds(
    place: str, backbone: Backbone, two_digits: DataSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "traces" if place == "disk" else None
    kept = {"keep_traces": place, "trace_dir": folder, "together": 1, "seeds": (0, 1), "steps": 18}
    asked = settings(tmp_path / "kept", **kept)
    monkeypatch.setattr(Grid, "test_missing", lambda *_: None)  # tests run the trunk too
    monkeypatch.setattr(Grid, "settle", lambda *_: None)
    passes = count_images(monkeypatch)
    Grid(asked, backbone).run()
    count = len(two_digits.train) + len(two_digits.validation)
    assert len(two_digits.train) < 18 * 16  # every image is seen by every run
    assert sum(passes) == count
    passes.clear()
    Grid(replace(asked, out=tmp_path / "again"), backbone).run()
    assert sum(passes) == (0 if place == "disk" else count)
    if place == "disk":
        assert [path.name for path in (tmp_path / "traces" / "digits").iterdir()] == ["all-seeds"]


@pytest.mark.twice
def test_kept_traces_choose_and_test_as_live_runs_do(
    backbone: Backbone, two_digits: DataSource, tmp_path: Path
) -> None:
    live = by_run(Grid(settings(tmp_path / "live", learning_rates=(0.05,)), backbone).run())
    kept = by_run(Grid(settings(tmp_path / "kept", learning_rates=(0.05,), keep_traces="ram"), backbone).run())
    for key, record in live.items():
        assert record.test is not None
        assert kept[key].validation.top1 == pytest.approx(record.validation.top1, abs=0.02), key
        assert kept[key].test.top1 == pytest.approx(record.test.top1, abs=0.02), key  # type: ignore[union-attr]


def test_every_seed_has_views_of_its_own_where_images_are_varied(
    backbone: Backbone, two_digits: DataSource, tmp_path: Path
) -> None:
    kept = {"augment": "crop", "keep_traces": "disk", "trace_dir": tmp_path / "traces", "views": 2, "seeds": (0, 1)}
    columns = ("memory-1", "class-unmasked")  # the second runs the trunk itself
    Grid(settings(tmp_path / "out", columns=columns, learning_rates=(0.05,), **kept), backbone).run()
    assert sorted(path.name for path in (tmp_path / "traces" / "digits").iterdir()) == ["seed-0", "seed-1"]


def test_settings_of_kept_traces_are_checked(backbone: Backbone, two_digits: DataSource, tmp_path: Path) -> None:
    for changes, words in (
        ({"columns": ("full", "class-unmasked"), "keep_traces": "ram"}, "a column that composes"),
        ({"keep_traces": "disk", "trace_dir": tmp_path / "runs" / "traces"}, "trace_dir outside"),
        ({"views": 2}, "found no keep_traces"),
        ({"keep_traces": "nowhere"}, "keep_traces"),
    ):
        with pytest.raises(memtok.MemtokError, match=words):
            settings(tmp_path, **changes)
    Grid(settings(tmp_path, columns=("head",)), backbone).run()
    with pytest.raises(memtok.MemtokError, match="no kept_traces, found"):
        Grid(settings(tmp_path, columns=("head",), keep_traces="ram"), backbone).run()
