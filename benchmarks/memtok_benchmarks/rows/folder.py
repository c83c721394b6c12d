"""Row `folder`: from a folder of photographs to the file of a trained task, over the trunk's pass over its views.

The folder has JPEG files in class folders, which memtok splits itself. Timed once, from opening the folder to the
written task file: regime head with a readout of all levels, the default recipe, statistics kept in memory (four views
of each training image, and the validation images). The unit is timm's own pass over a batch, measured before and after,
for as many images as the trunk ran on: no decoding, no transform. The peer is a linear probe as scikit-learn's users
make it: features of the training images by timm, one view, and logistic regression whose C is chosen by
cross-validation.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import memtok
from memtok.data import DataSource, batches, open_data
from memtok.data.transforms import Normaliser, evaluation_pixels
from memtok.task import Task
from memtok.training.progress import Progress, RunInfo
from memtok.training.recipes import RECIPES
from memtok.training.result import TrainResult
from memtok_benchmarks import contenders, peers
from memtok_benchmarks.lines import Entry, Line, RowResult
from memtok_benchmarks.photographs import write_photographs
from memtok_benchmarks.scene import Scene
from memtok_benchmarks.timing import Timing, race

BATCH = RECIPES["default"].batch_size
STRENGTHS = np.logspace(-4, 4, 10)
FOLDS = 5
PEER = "timm features, 1 view, and scikit-learn"


class Stages(Progress):
    """When the stages of a run ended, in seconds of `clock`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.ends: dict[str, float] = {}

    def reading(self, done: int, total: int) -> None:
        self.ends["opening"] = self.clock()

    def caching(self, what: str, done: int, total: int) -> None:
        self.ends["caching"] = self.clock()

    def start(self, info: RunInfo) -> None:
        self.ends["measuring"] = self.clock()

    def step(self, step: int) -> None:
        self.ends["training"] = self.clock()

    def seconds(self, begun: float, ended: float) -> dict[str, float]:
        """Of each stage; the last one is what comes after the last step."""
        found, last = {}, begun
        for name, end in [*self.ends.items(), ("ending", ended)]:
            found[name], last = end - last, end
        return found


@dataclass(frozen=True)
class Trained:
    """A run: its seconds, those of its stages, its result."""

    seconds: float
    stages: dict[str, float]
    result: TrainResult

    @property
    def images(self) -> int:
        """On how many images, views counted, the trunk ran."""
        kept = self.result.record["traces"]
        return int(kept["records"] + kept["validation_records"])


def folder(scene: Scene, clock: Callable[[], float] = time.perf_counter) -> RowResult:
    """One line."""
    sizes = scene.sizes
    with tempfile.TemporaryDirectory() as name, Scene(replace(sizes, batch=BATCH)) as unit:
        place = Path(name)
        write_photographs(place / "photographs", sizes.photographs, sizes.seed)
        passes = {"trunk": contenders.trunk(unit)}
        before = race(passes, rounds=sizes.rounds, synchronize=scene.synchronize, clock=clock)["trunk"]
        trained = train(scene, place, clock)
        probed = probe(scene, place, clock) if peers.installed("scikit-learn") else None
        after = race(passes, rounds=sizes.rounds, synchronize=scene.synchronize, clock=clock)["trunk"]
    trunk = Timing(before.seconds + after.seconds)
    over = trunk.median * trained.images / BATCH
    traces = trained.result.record["traces"]
    line = Line(
        what=f"from a folder of {sizes.photographs:,} photographs to a trained readout of all levels, "
        f"{trained.result.steps:,} steps, {traces['views']} views, over the trunk's pass over the views",
        memtok=Entry(label="memtok", value=trained.seconds / over),
        peers=(peer(probed, over),),
        must=sizes.asked(1.3),
    )
    note = (
        f"Folder: {trained.seconds:,.1f} s in all ({spelled(trained.stages)}); the trunk alone would take "
        f"{over:,.1f} s for {trained.images:,} images."
    )
    data = {
        "seconds": trained.seconds,
        "stages": trained.stages,
        "probe": probed,
        "images": trained.images,
        "trunk": trunk.to_json(),
    }
    return RowResult(lines=(line,), notes=(note,), data={"folder": data})


def peer(probed: dict[str, float] | None, over: float) -> Entry:
    """The linear probe, in seconds of its stages; None where scikit-learn is not installed."""
    if probed is None:
        return Entry(label=PEER, value=None, note="not installed: scikit-learn")
    return Entry(label=PEER, value=sum(probed.values()) / over, note=spelled(probed))


def spelled(stages: dict[str, float]) -> str:
    """Stages and their seconds, as text."""
    return ", ".join(f"{name} {seconds:,.1f} s" for name, seconds in stages.items())


def opened(place: Path, progress: Progress | None = None) -> DataSource:
    """The photographs, split by memtok as any folder without parts."""
    told = None if progress is None else progress.reading
    return open_data(f"folder:{place / 'photographs' / 'train'}", data_dir=place / "data", progress=told)


def train(scene: Scene, place: Path, clock: Callable[[], float]) -> Trained:
    """The run, as `memtok train --regime head --readout all --keep-traces ram` makes it."""
    sizes, stages = scene.sizes, Stages(clock)
    backbone = scene.backbone
    begun = clock()
    source = opened(place, stages)
    levels = backbone.depth + 1
    task = Task.create(backbone, name="task", classes=source.classes, regime="head", readout=levels, seed=sizes.seed)
    result = memtok.train(
        task,
        source,
        steps=sizes.steps,
        device=sizes.device,
        precision=sizes.precision,
        keep_traces="ram",
        progress=stages,
        out=place / "task.safetensors",
    )
    ended = clock()
    return Trained(ended - begun, stages.seconds(begun, ended), result)


def probe(scene: Scene, place: Path, clock: Callable[[], float]) -> dict[str, float]:
    """Seconds of the features of the training images, decoding included, and of the fit."""
    begun = clock()
    source, vit = opened(place), scene.backbone.vit
    normalise = Normaliser(scene.backbone.preprocessing)
    features, labels = [], []
    for pixels, answers, _ in batches(source.train, evaluation_pixels(scene.backbone.preprocessing), batch_size=BATCH):
        with torch.inference_mode():
            images = normalise(pixels.to(scene.device)).to(scene.dtype)
            features.append(vit.forward_head(vit.forward_features(images), pre_logits=True).float().cpu())
        labels.append(answers)
    extracted = clock()
    fit(torch.cat(features).numpy(), torch.cat(labels).numpy())
    return {"features": extracted - begun, "fit": clock() - extracted}


def fit(features: Any, labels: Any) -> Any:
    """scikit-learn's logistic regression on standardised features (n, D) and labels (n,)."""
    linear_model, selection = peers.package("sklearn.linear_model"), peers.package("sklearn.model_selection")
    model = peers.package("sklearn.pipeline").make_pipeline(
        peers.package("sklearn.preprocessing").StandardScaler(), linear_model.LogisticRegression(max_iter=1000)
    )
    search = selection.GridSearchCV(model, {"logisticregression__C": STRENGTHS}, cv=FOLDS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fit that has not converged, a class of few images: it is timed, not judged
        return search.fit(features, labels)
