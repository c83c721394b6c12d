"""`train`: checks all arguments, prepares data and device, and makes a run of one task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Subset

from memtok.checks import composed
from memtok.data import DataSource, from_dataset, open_data
from memtok.errors import MemtokError
from memtok.folders import locked
from memtok.surroundings import plain_torch
from memtok.training.compiler import make_compiler
from memtok.training.device import Processes, moved, processes_for
from memtok.training.feed import check_traceable, make_feed
from memtok.training.head_alone import check_comparable
from memtok.training.progress import Progress, RichProgress
from memtok.training.recipes import Recipe
from memtok.training.regimes import Trainable, check_trainable, frozen_parts
from memtok.training.result import TrainResult
from memtok.training.run import Run, check_replaces_nothing
from memtok.training.settings import Settings, make_plan
from memtok.training.state import RunFolder


@plain_torch()
def train(
    task: Trainable,
    data: str | DataSource | Any,
    *,
    recipe: str | Recipe = "default",
    steps: int | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    accumulate: int = 1,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "float32",
    workers: int | None = None,
    augment: str | None = None,
    flip: bool | None = None,
    validate_every: int | None = None,
    validation_images: int | None = None,
    log_every: int | None = None,
    save_every: int | None = None,
    select: str | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_bad_image: str = "fail",
    data_dir: str | Path | None = None,
    split: str | None = None,
    keep_traces: str | None = None,
    trace_dir: str | Path | None = None,
    trace_limit: float | None = None,
    views: int | None = None,
    compile: bool | str = False,
    compare_head: bool | None = None,
    progress: bool | Progress = False,
) -> TrainResult:
    """Trains a Task, or a FullModel, in place and returns it with its best state loaded.

    data: a source as on the command line (`digits`, `folder:PATH`), a DataSource, or a torch Dataset of (picture,
        label). Its classes must be those of the task.
    recipe: "default", "paper" or a Recipe. steps or epochs (one of them), batch_size (images per step), learning_rate
        (the peak) and weight_decay replace what the recipe says.
    accumulate: parts that a batch is cut into to save memory; the gradients are those of the whole batch.
    seed: of order and augmentation; the same seed gives the same tensors, on the CPU bit for bit.
    device: "auto", "cpu" or "cuda". precision: "float32" or "bf16". workers: processes that load images.
    augment: "inception", "crop" or "none"; flip: mirror one image in two. By default both as the data set has them.
    validate_every: steps between validations, by default a tenth of the run; validation_images: how many each looks
        at. log_every: steps between lines of metrics. save_every: steps between saved states (default: a minute).
    select: what the best state is chosen by: "balanced", the mean recall of the classes (the default), "top1" or
        "loss"; of equal ones the lowest loss.
    out: the task file, `NAME.safetensors`; the best state goes there, all else into `NAME.run/`. None writes nothing.
    resume: go on from the saved state in `NAME.run/`, if there is one. overwrite: start anew where another run did a
        step or more. on_bad_image, data_dir, split: as in `open_data`, for data given by name. progress: True for a
        bar, or an object with the hooks of `Progress`.

    keep_traces: "ram", "disk" or "gpu" keeps the trunk's features of each image, so that it runs once; for tasks of
        regimes memory and head. trace_dir: a folder for "disk" (default: one per data set and backbone in the user's
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
    settings = Settings(
        recipe=recipe,
        steps=steps,
        epochs=epochs,
        batch_size=batch_size,
        accumulate=accumulate,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        seed=seed,
        device=device,
        precision=precision,
        workers=workers,
        augment=augment,
        flip=flip,
        validate_every=validate_every,
        validation_images=validation_images,
        log_every=log_every,
        save_every=save_every,
        select=select,
        out=None if out is None else Path(out),
        resume=resume,
        overwrite=overwrite,
        on_bad_image=on_bad_image,
        data_dir=data_dir,
        split=split,
        keep_traces=keep_traces,
        trace_dir=trace_dir,
        trace_limit=trace_limit,
        views=views,
        compile=compile,
        compare_head=compare_head,
    )
    check_trainable(task)
    check_comparable(task, compare_head)
    if settings.keep_traces is not None:
        check_traceable([task])
    check_replaces_nothing(settings)
    accelerator = processes_for(settings.device, settings.precision)
    with as_found(task):
        if settings.out is not None and RunFolder(settings.out).path.exists() and accelerator.is_main_process:
            with locked(RunFolder(settings.out).path):
                pass  # another run there is told of before the data are opened
        listener = progress if isinstance(progress, Progress) else RichProgress() if progress else Progress()
        if not accelerator.is_main_process:
            listener = Progress()
        try:
            return run(task, data, settings, accelerator, listener)
        finally:
            listener.close()


def run(
    task: Trainable,
    data: str | DataSource | Any,
    settings: Settings,
    accelerator: Processes,
    progress: Progress,
) -> TrainResult:
    """The part of `train` that works."""
    home = next(task.parameters()).device
    # A model that the caller put onto a GPU stays on that one.
    place = home if settings.device == "auto" and home.type != "cpu" else accelerator.device
    compiler = make_compiler(settings.compile, place)
    with accelerator.main_process_first():  # the first one writes a folder's split down, the others read it
        source = matching(open_source(data, task, settings, progress), task)
    plan = make_plan(settings, task.regime, source)
    folder = RunFolder(settings.out) if settings.out else None
    with ExitStack() as stack:
        stack.enter_context(moved([task, *frozen_parts(task)], place))
        feed = make_feed([task], source, plan, settings, accelerator, place, progress, compiler=compiler)
        stack.enter_context(closing(feed))
        state = folder.state if folder else None
        one = Run([task], source, [plan], settings, accelerator, place, progress, feed, compiler, state=state)
        if folder and accelerator.is_main_process:
            stack.enter_context(locked(folder.path))
        (result,) = one.run()
        return result


def open_source(data: str | DataSource | Any, task: Trainable, settings: Settings, progress: Progress) -> DataSource:
    """The data as a DataSource; MemtokError for a split of data that is split already or is not memtok's to split."""
    if isinstance(data, str):
        return open_data(
            data,
            data_dir=settings.data_dir,
            split=settings.split,
            on_bad_image=settings.on_bad_image,
            progress=progress.reading,
        )
    if settings.split is not None:
        raise MemtokError(
            f"expected split only with data given by name, found {settings.split!r} with a {type(data).__name__}; "
            "give it to open_data",
            argument="split",
        )
    if isinstance(data, DataSource):
        return data
    inner = data
    while isinstance(inner, Subset):
        inner = inner.dataset
    return from_dataset(data, None if hasattr(inner, "classes") else task.classes)


def matching(source: DataSource, task: Trainable) -> DataSource:
    """The data with its labels in the order of the task's classes; MemtokError unless they have the same classes."""
    wanted = tuple(composed(name) for name in task.classes)  # earlier versions took names as they came
    if source.classes == wanted:
        return source
    if set(source.classes) == set(wanted):
        return source.only(wanted)
    missing = [name for name in wanted if name not in source.classes]
    extra = [name for name in source.classes if name not in wanted]
    found = f"no {missing[0]!r} in {source.spec}" if missing else f"{extra[0]!r} in {source.spec} as well"
    advice = "make the task with classes=data.classes" if missing else "train on data.only(task.classes)"
    raise MemtokError(
        f"expected the {len(task.classes)} classes of {task.name!r} in the data, found {found} "
        f"({len(source.classes)} classes); {advice}",
        argument="data",
    )


@contextmanager
def as_found(task: nn.Module) -> Iterator[None]:
    """Leaves training modes as they were, and no gradients behind."""
    modes = [(module, module.training) for module in task.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter in task.parameters():
            parameter.grad = None
