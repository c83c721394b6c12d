"""Goes through the rows: fits and trains what is missing, chooses on validation images, tests what was chosen.

OUT/grid.json              what all trials share
OUT/runs/ROW/              trials of a row, see trials.py; trunk.json has the seconds of the trunk
OUT/traces/                cached features, removed once a row is done

Everything about a column is chosen with the first seed, by top-1 on the validation part: rate, augmentation, length. If
the best rate is the outermost one that was tried, further ones are tried.
Of equal ones the shorter, the one without augmentation, the smaller rate. The other seeds train that alone, and only
what was chosen is tested. After a kill the same call goes on.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from memtok.backbone import Backbone
from memtok.data import DataSource, batches
from memtok.data.content import training_content
from memtok.data.transforms import Normaliser, evaluation_pixels
from memtok.errors import MemtokError
from memtok.files import write_json
from memtok.folders import check_fixed, locked, read_settings, slug
from memtok.intervals import Right
from memtok.traces import OpenStores
from memtok.training.plan import make_plan
from memtok.training.regimes import Trainable, forward_of
from memtok.training.settings import DEFAULTS, Settings
from memtok_experiments.beyond.columns import COLUMNS, DEFAULT, Column, find_columns
from memtok_experiments.beyond.default import train_default
from memtok_experiments.beyond.fitted import FITS, Features, features
from memtok_experiments.beyond.records import AnswersRecord, Found, TrialRecord, best_of
from memtok_experiments.beyond.rows import Row, find_rows
from memtok_experiments.beyond.settings import DISK, BeyondSettings
from memtok_experiments.beyond.trials import (
    Listener,
    Place,
    Trial,
    TrialRuns,
    amount,
    class_token_cost,
    common_needs,
    load,
)
from memtok_experiments.opening import open_backbone, open_with_test, workers_of

TIMED_IMAGES = 512  # over which the trunk is timed
FACTOR = 10 / 3  # from one learning rate to a further one
MOST_LENGTH = 4  # times the steps of the table: what equal time gives a cheap column at most


class Work:
    """All rows and columns in `settings.out`."""

    def __init__(
        self, settings: BeyondSettings, backbone: Backbone | None = None, *, listener: Listener | None = None
    ) -> None:
        self.settings = settings
        self.backbone = backbone or open_backbone(settings)
        self.listener = listener or Listener()
        self.columns = find_columns(settings.columns)
        self.rows: list[tuple[Row, DataSource]] = []
        self.workers = workers_of(settings, self.backbone)

    def run(self) -> list[Found]:
        """Does all that is missing; returns what there is in the folder, of this call and of earlier ones."""
        fixed = self.settings.fixed(self.backbone.fingerprint, self.backbone.preprocessing)
        with locked(self.settings.out):
            check_fixed(self.settings.out / "grid.json", fixed, "grid", (), DEFAULTS)
            self.rows = self.open_rows()
            for row, source in self.rows:
                self.run_row(row, source)
            self.tell_left()
        return found_in(self.settings.out)

    def open_rows(self) -> list[tuple[Row, DataSource]]:
        """The rows with their data; what this machine does not have is told of and left out, unless that is all."""
        opened, failed = [], None
        for row in find_rows(self.settings.rows):
            try:
                opened.append((row, self.open(row)))
            except MemtokError as error:
                failed = error
                self.listener.skipped(row.name, error.message)
        if failed is not None and not opened:
            raise failed
        return opened

    def open(self, row: Row) -> DataSource:
        """The whole data of a row; MemtokError where no part is kept apart for testing."""
        return open_with_test(row.spec(self.settings.sets), row.name, self.settings)

    def folder(self, row: Row) -> Path:
        """That of its trials."""
        return self.settings.out / "runs" / slug(row.name)

    # What there is to do

    def steps(self, source: DataSource) -> int:
        """Of a run on a row, all columns alike."""
        return make_plan(Settings(**self.settings.training(0)), "memory", source).steps

    def tried(self, column: Column, steps: int, seed: int) -> list[Trial]:
        """All choices of a column."""
        if column.fitted:
            return [Trial(column, 0.0, False, 0, seed)]
        return [
            Trial(column, rate, varied, length * steps, seed)
            for length in column.lengths
            if length in self.settings.lengths or column.lengths == (1,)
            for varied in ((False,) if self.settings.augment == "none" else (False, True))
            for rate in self.settings.tried(column)
        ]

    def chosen(self, row: Row, column: Column, seed: int) -> Trial:
        """The choice with the best validation accuracy of the first seed, for another seed."""
        best = best_of(self.records(row, column))
        return Trial(column, best.rate or 0.0, best.varied, best.steps, seed)

    def further(self, place: Place) -> list[Trial]:
        """A next learning rate for each column whose best one is the outermost of those that were tried."""
        found = []
        for column in self.columns:
            if column.fitted:
                continue
            best = self.chosen(place.row, column, place.seed)
            records = self.records(place.row, column)
            alike = [one.rate for one in records if (one.varied, one.steps) == (best.varied, best.steps)]
            rates = sorted(rate for rate in alike if rate is not None)
            validation = TrialRecord.read(place.path(best)).validation
            outermost = best.learning_rate in (rates[0], rates[-1]) and 0 < validation < 1
            if outermost and len(rates) < len(self.settings.tried(column)) + self.settings.more_rates:
                factor = FACTOR if best.learning_rate == rates[-1] else 1 / FACTOR
                found.append(replace(best, learning_rate=float(f"{best.learning_rate * factor:.2g}")))
        return found

    def records(self, row: Row, column: Column) -> list[TrialRecord]:
        """The trials of a column with the first seed, the timed ones left out."""
        paths = sorted(self.folder(row).glob(f"{column.name}/*seed-{self.settings.seeds[0]}.json"))
        return [record for record in map(TrialRecord.read, paths) if not record.timed]

    def tell_left(self, further: Sequence[Trial] = ()) -> None:
        """Tells about how much is left to train. further: trials that follow from what others came to."""
        total = sum(amount([trial], trial.steps) for trial in further)
        for row, source in self.rows:
            drawn = row.drawn(source, self.settings.seeds[0], self.settings.test_images)
            steps, folder = self.steps(drawn), self.folder(row)
            for column in self.columns:
                tried = self.tried(column, steps, self.settings.seeds[0])
                for trial in tried:
                    if not (folder / f"{trial.name}.json").exists():
                        total += amount([trial], trial.steps)
                for seed in self.settings.seeds[1:]:
                    if not any(folder.glob(f"{column.name}/*seed-{seed}.json")) and not column.fitted:
                        total += amount(tried[:1], steps)
        self.listener.left(total)

    # A row

    def run_row(self, row: Row, source: DataSource) -> None:
        """Fits, trains, chooses and tests."""
        first = self.settings.seeds[0]
        for seed in self.settings.seeds:
            self.tell_left()
            place = self.place(row, source, seed)
            check_records(place)
            self.fit(place)
            steps = self.steps(place.source)
            wanted = [
                trial
                for column in self.columns
                for trial in (self.tried(column, steps, seed) if seed == first else [self.chosen(row, column, seed)])
                if not column.fitted
            ]
            self.train(place, wanted)
            while seed == first and (further := self.further(place)):
                self.tell_left(further)
                self.train(place, further)
            if self.settings.equal_time is not None:
                timed = self.timed(place)
                self.tell_left([trial for trial in timed if not place.path(trial).exists()])
                self.train(place, timed)
            self.test(place)
            remove_models(place, keep=self.settings.keep_models)
        shutil.rmtree(self.folder(row) / "passes", ignore_errors=True)

    def place(self, row: Row, source: DataSource, seed: int) -> Place:
        """Where the trials of a seed happen."""
        drawn = row.drawn(source, seed, self.settings.test_images)
        folder = self.folder(row)
        return Place(
            self.settings,
            self.backbone,
            row,
            drawn,
            folder,
            training_content(drawn),
            seed,
            self.seconds_per_image(drawn, folder / "trunk.json"),
        )

    def seconds_per_image(self, source: DataSource, path: Path) -> float:
        """Of the trunk, images read and prepared; measured once per row and written down."""
        known = read_settings(path, "row")
        if known is None:
            images = source.train.take(TIMED_IMAGES)
            features(self.backbone, images.take(1), batch_size=1, workers=0, levels=True)  # warm
            begun = time.perf_counter()
            features(self.backbone, images, batch_size=64, workers=self.workers, levels=True)
            known = {"seconds_per_image": (time.perf_counter() - begun) / len(images)}
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, known)
        return float(known["seconds_per_image"])

    def train(self, place: Place, trials: Sequence[Trial]) -> None:
        """Trains those that have no record: first those of the images as they are, then the others."""
        for varied in (False, True):
            own = [trial for trial in trials if trial.varied == varied and not place.path(trial).exists()]
            if not own:
                continue
            needs = common_needs(place, list(dict.fromkeys(trial.column for trial in own)))
            with OpenStores(needs) as stores:
                for steps in sorted({trial.steps for trial in own}):
                    runs = TrialRuns(place, varied=varied, steps=steps, stores=stores, listener=self.listener)
                    runs.train([trial for trial in own if trial.steps == steps], steps)
            if self.settings.keep_traces == DISK:
                folder = self.settings.trace_dir or self.settings.out / "traces"
                shutil.rmtree(folder / slug(place.row.name), ignore_errors=True)

    def fit(self, place: Place) -> None:
        """Solves and tests the columns that are fitted and have no record."""
        missing = [
            trial
            for column in self.columns
            if column.fitted and not place.path(trial := Trial(column, 0.0, False, 0, place.seed)).exists()
        ]
        if not missing:
            return
        for trial in [trial for trial in missing if trial.column.name == DEFAULT]:
            missing.remove(trial)
            self.take_default(place, trial)
        if not missing:
            return
        levels = any(FITS[trial.column.name][0] for trial in missing)
        parts = place.source.train, place.source.validation, place.source.test
        read = [features(self.backbone, part, batch_size=64, workers=self.workers, levels=levels) for part in parts]
        for trial in missing:
            try:
                self.fit_one(place, trial, read)
            except MemtokError as error:
                self.listener.skipped(f"{place.row.name}, {trial.column.name}", error.message)

    def fit_one(self, place: Place, trial: Trial, read: Sequence[Features]) -> None:
        """Solves one column on the features of the three parts; writes its test, then its record."""
        every, solve = FITS[trial.column.name]
        train, validation, test = read
        classes = len(place.source.classes)
        found = solve(
            tuple(one.levels if every else one.last for one in (train, validation, test)),
            tuple(one.labels for one in (train, validation, test)),
            classes,
        )
        numbers = classes * (found.features + 1)
        record = place.record_of(
            trial,
            strength=found.strength,
            validation=found.validation,
            diverged=False,
            parameters=numbers,
            bytes=4 * numbers,
            seconds=round(found.seconds, 3),
            trunk_seconds=round(len(train.labels) * place.seconds_per_image, 3),
            together=1,
            cost=round(classes * found.features / class_token_cost(self.backbone), 4),
        )
        tested = AnswersRecord.of(found.right, test.labels.numpy())
        tested.write(place.test_path(trial))
        record.write(place.path(trial))
        self.listener.done(place.row.name, trial, record)
        self.listener.tested(place.row.name, trial, tested.top1, tested.images)

    def take_default(self, place: Place, trial: Trial) -> None:
        """What `memtok train` makes where nobody says what: writes the task, its test, then its record."""
        task, record = train_default(place, trial, self.steps(place.source))
        tested = AnswersRecord.of(self.right_of(task, place), place.source.test.labels)
        tested.write(place.test_path(trial))
        record.write(place.path(trial))
        self.listener.done(place.row.name, trial, record)
        self.listener.tested(place.row.name, trial, tested.top1, tested.images)

    def timed(self, place: Place) -> list[Trial]:
        """The chosen trials again, each with as many steps as the time of the column `equal_time` allows.

        The steps are found with the first seed and written down: times differ when they are measured again.
        """
        path = place.folder / "equal-time.json"
        known = read_settings(path, "row") or {}
        budget_of = COLUMNS[self.settings.equal_time or ""]
        budget = TrialRecord.read(place.path(self.chosen(place.row, budget_of, self.settings.seeds[0]))).total_seconds
        base = self.steps(place.source)
        trials = []
        for column in self.columns:
            if column.fitted or column == budget_of:
                continue
            best = self.chosen(place.row, column, self.settings.seeds[0])
            record = TrialRecord.read(place.path(best))
            if record.diverged:
                continue
            if column.name not in known:
                free = max(0.0, budget - record.trunk_seconds)
                steps = int(free / max(record.seconds / record.steps, 1e-9))
                known[column.name] = max(1, min(steps, MOST_LENGTH * base))
            trials.append(Trial(column, best.learning_rate, best.varied, known[column.name], place.seed, timed=True))
        write_json(path, known)
        return trials

    # Testing

    def test(self, place: Place) -> None:
        """Tests the chosen trials of a seed, and the timed ones, that were not tested yet."""
        trials = [self.chosen(place.row, column, place.seed) for column in self.columns if not column.fitted]
        trials += self.timed(place) if self.settings.equal_time is not None else []
        missing = [trial for trial in trials if not place.test_path(trial).exists()]
        images = place.source.test
        for trial in missing:
            if TrialRecord.read(place.path(trial)).diverged:
                right = np.zeros(len(images), dtype=np.bool_)  # nothing was kept that could be tested
            else:
                right = self.answered_right(trial, place)
            tested = AnswersRecord.of(right, images.labels)
            tested.write(place.test_path(trial))
            self.listener.tested(place.row.name, trial, tested.top1, tested.images)

    def answered_right(self, trial: Trial, place: Place) -> Right:
        """(test images,) bool: which a trial answers right."""
        return self.right_of(load(trial, place), place)

    @torch.no_grad()
    def right_of(self, model: Trainable, place: Place) -> Right:
        """(test images,) bool: which it answers right."""
        model.eval()
        forward = forward_of([model])
        normalise = Normaliser(self.backbone.preprocessing)
        right = []
        transform = evaluation_pixels(self.backbone.preprocessing)
        with forward.folded():
            for pixels, labels, _ in batches(place.source.test, transform, batch_size=64, workers=self.workers):
                (logits,) = forward(normalise(pixels.to(self.backbone.device)))
                right.append((logits.argmax(dim=1).cpu() == labels).numpy())
        return np.concatenate(right)


def check_records(place: Place) -> None:
    """MemtokError if an earlier record is of other images, another split or another backbone."""
    wanted = place.backbone.fingerprint, place.source.split_digest, place.content
    for path in sorted(place.folder.glob(f"*/*seed-{place.seed}.json")):
        record = TrialRecord.read(path)
        found = record.fingerprint, record.split, record.content
        for what, here, now in zip(("backbone", "split", "images"), found, wanted, strict=True):
            if here != now:
                raise MemtokError(
                    f"expected the {what} of row {place.row.name} as before, {here[:20]}, found {now[:20]}; restore "
                    "the data, or use another --out"
                )


def remove_models(place: Place, *, keep: bool) -> None:
    """Removes what trials of a seed trained and nobody needs: what was not chosen, and whole models unless `keep`."""
    for path in place.folder.glob(f"*/*seed-{place.seed}.safetensors"):
        record = TrialRecord.read(path.with_suffix(".json"))
        tested = (place.folder / "tests" / path.parent.name / f"{path.stem}.json").exists()
        column = COLUMNS.get(record.column)
        shutil.rmtree(path.with_suffix(".run"), ignore_errors=True)  # left by a kill after the record
        if not tested or not (keep or (column and column.composes)):
            path.unlink()


def found_in(out: Path) -> list[Found]:
    """All trials of a folder, with their tests."""
    found = []
    for path in sorted(out.glob("runs/*/*/*.json")):
        test = path.parent.parent / "tests" / path.parent.name / path.name
        found.append(Found(TrialRecord.read(path), AnswersRecord.read(test) if test.exists() else None))
    return found
