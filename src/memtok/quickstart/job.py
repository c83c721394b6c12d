"""The whole workflow on what is installed, without a network: train two tasks separately, compose, verify, compare.

The backbone is the small ViT that comes with memtok, trained on Fashion-MNIST; the tasks classify handwritten digits.
Everything goes through the library's public functions, in the order in which a user would call them. The result is a
`QuickstartResult`; page.py writes it as a report and console.py prints it.
"""

from __future__ import annotations

import shlex
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from memtok.assets import shipped_backbone
from memtok.backbone import Backbone, load_backbone
from memtok.bundle import load_task, load_tasks, save_tasks
from memtok.data import DataSource, ImageSet, batches, open_data
from memtok.data.transforms import Normaliser, evaluation_pixels
from memtok.errors import MemtokError
from memtok.evaluation import BASE, evaluate, undisturbed
from memtok.files import atomic_write, write_json
from memtok.folders import locked
from memtok.metrics import ranks
from memtok.model import MemoryViT
from memtok.prediction import predict
from memtok.quickstart.console import Listener, RichListener
from memtok.quickstart.page import write_report
from memtok.quickstart.result import PredictedImage, QuickstartResult, QuickstartSettings, TrainedRun
from memtok.quickstart.views import View, attention_shares, draw_view
from memtok.task import Task
from memtok.training import Progress, train
from memtok.training.result import TrainResult, versions
from memtok.verification import VerifyReport, verify

BACKBONE = "small"
TASKS = {"low": tuple("01234"), "high": tuple("56789")}
REGIMES: dict[str, tuple[str, int | None]] = {
    "head only": ("head", None),
    "head + class token": ("head+class", None),
    "memory, 1 cell": ("memory", 1),
    "memory, 5 cells": ("memory", 5),
    "memory, 10 cells": ("memory", 10),
    "readout of all levels": ("readout", None),
}


def run(
    out: str | Path,
    *,
    seed: int = 0,
    progress: bool | Listener = False,
    settings: QuickstartSettings | None = None,
) -> QuickstartResult:
    """Runs the quickstart and writes task files, images, results.json and report.html into the folder `out`.

    Files of an earlier quickstart in `out` are replaced, nothing else there is touched. progress: True shows the
    progress on the terminal and prints the result; or an object with the hooks of `Listener`. Runs on the CPU, and does
    not change the number of threads and the random generators. Raises MemtokError if `out` cannot be written.
    """
    out = Path(out)
    check_folder(out)
    listener = progress if isinstance(progress, Listener) else RichListener() if progress else Listener()
    try:
        with locked(out), one_thread():
            result = Quickstart(out, seed, settings or QuickstartSettings(), listener).run()
        listener.finish(result)
        return result
    finally:
        listener.close()


class Quickstart:
    """One run of the quickstart; the methods are in the order in which they are called."""

    def __init__(self, out: Path, seed: int, settings: QuickstartSettings, listener: Listener) -> None:
        self.out, self.seed, self.settings, self.listener = out, seed, settings, listener
        self.started = time.perf_counter()
        self.backbone = load_backbone(BACKBONE)
        self.data = shortened(open_data("digits"), settings)

    def run(self) -> QuickstartResult:
        """Trains, composes, evaluates, verifies, compares, predicts and writes."""
        steps = self.settings.steps * (len(TASKS) + len(REGIMES))
        self.listener.start(self.backbone, self.data, steps)
        trained = {name: self.train_apart(name, classes) for name, classes in TASKS.items()}
        model, composed = self.compose()
        runs = self.evaluate_composed(model, trained)
        proof = self.verify_composed(model)
        comparison = tuple(self.compare(label, *choice) for label, choice in REGIMES.items())
        self.listener.doing("predicting and drawing")
        chosen = one_of_each(self.data.test, len(self.data.classes), self.seed)
        predictions = self.predict(model, chosen)
        attention = {name: attention_shares(model, name, self.data.only(TASKS[name]).test.take(64)) for name in TASKS}
        result = QuickstartResult(
            out=self.out,
            command=f"memtok quickstart --out {shlex.quote(str(self.out))} --seed {self.seed}",
            seed=self.seed,
            seconds=round(time.perf_counter() - self.started, 1),
            settings=self.settings,
            versions=versions(),
            backbone=describe_backbone(self.backbone),
            data=describe_data(self.data),
            tasks=runs,
            composed=composed,
            verification=proof.to_json(),
            comparison=comparison,
            predictions=predictions,
            attention=attention,
        )
        self.write(result, draw_view(model, chosen, TASKS))
        return result

    def train_apart(self, name: str, classes: tuple[str, ...]) -> TrainResult:
        """Trains one task separately: its own digits and its own task file."""
        data = self.data.only(classes)
        task = Task.create(self.backbone, name=name, classes=classes, seed=self.seed)
        self.listener.doing(f"training task {name!r}: digits {classes[0]} to {classes[-1]}, {task.cells} memory cells")
        trained = self.train(task, data)
        task.save(self.out / f"{name}.safetensors")
        return trained

    def train(self, task: Task, data: DataSource) -> TrainResult:
        """`memtok.train` with the numbers that all runs share."""
        return train(
            task,
            data,
            steps=self.settings.steps,
            batch_size=self.settings.batch_size,
            learning_rate=self.settings.learning_rate,
            augment="none",
            seed=self.seed,
            select="top1",  # as the report shows; the classes have nearly equal numbers of images
            device="cpu",
            validate_every=max(1, self.settings.steps // self.settings.validations),
            log_every=max(1, self.settings.steps // 40),
            compare_head=False,  # one of the regimes is a head
            progress=StepCounter(self.listener),
        )

    def compose(self) -> tuple[MemoryViT, dict[str, Any]]:
        """Loads both files, composes the tasks into one model, and saves it as one file."""
        self.listener.doing("putting both tasks into one model")
        models = [MemoryViT(self.backbone, [load_task(self.path(name), self.backbone)]) for name in TASKS]
        both = models[0].concat(models[1])
        path = self.path("both")
        save_tasks(both.tasks, path)
        # The following steps use the tasks from the file.
        model = MemoryViT(self.backbone, load_tasks(path, self.backbone))
        return model, {"file": path.name, "bytes": path.stat().st_size, "tasks": list(model.names)}

    def evaluate_composed(self, model: MemoryViT, trained: dict[str, TrainResult]) -> tuple[TrainedRun, ...]:
        """Accuracy of both tasks, composed and each alone, on the test images of its own digits."""
        self.listener.doing("measuring both tasks, composed and alone")
        sources = {name: self.data.only(classes) for name, classes in TASKS.items()}
        table = evaluate(model, sources, alone=True)
        runs = []
        for name, result in trained.items():
            tops = {"test_top1": table.alone[name].top1, "composed_top1": table.tasks[name].top1}
            facts = {"label": name, "test_images": table.tasks[name].images, "base_bitwise": True, **tops}
            runs.append(self.describe(result, sources[name], self.path(name), **facts))
            self.listener.measured(runs[-1])
        return tuple(runs)

    def verify_composed(self, model: MemoryViT) -> VerifyReport:
        """Verifies that the outputs of the backbone and of each task are the same as alone."""
        self.listener.doing("verifying")
        images = self.settings.verified_images
        proof = verify(self.backbone, model.tasks, self.data.test, source=BACKBONE, images=images, seed=self.seed)
        self.listener.verified(proof)
        return proof

    def compare(self, label: str, regime: str, cells: int | None) -> TrainedRun:
        """The same ten digits in another regime."""
        classes = self.data.classes
        task = Task.create(self.backbone, name="digits", classes=classes, regime=regime, memory=cells, seed=self.seed)
        self.listener.doing(f"comparing on all ten digits: {label}")
        trained = self.train(task, self.data)
        path = self.path("comparison/" + label.replace(" + ", "-").replace(", ", "-").replace(" ", "-"))
        task.save(path)
        score = evaluate(MemoryViT(self.backbone, [task]), self.data).tasks[task.name]
        bitwise = self.base_is_the_same(task) if task.composable else None
        facts = {"test_images": score.images, "test_top1": score.top1, "composed_top1": None, "base_bitwise": bitwise}
        run = self.describe(trained, self.data, path, label=label, right=self.right_answers(task), **facts)
        self.listener.measured(run)
        return run

    def right_answers(self, task: Task) -> str:
        """For each test image 1 if the task classifies it correctly, else 0, for paired comparisons."""
        model, transform = MemoryViT(self.backbone, [task]), evaluation_pixels(task.preprocessing)
        normalise, found = Normaliser(task.preprocessing), []
        with undisturbed(model):
            for pixels, labels, _ in batches(self.data.test, transform, batch_size=64):
                found += (ranks(model(normalise(pixels), base=False)[task.name], labels) == 0).int().tolist()
        return "".join(map(str, found))

    def base_is_the_same(self, task: Task) -> bool:
        """Whether the backbone's output in a model with this task is bitwise that of the source model."""
        proof = verify(self.backbone, [task], self.data.test, source=BACKBONE, images=32, seed=self.seed)
        return proof.features_bitwise and proof.base_bitwise is not False and proof.unchanged

    def predict(self, model: MemoryViT, chosen: ImageSet) -> tuple[PredictedImage, ...]:
        """Writes some test images as files and classifies them with every task and the backbone, in one pass."""
        truths = {}
        for index in range(len(chosen)):
            image, label = chosen[index]
            path = self.out / "images" / f"{self.data.classes[label]}.png"
            with atomic_write(path) as temporary:
                image.save(temporary, format="PNG")
            truths[str(path)] = self.data.classes[label]
        answers: dict[str, dict[str, tuple[str, float]]] = {path: {} for path in truths}
        for row in predict(model, list(truths), top=1, base=True, on_bad_image="fail").rows:
            answers[row.path][row.task] = row.ranking[0]
        assert all(BASE in found for found in answers.values())
        return tuple(
            PredictedImage(file=self.relative(Path(path)), truth=truth, answers=answers[path])
            for path, truth in truths.items()
        )

    def write(self, result: QuickstartResult, view: View) -> None:
        """The numbers and the report of them."""
        write_json(self.out / "results.json", result.to_json())
        write_report(self.out / "report.html", result, view)

    def describe(self, trained: TrainResult, data: DataSource, path: Path, **facts: Any) -> TrainedRun:
        """The record of a training run, with `facts` that were measured in addition."""
        task = trained.task
        return TrainedRun(
            name=task.name,
            regime=task.regime,
            cells=task.cells,
            classes=task.classes,
            file=self.relative(path),
            bytes=path.stat().st_size,
            trainable_parameters=trained.trainable_parameters,
            total_parameters=trained.total_parameters,
            train_images=len(data.train),
            validation_images=task.record["metrics"]["validation_images"],
            validation_top1=trained.best_accuracy,
            loss=curve(trained, "loss"),
            validation=curve(trained, "validation_top1"),
            seconds=round(trained.seconds, 2),
            **facts,
        )

    def path(self, name: str) -> Path:
        """A task file."""
        return self.out / f"{name}.safetensors"

    def relative(self, path: Path) -> str:
        """A path relative to the folder, so that the folder can be moved."""
        return path.relative_to(self.out).as_posix()


class StepCounter(Progress):
    """Passes the steps of a training run on."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener

    def step(self, step: int) -> None:
        self.listener.advance()


def curve(trained: TrainResult, key: str) -> tuple[tuple[int, float], ...]:
    """(step, value) of every row of the history that has `key`."""
    return tuple((row["step"], row[key]) for row in trained.history if key in row)


def shortened(data: DataSource, settings: QuickstartSettings) -> DataSource:
    """The data with fewer images, where the settings say so."""
    counts = {part: getattr(settings, f"{part}_images") for part in data.parts}
    fewer: dict[str, Any] = {part: data.parts[part].take(count) for part, count in counts.items() if count}
    return replace(data, **fewer)


def one_of_each(images: ImageSet, classes: int, seed: int) -> ImageSet:
    """An image of every class, in the order of the classes."""
    drawn = images.take(classes, seed)
    return drawn.select(drawn.labels.argsort())


def describe_backbone(backbone: Backbone) -> dict[str, Any]:
    """The backbone in results.json."""
    return {
        "source": backbone.source,
        "fingerprint": backbone.fingerprint,
        "parameters": sum(parameter.numel() for parameter in backbone.parameters()),
        "bytes": (shipped_backbone() / "model.safetensors").stat().st_size,
        "image_size": list(backbone.preprocessing.image_size),
        "layers": backbone.depth,
        "dim": backbone.dim,
        "classes": list(backbone.classes),
    }


def describe_data(data: DataSource) -> dict[str, Any]:
    """The data in results.json."""
    counts = {part: len(images) for part, images in data.parts.items()}
    return {"spec": data.spec, "classes": list(data.classes), "split_digest": data.split_digest, **counts}


def check_folder(out: Path) -> None:
    """Creates the folder; MemtokError, before any work, if it cannot be created or written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out, prefix=".memtok.", suffix=".part"):
            pass
    except OSError as error:
        raise MemtokError(
            f"expected a folder that can be written for the results, found {out} ({error.strerror}); choose another",
            argument="out",
        ) from error


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch in the block: a model this small is not faster with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
