"""A grid of runs, data x column x learning rate x seed: trained, chosen on validation images, tested, restartable.

The learning rate of a column is chosen with the first seed, by the top-1 accuracy on the validation part of the
training images; of equal ones the smaller rate is taken. The other seeds are trained at that rate only. Only chosen
runs ever see the test images, and only after the choice. Columns that compose share the pass of the trunk
(`train_together`), the others are trained one by one. Every run leaves a record, so a grid that was interrupted goes
on where it stopped.

    OUT/grid.json                                    what all runs share
    OUT/runs/DATA/COLUMN/rate-R-seed-S.json          the record of a run
    OUT/runs/DATA/COLUMN/rate-R-seed-S.safetensors   the task (or whole model) that it trained
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from memtok.backbone import Backbone, load_backbone
from memtok.bundle import load_task
from memtok.data import DataSource, ImageSet, open_data
from memtok.data.content import training_content
from memtok.errors import Argument, DivergedError, MemtokError
from memtok.evaluation import evaluate
from memtok.files import write_json
from memtok.folders import check_fixed, locked, slug
from memtok.metrics import Score
from memtok.model import MemoryViT
from memtok.regimes import FULL
from memtok.task import Task, topological
from memtok.traces import OpenStores
from memtok.training import TrainResult, create, train, train_together
from memtok.training.regimes import Trainable, count_parameters
from memtok.training.result import versions
from memtok.training.settings import Plan, Settings, default_workers, make_plan
from memtok.training.together import lock_of
from memtok_experiments.columns import Column, find_column, find_columns
from memtok_experiments.records import RunRecord, read_record, write_record
from memtok_experiments.records import Score as RecordedScore
from memtok_experiments.runs import Listener, Run, cost
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
        extends: Callable[[int], tuple[Task, ...]] = lambda seed: (),
    ) -> None:
        self.settings = settings
        self.backbone = backbone or open_backbone(settings)
        self.columns = find_columns(settings.columns)
        self.listener = listener or Listener()
        self.folder = folder or settings.out
        self.extends = extends
        self.sources: dict[str, DataSource] = {}
        self.contents: dict[str, str] = {}
        self.stores = OpenStores()

    def run(self) -> list[RunRecord]:
        """Does all that is missing, data set after data set; returns all records of the folder."""
        fixed = self.settings.fixed(self.backbone.fingerprint, self.backbone.preprocessing)
        with locked(self.folder, wait=LOCK_SECONDS):  # not longer: others may work on other data sets in it
            check_fixed(self.folder / "grid.json", fixed, saved=self.folder.glob("runs/*/*/rate-*.safetensors"))
        for data in self.settings.data:
            self.source(data)  # what cannot be opened is found before the first run
        self.listener.left(self.left())
        for data in self.settings.data:
            with locked(self.runs(data)), self.stores:
                self.run_data(data)
        return self.records()

    def records(self) -> list[RunRecord]:
        """All records of the folder, of this call and of earlier ones."""
        return [read_record(path) for path in sorted((self.folder / "runs").glob("*/*/*.json"))]

    # Places

    def runs(self, data: str) -> Path:
        """The folder of a data set's runs."""
        return self.folder / "runs" / slug(data)

    def path(self, data: str, run: Run) -> Path:
        """The record of a run; its task lies beside it."""
        return self.runs(data) / run.column.name / f"rate-{run.rate:g}-seed-{run.seed}.json"

    def model_path(self, data: str, run: Run) -> Path:
        """The task, or whole model, that a run trained."""
        return self.path(data, run).with_suffix(".safetensors")

    def source(self, data: str) -> DataSource:
        """The data, opened once."""
        if data not in self.sources:
            settings = self.settings
            source = open_data(
                data, data_dir=settings.data_dir, split=settings.split, on_bad_image=settings.on_bad_image
            )
            if not source.has_test:
                raise MemtokError(
                    f"expected a test part apart from the validation part in {data}, found one part for both; use "
                    "--split 80-20, or add a folder test/"
                )
            self.sources[data] = source
        return self.sources[data]

    def content(self, data: str) -> str:
        """The digest of the images that runs on a data set see, taken once."""
        if data not in self.contents:
            self.contents[data] = training_content(self.source(data))
        return self.contents[data]

    def task(self, data: str, column: Column, seed: int) -> Task:
        """The trained task of a composable or variant column at its chosen rate, called after the data set."""
        run = Run(column, self.chosen_rate(data, column), seed)
        if read_record(self.path(data, run)).diverged:
            raise MemtokError(
                f"expected a trained task of {column.name} on {data}, found that seed {seed} diverged at rate "
                f"{run.rate:g}; try smaller ones"
            )
        task = self.load(data, run)
        task.name = slug(data)
        return task

    def load(self, data: str, run: Run) -> Task:
        """The task that a run trained."""
        self.check_model(data, run)
        return load_task(self.model_path(data, run), self.backbone, extends=self.extends(run.seed))

    def check_model(self, data: str, run: Run) -> None:
        """MemtokError unless what a run trained is there."""
        if not self.model_path(data, run).exists():
            raise MemtokError(
                f"expected {self.model_path(data, run)}, which {run} trained, found none; delete "
                f"{self.path(data, run)} to train it again"
            )

    def accuracy(self, data: str, column: Column, seed: int) -> float:
        """Top-1 of the chosen run on the test images, in [0, 1]."""
        test = read_record(self.path(data, Run(column, self.chosen_rate(data, column), seed))).test
        assert test is not None
        return test.top1

    # Work

    def run_data(self, data: str) -> None:
        """Trains, chooses and tests on one data set."""
        self.check_records(data)
        first, *others = self.settings.seeds
        self.train_missing(
            data, [Run(column, rate, first) for column in self.columns for rate in self.settings.rates(column)]
        )
        rates = {column: self.chosen_rate(data, column) for column in self.columns}
        for column, rate in rates.items():
            self.listener.chosen(data, column, rate)
        for seed in others:
            if self.varied(data):  # its views are others: room for them
                self.stores.close()
            self.train_missing(data, [Run(column, rate, seed) for column, rate in rates.items()])
        for seed in self.settings.seeds:
            self.test_missing(data, [Run(column, rate, seed) for column, rate in rates.items()])
        self.settle(data, [Run(column, rate, seed) for column, rate in rates.items() for seed in self.settings.seeds])

    def check_records(self, data: str) -> None:
        """MemtokError if an earlier record is not of the run that its name says, or if the split is another now.

        What is tested now may then have been trained on. Also removes what a killed process left half written.
        """
        for path in self.runs(data).rglob(".*.part"):
            path.unlink(missing_ok=True)
        digest, content = self.source(data).split_digest, self.content(data)
        for path in sorted(self.runs(data).glob("*/rate-*.json")):
            record = read_record(path)
            run = Run(find_column(record.column), record.learning_rate, record.seed)
            if self.path(data, run) != path or (record.data, record.fingerprint) != (data, self.backbone.fingerprint):
                raise MemtokError(
                    f"expected the record of a run in {path}, found that of {run} on {record.data}; delete it to train "
                    "the run again"
                )
            found = record.split["digest"]
            if found != digest:
                raise MemtokError(
                    f"expected {data} split as it was for {path} ({found[:19]}), found {digest[:19]}; restore the "
                    f"data, give the same {Argument('split')}, or use another {Argument('out')}"
                )
            if record.split.get("content", content) != content:  # version 0.1 did not write it down
                raise MemtokError(
                    f"expected the images of {data} as they were for {path}, found others under the same names; "
                    f"restore the data, or use another {Argument('out')}",
                    argument="data",
                )

    def left(self) -> float:
        """What is left to train on all data sets, in units of `cost`; later seeds count with any rate."""
        total = 0.0
        for data in self.settings.data:
            for number, seed in enumerate(self.settings.seeds):
                runs = [
                    Run(column, rate, seed)
                    for column in self.columns
                    for rate in self.settings.rates(column)
                    if not self.path(data, Run(column, rate, seed)).exists()
                ]
                if number:  # one rate each
                    trained = {path.parent.name for path in self.runs(data).glob(f"*/rate-*-seed-{seed}.json")}
                    runs = [run for run in {run.column: run for run in runs}.values() if run.column.name not in trained]
                total += cost(runs, self.settings.together)
        return total

    def train_missing(self, data: str, runs: Sequence[Run]) -> None:
        """Trains those without a record: composable columns together, others one by one."""
        for group in self.interrupted(data):
            self.train_shared(data, group)
        missing = [run for run in runs if not self.path(data, run).exists()]
        shared = [run for run in missing if run.column.composable]
        # Tasks that extend the same one are computed as one family, in which a task that diverges spoils the others.
        size = 1 if shared and self.extends(shared[0].seed) else self.settings.together
        for start in range(0, len(shared), size):
            self.train_shared(data, shared[start : start + size])
        for run in missing:
            if not run.column.composable:
                self.train_single(data, run)

    def interrupted(self, data: str) -> list[list[Run]]:
        """Groups whose training together has a saved state and still lacks records."""
        groups = []
        for path in sorted(self.runs(data).glob("together-*.json")):
            state = path.with_suffix(".safetensors")
            try:
                runs = [
                    Run(find_column(name), float(rate), int(seed)) for name, rate, seed in json.loads(path.read_text())
                ]
            except (ValueError, TypeError, RecursionError):
                runs = []  # damaged: they are trained anew
            if runs and state.exists() and not all(self.path(data, run).exists() for run in runs):
                groups.append(runs)
            else:
                state.unlink(missing_ok=True)
                path.unlink()
        return groups

    def train_shared(self, data: str, runs: Sequence[Run]) -> None:
        """Trains composable runs of one seed over one pass of the trunk."""
        seed = runs[0].seed
        tasks = [self.create(data, run, name=f"task-{number}") for number, run in enumerate(runs)]
        state = self.runs(data) / f"together-{self.key(runs)}.safetensors"
        write_json(state.with_suffix(".json"), [[run.column.name, run.rate, run.seed] for run in runs])
        results = train_together(
            [task for task in tasks if isinstance(task, Task)],
            self.source(data),
            learning_rates=[run.rate for run in runs],
            seed=seed,
            state=state,
            progress=self.listener.training(),
            stores=self.stores,
            **self.training(data),
            **self.traces(data, runs[0]),
        )
        for run, result in zip(runs, results, strict=True):
            result.task.name = run.column.name
            self.keep(data, run, result, together=len(runs), model=result.task)
        state.unlink(missing_ok=True)
        lock_of(state).unlink(missing_ok=True)
        state.with_suffix(".json").unlink()
        self.listener.done(data, runs, [read_record(self.path(data, run)) for run in runs])
        self.listener.left(self.left())

    def key(self, runs: Sequence[Run]) -> str:
        """Tells one set of runs from another."""
        return hashlib.sha256("/".join(map(str, runs)).encode()).hexdigest()[:8]

    def train_single(self, data: str, run: Run) -> None:
        """Trains a run on its own; it goes on from the state that an interrupted one saved."""
        model = self.create(data, run, name=run.column.name)
        path = self.model_path(data, run)
        folder = path.with_suffix(".run")
        source = self.source(data)
        settings = self.training(data)
        steps = self.plan(data, run.column, run.rate).steps
        try:
            result: TrainResult | None = train(
                model,
                source,
                learning_rate=run.rate,
                seed=run.seed,
                out=path,
                resume=(folder / "state.safetensors").exists(),
                validate_every=steps,  # the last state counts, as it does for those that train together
                compare_head=False,  # the table has a column of heads
                progress=self.listener.training(),
                **settings,
            )
        except DivergedError:
            result = None
        self.keep(data, run, result, together=1, model=model)
        shutil.rmtree(folder, ignore_errors=True)
        self.listener.done(data, [run], [read_record(self.path(data, run))])
        self.listener.left(self.left())

    def create(self, data: str, run: Run, name: str) -> Trainable:
        """What a run trains, with its initial values."""
        column = run.column
        return create(
            self.backbone,
            regime=column.regime,
            name=name,
            classes=self.source(data).classes,
            memory=column.cells,
            extends=self.extends(run.seed) if column.regime == "memory" else (),
            seed=run.seed,
        )

    def plan(self, data: str, column: Column, rate: float) -> Plan:
        """The numbers of a run."""
        return make_plan(Settings(**self.training(data), learning_rate=rate), column.regime, self.source(data))

    def training(self, data: str) -> dict[str, Any]:
        """The arguments of `train` that all runs on a data set share. Every column validates on the same images."""
        images = self.settings.validation_images or len(self.source(data).validation)
        return self.settings.training() | {"validation_images": images}

    def traces(self, data: str, run: Run) -> dict[str, Any]:
        """Where the traces of a data set lie."""
        found = self.settings.traces()
        if found["trace_dir"] is not None:
            own = f"seed-{run.seed}" if self.varied(data) else "all-seeds"
            found["trace_dir"] = Path(found["trace_dir"]) / slug(data) / own
        return found

    def varied(self, data: str) -> bool:
        """Whether images are varied in training; then every seed varies them in its own way."""
        column = self.columns[0]
        return self.plan(data, column, self.settings.rates(column)[0]).augment != "none"

    def keep(self, data: str, run: Run, result: TrainResult | None, *, together: int, model: Trainable) -> None:
        """Writes what a run trained and then its record. Without a result, or with a diverged one, accuracy is 0."""
        path, plan = self.path(data, run), self.plan(data, run.column, run.rate)
        diverged = result is None or result.diverged_at is not None
        if isinstance(model, Task) and not diverged:
            model.save(self.model_path(data, run))  # `train` wrote a whole model itself
        trained, total = count_parameters(model)
        height, width = self.backbone.preprocessing.image_size
        record = RunRecord(
            backbone=self.settings.backbone,
            fingerprint=self.backbone.fingerprint,
            image_size=(height, width),
            data=data,
            split=self.source(data).split | {"content": self.content(data)},
            column=run.column.name,
            regime=run.column.regime,
            cells=run.column.cells or 0,
            learning_rate=run.rate,
            seed=run.seed,
            recipe=plan.recipe,
            steps=plan.steps,
            batch_size=plan.batch_size,
            chosen=False,
            validation=RecordedScore(
                top1=0.0 if result is None else result.final_accuracy, images=plan.validation_images
            ),
            test=None,
            trained_parameters=trained,
            total_parameters=total,
            seconds=0.0 if result is None else round(result.seconds / together, 3),
            together=together,
            versions=versions(),
            diverged=diverged,
        )
        write_record(path, record)

    # Choosing and testing

    def chosen_rate(self, data: str, column: Column) -> float:
        """The rate with the best validation accuracy of the first seed; of equal ones the smaller."""
        seed = self.settings.seeds[0]
        found = [read_record(path) for path in self.runs(data).glob(f"{column.name}/rate-*-seed-{seed}.json")]
        alive = [record for record in found if not record.diverged]
        if not alive:
            raise MemtokError(
                f"expected a learning rate at which {column.name} trains on {data}, found that all of "
                f"{', '.join(f'{record.learning_rate:g}' for record in found)} diverge; try smaller ones"
            )
        return min(alive, key=lambda record: (-record.validation.top1, record.learning_rate)).learning_rate

    def test_missing(self, data: str, runs: Sequence[Run]) -> None:
        """Tests the chosen runs that were not tested yet: those that compose in one pass of the trunk."""
        missing = []
        for run in runs:
            path = self.path(data, run)
            record = read_record(path)
            if record.diverged and record.test is None:  # nothing was kept that could be tested
                write_record(path, record.tested(RecordedScore(top1=0.0, top5=0.0, images=len(self.test_images(data)))))
            elif record.test is None:
                missing.append(run)
        shared = [run for run in missing if run.column.composable]
        for group in [shared] * bool(shared) + [[run] for run in missing if not run.column.composable]:
            scores = self.test(data, group)
            for run, score in zip(group, scores, strict=True):
                path = self.path(data, run)
                tested = RecordedScore(top1=score.top1, top5=score.top5, images=score.images)
                write_record(path, read_record(path).tested(tested))
            self.listener.tested(data, group, [read_record(self.path(data, run)) for run in group])

    def test(self, data: str, runs: Sequence[Run]) -> list[Score]:
        """Accuracies on the test images of runs that share a pass, or of one that does not."""
        images = self.test_images(data)
        size = self.plan(data, runs[0].column, runs[0].rate).batch_size
        workers = self.workers
        if runs[0].column.regime == FULL:
            self.check_model(data, runs[0])
            whole = load_backbone(self.model_path(data, runs[0])).to(self.backbone.device)
            table = evaluate(MemoryViT(whole), {}, base=images, batch_size=size, workers=workers)
            assert table.base is not None
            return [table.base]
        tasks = [self.load(data, run) for run in runs]
        model = MemoryViT(self.backbone, topological(tasks))
        table = evaluate(model, {task.name: images for task in tasks}, batch_size=size, workers=workers)
        return [table.tasks[task.name] for task in tasks]

    @property
    def workers(self) -> int:
        """Processes that load test images, as in training."""
        given = self.settings.workers
        return default_workers(self.backbone.device) if given is None else given

    def test_images(self, data: str) -> ImageSet:
        """The test images that are looked at, classes in proportion; always the same ones."""
        images = self.source(data).test
        count = self.settings.test_images
        return images if count is None else images.take(count, seed=0)

    def settle(self, data: str, chosen: Sequence[Run]) -> None:
        """Marks in every record of these columns whether its rate is the chosen one, and removes what nobody needs.

        A rate that was added later can take the choice from an older one, whose test accuracy then goes.
        """
        kept = {self.path(data, run) for run in chosen}
        for column in self.columns:
            rate = self.chosen_rate(data, column)
            for path in self.runs(data).glob(f"{column.name}/rate-*.json"):
                record = read_record(path)
                if record.learning_rate != rate:
                    if record.chosen:
                        write_record(path, replace(record, chosen=False, test=None))
                    path.with_suffix(".safetensors").unlink(missing_ok=True)
                shutil.rmtree(path.with_suffix(".run"), ignore_errors=True)  # left by a kill after the record
                if record.learning_rate != rate:
                    continue
                if path in kept and column.regime == FULL and not self.settings.keep_models:
                    path.with_suffix(".safetensors").unlink(missing_ok=True)


def open_backbone(settings: GridSettings) -> Backbone:
    """The backbone at the size that is asked for, on the device that trains."""
    gpu = settings.device != "cpu" and torch.cuda.is_available()
    return load_backbone(settings.backbone, image_size=settings.image_size, device="cuda" if gpu else "cpu")
