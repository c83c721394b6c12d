"""`train`: one task, or one model, from its settings to its result."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec

from memtok.data import DataSource
from memtok.surroundings import plain_torch
from memtok.training.feed import check_traceable
from memtok.training.head_alone import check_comparable
from memtok.training.plan import Plan, make_plan
from memtok.training.regimes import Trainable, check_trainable
from memtok.training.result import TrainResult
from memtok.training.run import Run
from memtok.training.saving import as_it_began, check_replaces_nothing
from memtok.training.settings import Settings
from memtok.training.setup import check_solvable, check_start, set_up
from memtok.training.state import RunFolder, read_run

Keywords = ParamSpec("Keywords")
Data = str | DataSource | Any


def takes_keywords_of(
    settings: Callable[Keywords, Settings],
) -> Callable[
    [Callable[[Trainable, Data, Settings], TrainResult]], Callable[Concatenate[Trainable, Data, Keywords], TrainResult]
]:
    """Makes a function whose last argument is `Settings` one that takes the fields of `Settings` as keywords."""

    def decorate(function: Callable[[Trainable, Data, Settings], TrainResult]) -> Any:
        @wraps(function)
        def call(task: Trainable, data: Data, *none: Keywords.args, **keywords: Keywords.kwargs) -> TrainResult:
            return function(task, data, settings(*none, **keywords))

        own = inspect.signature(function)
        *first, _ = own.parameters.values()
        parameters = [*first, *inspect.signature(settings).parameters.values()]
        made: Any = call
        made.__signature__ = own.replace(parameters=parameters)
        return made

    return decorate


@plain_torch()
@takes_keywords_of(Settings)
def train(task: Trainable, data: str | DataSource | Any, settings: Settings) -> TrainResult:
    """Trains a Task, or a FullModel, in place and returns it with its best state loaded.

    data: a source as on the command line (`digits`, `folder:PATH`), a DataSource, or a torch Dataset of (picture,
        label). Its classes must be those of the task.
    recipe: "default", "paper" or a Recipe. steps or epochs (one of them), batch_size (images per step), learning_rate
        (the peak), weight_decay and label_smoothing (the share of every target that is spread over all classes)
        replace what the recipe says.
    accumulate: parts that a batch is cut into to save memory; the gradients are those of the whole batch.
    seed: of order and augmentation; the same seed gives the same tensors, on the CPU bit for bit.
    device: "auto", "cpu" or "cuda". precision: "float32" or "bf16". workers: processes that load images.
    start: "zero" or "ridge", where a readout starts: at no change of the answers, or at the ridge regression of the
        labels on all that it reads, its strength chosen by cross-fitting; needs a task with a readout.
    balance: "none", or for classes of unequal size "weights" (one over the images of a class, in the loss), "sampling"
        (an epoch shows each class equally often) or "logits" (logit adjustment, in the loss); by default what the
        recipe says, "default" of the recipes has "logits". See docs/training.md.
    solver: "gradient" or "ridge": with the latter that ridge regression is the trained task, after one pass over the
        images and no step. It needs a task that trains a readout and a head alone, such as one of regime "readout".
        Images are looked at as they are unless augment, flip, views or keep_traces is given, then in all their views.
    augment: "inception", "light", "crop" or "none"; flip: mirror one image in two. By default as the data set has them.
    validate_every: steps between validations, by default a tenth of the run; validation_images: how many each looks
        at. log_every: steps between lines of metrics. save_every: steps between saved states (default: a minute).
    select: what the best state is chosen by: "balanced", the mean recall of the classes (the default), "top1" or
        "loss"; of equal ones the lowest loss. patience: end the run after so many validations in a row without a
        better one; None: it has its whole length.
    out: the task file, `NAME.safetensors`; the best state goes there, all else into `NAME.run/`. None writes nothing.
    resume: go on from the saved state in `NAME.run/`, if there is one. overwrite: start anew where another run did a
        step or more. on_bad_image, data_dir, split: as in `open_data`, for data given by name. progress: True for a
        bar, or an object with the hooks of `Progress`.

    keep_traces: "ram", "disk" or "gpu" keeps the trunk's features of each image, so that it runs once; for tasks
        that compose. trace_dir: a folder for "disk" (default: one per data set and backbone in the user's
        cache). trace_limit: gigabytes at most (default: half of what is free). views: how many ways each image is
        varied in, where it is varied (default 4): epoch e shows way e % views. See docs/traces.md.
    compile: True runs trunk and streams, or in other regimes the whole model, through `torch.compile`; a name is that
        of one of its backends. It changes the result by rounding only and may change when a run goes on.
    compare_head: True also trains a head alone on the same images when the run is over, and `result.head_alone` says
        how much better the task is; None does so where it costs little beside the run. See docs/training.md.

    The backbone, what the task extends and the global random generators stay as they are; runs may go on in several
    threads at once. Raises MemtokError for bad arguments, before anything is written, and when a loss is not finite.
    Where `out` is given, Ctrl-C and SIGTERM wait until the step is done and saved, a second one does not; see
    docs/training.md.
    """
    check_trainable(task)
    check_comparable(task, settings.compare_head)
    check_start(task, settings)
    check_solvable(task, settings)
    if settings.keep_traces is not None:
        check_traceable([task])
    check_replaces_nothing(settings)
    folder = None if settings.task_file is None else RunFolder(settings.task_file)
    state, lock = (None, None) if folder is None else (folder.state, folder.lock)

    def plans(source: DataSource) -> list[Plan]:
        saved = read_run(state) if state and settings.resume else None
        return as_it_began([make_plan(settings, task.regime, source)], settings, saved)

    with set_up([task], data, settings, plans, state=state, lock=lock) as setup:
        (result,) = Run(setup).run()
        return result
