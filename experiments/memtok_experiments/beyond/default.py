"""The column `default`: what `memtok train` makes of the images where nobody says what to train, and how."""

from __future__ import annotations

import time

from memtok.task import Task
from memtok.training import choose_form, train
from memtok.training.forms import FORMS, STEPS
from memtok.training.recipes import GRADIENT
from memtok_experiments.beyond.records import TrialRecord
from memtok_experiments.beyond.trials import Place, Trial, cost


def train_default(place: Place, trial: Trial, steps: int) -> tuple[Task, TrialRecord]:
    """The task and its record, of so many `steps` if its form takes steps; writes its file.

    The form is chosen on the training images, the rate is the recipe's, and images are augmented as the data set has
    it, unless the settings say how. The seconds are of all: choice, with its pass of the trunk, and training.
    """
    common = place.settings.training(place.seed) | {"data_dir": None}
    of_steps = {name: common.pop(name) for name in ("recipe", "batch_size", "accumulate")}
    augment, flip = common.pop("augment"), common.pop("flip")
    del common["epochs"], common["steps"]
    path = place.folder / f"{trial.name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    choice = choose_form(place.backbone, place.source, steps=min(STEPS, steps), **common, **of_steps)
    form = FORMS[choice.name]
    task = Task.create(
        place.backbone, name=trial.column.name, classes=place.source.classes, seed=place.seed, **form.options
    )
    if form.solver == GRADIENT:
        common |= of_steps | {"steps": steps, "augment": augment, "flip": flip, "keep_traces": "ram"}
        common |= {"views": place.settings.views} if augment != "none" else {}
    result = train(task, place.source, solver=form.solver, **common)
    seconds = time.perf_counter() - begun
    task.save(path)
    record = place.record_of(
        trial,
        strength=None,
        form=choice.name,
        validation=result.final_accuracy,
        diverged=result.diverged_at is not None,
        parameters=sum(parameter.numel() for parameter in task.parameters()),
        bytes=path.stat().st_size,
        seconds=round(seconds, 3),
        trunk_seconds=0.0,
        together=1,
        cost=round(cost(task, place.backbone), 4),
    )
    return task, record
