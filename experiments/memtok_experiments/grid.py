"""A grid of runs, data x column x learning rate x seed: trained, chosen on validation images, tested, restartable.

The learning rate of a column is chosen with the first seed, by the top-1 accuracy on the validation part of the
training images; of equal ones the smaller rate is taken. The other seeds are trained at that rate only. Only chosen
runs ever see the test images, and only after the choice. Columns that compose share the pass of the trunk, the others
are trained one by one. Every run leaves a record, so a grid that was interrupted goes on where it stopped.

    OUT/grid.json    what all runs share
    OUT/runs/DATA/   the runs on a data set, see `memtok_experiments.runs`
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from memtok import metrics
from memtok.backbone import Backbone, load_backbone
from memtok.data import DataSource
from memtok.evaluation import evaluate
from memtok.folders import check_fixed, locked, slug
from memtok.model import MemoryViT
from memtok.regimes import FULL
from memtok.task import topological
from memtok.training.settings import DEFAULTS
from memtok_experiments.opening import open_backbone, open_with_test
from memtok_experiments.records import RunRecord, Score, read_record, write_record
from memtok_experiments.runs import DataRuns, Extends, Listener, Run
from memtok_experiments.settings import GridSettings

LOCK_SECONDS = 60.0  # to wait for another process that reads or writes what all runs share


class Grid:
    """Trains what is missing of a grid in `settings.out`.

    extends: for a seed, the tasks that every composable column extends; none by default. folder: where the runs lie,
    `out` by default.
    """

    def __init__(
        self,
        settings: GridSettings,
        backbone: Backbone | None = None,
        *,
        listener: Listener | None = None,
        folder: Path | None = None,
        extends: Extends = lambda seed: (),
    ) -> None:
        self.settings = settings
        self.backbone = backbone or open_backbone(settings)
        self.listener = listener or Listener()
        self.folder = folder or settings.out
        self.extends = extends
        self.opened: dict[str, DataRuns] = {}

    def run(self) -> list[RunRecord]:
        """Does all that is missing, data set after data set; returns all records of the folder."""
        fixed = self.settings.fixed(self.backbone.fingerprint, self.backbone.preprocessing)
        with locked(self.folder, wait=LOCK_SECONDS):  # not longer: others may work on other data sets in it
            models = self.folder.glob("runs/*/*/rate-*.safetensors")
            check_fixed(self.folder / "grid.json", fixed, "grid", models, DEFAULTS)
        everything = [self.on(data) for data in self.settings.data]  # what cannot be opened is found before any run
        self.tell_left()
        for runs in everything:
            with locked(runs.folder), runs.stores:
                self.run_data(runs)
        return self.records()

    def records(self) -> list[RunRecord]:
        """All records of the folder, of this call and of earlier ones."""
        return [read_record(path) for path in sorted((self.folder / "runs").glob("*/*/*.json"))]

    def on(self, data: str) -> DataRuns:
        """The runs on a data set, which is opened once."""
        if data not in self.opened:
            self.opened[data] = DataRuns(
                self.settings,
                self.backbone,
                self.source(data),
                data,
                self.folder / "runs" / slug(data),
                extends=self.extends,
                listener=self.listener,
                trained=self.tell_left,
            )
        return self.opened[data]

    def source(self, data: str) -> DataSource:
        """The data, opened; MemtokError where no part is kept apart for testing."""
        return open_with_test(data, data, self.settings)

    def tell_left(self) -> None:
        """Says what is left to train on all data sets."""
        self.listener.left(sum(self.on(data).left() for data in self.settings.data))

    def run_data(self, runs: DataRuns) -> None:
        """Trains, chooses and tests on one data set."""
        runs.take_over()
        runs.check_records()
        first, *others = self.settings.seeds
        runs.train(runs.tried(first), runs.plan.steps)
        for seed in others:
            if runs.plan.augment != "none":  # its views are others: room for them
                runs.stores.close()
            runs.train(runs.chosen(seed), runs.plan.steps)
        runs.clear()
        for seed in self.settings.seeds:
            self.test_missing(runs, runs.chosen(seed))
        self.settle(runs)

    def test_missing(self, runs: DataRuns, chosen: Sequence[Run]) -> None:
        """Tests the chosen runs that were not tested yet: those that compose in one pass of the trunk."""
        records = {run: runs.record(run) for run in chosen}
        missing = [run for run, record in records.items() if record.test is None]
        lost = [run for run in missing if records[run].diverged]  # nothing was kept that could be tested
        for run in lost:
            nothing = Score(top1=0.0, top5=0.0, images=len(runs.test_images))
            write_record(runs.path(run), records[run].tested(nothing))
        shared = [run for run in missing if run not in lost and runs.composes(run)]
        alone = [run for run in missing if run not in lost and not runs.composes(run)]
        for group in [shared] * bool(shared) + [[run] for run in alone]:
            tested = []
            for run, found in zip(group, self.test(runs, group), strict=True):
                tested.append(records[run].tested(Score(top1=found.top1, top5=found.top5, images=found.images)))
                write_record(runs.path(run), tested[-1])
            self.listener.tested(runs.spec, group, tested)

    def test(self, runs: DataRuns, group: Sequence[Run]) -> list[metrics.Score]:
        """Accuracies on the test images of runs that share a pass, or of one that does not."""
        images, size, workers = runs.test_images, runs.plan.batch_size, runs.workers
        if group[0].column.regime == FULL:
            whole = load_backbone(runs.kept(group[0])).to(self.backbone.device)
            table = evaluate(MemoryViT(whole), {}, base=images, batch_size=size, workers=workers)
            assert table.base is not None
            return [table.base]
        tasks = [runs.load(run) for run in group]
        model = MemoryViT(self.backbone, topological(tasks))
        table = evaluate(model, {task.name: images for task in tasks}, batch_size=size, workers=workers)
        return [table.tasks[task.name] for task in tasks]

    def settle(self, runs: DataRuns) -> None:
        """Marks in every record of these columns whether its rate is the chosen one, and removes what nobody needs.

        A rate that was added later can take the choice from an older one, whose test accuracy then goes.
        """
        for column in runs.columns:
            rate = runs.chosen_rate(column)
            for path in runs.folder.glob(f"{column.name}/rate-*.json"):
                record, model = read_record(path), path.with_suffix(".safetensors")
                shutil.rmtree(path.with_suffix(".run"), ignore_errors=True)  # left by a kill after the record
                if record.learning_rate != rate:
                    if record.chosen:
                        write_record(path, replace(record, chosen=False, test=None))
                    model.unlink(missing_ok=True)
                elif record.seed in self.settings.seeds and column.regime == FULL and not self.settings.keep_models:
                    model.unlink(missing_ok=True)
