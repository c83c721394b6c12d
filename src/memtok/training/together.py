"""Many tasks trained at once on one data set, over one pass of the trunk: `train_together`.

Tasks that compose never see each other, so the gradient of the sum of their losses is, for each task, that of its own
loss. Every task has its own optimizer, rate, decay and clipping and ends with the tensors that it would have alone (to
float32 rounding); only the trunk's pass over the images is shared. A task whose loss stops being finite is put back to
its initial values, and the others go on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from memtok.data import DataSource
from memtok.data.content import training_content
from memtok.errors import Argument, MemtokError
from memtok.folders import locked
from memtok.intervals import Right
from memtok.metrics import Score, answered, score_of
from memtok.model import MemoryViT
from memtok.surroundings import plain_torch
from memtok.task import Task, topological
from memtok.traces import KeptBatch, OpenStores
from memtok.training.compiler import Compiler, compiling, make_compiler
from memtok.training.device import OneProcess, accelerator_for, add_up, moved, same_start
from memtok.training.engine import Engine, found, share_of_loss
from memtok.training.feed import Feed, make_feed
from memtok.training.interrupts import Interrupts
from memtok.training.loop import as_found, matching, open_source
from memtok.training.optim import optimizer_tensors, restore_optimizer
from memtok.training.progress import Progress, RichProgress, RunInfo
from memtok.training.recipes import images_seen
from memtok.training.regimes import answers, check_trainable, count_parameters, frozen_parts
from memtok.training.result import TrainResult, make_record
from memtok.training.session import configuration
from memtok.training.settings import SAVE_SECONDS, Plan, Settings, make_plan
from memtok.training.state import RunState, Validation, check_same_run
from memtok.training.together_state import SavedRun, TaskState, read_run, write_run

OF_ONE_TASK = ("out", "resume", "overwrite", "save_every", "validate_every", "select", "compare_head")


@plain_torch()
def train_together(
    tasks: Sequence[Task],
    data: str | DataSource | Any,
    *,
    learning_rates: Sequence[float] | None = None,
    weight_decays: Sequence[float] | None = None,
    state: str | Path | None = None,
    until: int | None = None,
    begun: SavedRun | None = None,
    stores: OpenStores | None = None,
    progress: bool | Progress = False,
    **shared: Any,
) -> list[TrainResult]:
    """Trains composable tasks of one backbone at once, in place; returns their results in order.

    learning_rates, weight_decays: one per task, else as the recipe has them. state: a file that the run is saved to
    now and then and goes on from if it is there; removed by nobody. shared: arguments of `train`, the same for all:
    recipe, steps or epochs, batch_size, accumulate, seed, device, precision, workers, augment, flip, validation_images,
    log_every, on_bad_image, data_dir, keep_traces, trace_dir, trace_limit, views, compile. The tasks are validated
    once, after the last step, and keep their last state.
    until: stop after that many steps of the run, as if it went on: rates are those of the whole run. begun: the state
    of these tasks from which to go on, where `state` has none, such as `read_run(path).pick(...)` of a run until there.
    stores: stores of kept traces that stay open for later runs, `memtok.traces.OpenStores`; who made them closes them.

    Tasks that extend the same task are computed as one family: one that diverges takes its family with it.
    A task that diverged has `diverged_at` set in its result, an accuracy of 0, and its initial values.
    Raises MemtokError for tasks that cannot share a pass and for bad arguments.
    """
    for name in (*OF_ONE_TASK, "learning_rate", "weight_decay"):
        if name in shared:
            raise MemtokError(f"expected no {Argument(name)} for tasks trained together, found one; leave it out")
    settings = Settings(**shared)
    check_together(tasks, {"learning_rates": learning_rates, "weight_decays": weight_decays})
    listener = progress if isinstance(progress, Progress) else RichProgress() if progress else Progress()
    with ExitStack() as stack:
        accelerator = stack.enter_context(accelerator_for(settings.device, settings.precision))
        if not accelerator.is_main_process:
            listener = Progress()
        stack.callback(listener.close)
        for task in tasks:
            stack.enter_context(as_found(task))
        home = tasks[0].class_tokens.device
        place = home if settings.device == "auto" and home.type != "cpu" else accelerator.device
        compiler = make_compiler(settings.compile, place)
        with accelerator.main_process_first():
            source = matching(open_source(data, tasks[0], settings, listener), tasks[0])
        common = replace(make_plan(settings, tasks[0].regime, source), select=None)  # they keep their last state
        plans = [
            replace(
                common,
                learning_rate=common.learning_rate if learning_rates is None else float(learning_rates[index]),
                weight_decay=common.weight_decay if weight_decays is None else float(weight_decays[index]),
            )
            for index in range(len(tasks))
        ]
        stack.enter_context(moved(modules_of(tasks), place))
        path = None if state is None else Path(state)
        if path is not None and accelerator.is_main_process:
            stack.enter_context(locked(path.parent, lock_of(path).name))
        stack.enter_context(compiling(compiler))
        feed = make_feed(tasks, source, common, settings, accelerator, place, listener, stores, compiler)
        stack.enter_context(closing(feed))
        together = Together(tasks, source, plans, accelerator, place, listener, path, feed, begun, compiler)
        return together.run(until)


def lock_of(state: Path) -> Path:
    """The file that is locked while tasks train together with this saved state. It stays; nobody needs it then."""
    return state.with_name(f".{state.name}.lock")


def check_together(tasks: Sequence[Task], per_task: Mapping[str, Sequence[float] | None]) -> None:
    """MemtokError unless these tasks can be trained in one pass."""
    if not tasks or not all(isinstance(task, Task) for task in tasks):
        raise MemtokError(
            "expected a list of tasks to train together, found another; make them with Task.create", argument="tasks"
        )
    for task in tasks:
        check_trainable(task)
        if task.classes != tasks[0].classes:
            raise MemtokError(
                f"expected tasks of the same classes, found others in {task.name!r} than in {tasks[0].name!r}; "
                "train them apart",
                argument="tasks",
            )
    for name, values in per_task.items():
        if values is not None and len(values) != len(tasks):
            raise MemtokError(
                f"expected {len(tasks)} {Argument(name)}, one per task, found {len(values)}; give one for each"
            )
        for value in values or ():
            if not math.isfinite(value) or value < 0 or (value == 0 and name == "learning_rates"):
                raise MemtokError(f"expected finite {Argument(name)} above 0, found {value!r}; change it")


def modules_of(tasks: Sequence[Task]) -> list[torch.nn.Module]:
    """The tasks and all that their passes need, each once."""
    everything = [part for task in tasks for part in (task, *frozen_parts(task))]
    return list({id(module): module for module in everything}.values())


class Together:
    """One run of several tasks, from its start or its saved state to its end. Modules are on `device` already."""

    def __init__(
        self,
        tasks: Sequence[Task],
        data: DataSource,
        plans: Sequence[Plan],
        accelerator: Accelerator | OneProcess,
        device: torch.device,
        progress: Progress,
        path: Path | None,
        feed: Feed,
        begun: SavedRun | None = None,
        compiler: Compiler | None = None,
    ) -> None:
        self.tasks, self.data, self.plans, self.plan = tasks, data, plans, plans[0]
        self.accelerator, self.device, self.progress, self.path = accelerator, device, progress, path
        self.feed, self.begun, self.until = feed, begun, self.plan.steps
        self.engines = [Engine(task, plan, accelerator, device) for task, plan in zip(tasks, plans, strict=True)]
        names = [task.name for task in tasks]
        self.model = MemoryViT(tasks[0].backbone, topological(tasks)).select(names)
        self.model.run_with(compiler.layers if compiler else None)
        self.initial = [engine.snapshot() for engine in self.engines]
        content = "" if path is None and begun is None else training_content(data)
        self.configs = [configuration(task, data, plan, content) for task, plan in zip(tasks, plans, strict=True)]
        self.step, self.seconds = 0, 0.0
        self.pending: list[Tensor] = []
        self.history: list[list[dict[str, Any]]] = [[] for _ in tasks]
        self.diverged: list[int | None] = [None for _ in tasks]

    def run(self, until: int | None = None) -> list[TrainResult]:
        """Goes to step `until` (the last one if None), validates and returns the results."""
        if until is not None and not 0 < until <= self.plan.steps:
            raise MemtokError(
                f"expected until from 1 to {self.plan.steps}, the steps of the run, found {until}; change it",
                argument="until",
            )
        self.until = self.plan.steps if until is None else until
        self.restore()
        self.progress.start(self.info())
        begun = saved = time.perf_counter()
        before = self.seconds
        with Interrupts(active=self.path is not None and self.accelerator.num_processes == 1) as interrupts:
            for batch, labels, _ in self.feed.training(self.step, self.until):
                self.pending.append(self.train_step(batch, labels))
                self.step += 1
                self.progress.step(self.step)
                self.seconds = before + time.perf_counter() - begun
                if self.step % self.plan.log_every == 0 or self.step == self.until:
                    self.log()
                stops = interrupts.pending is not None
                due = self.step == self.until or time.perf_counter() - saved >= SAVE_SECONDS
                if self.path and (stops or due):
                    self.save()
                    saved = time.perf_counter()
                if stops:
                    interrupts.deliver()
        validations = self.validate()
        return [self.result(index, *validations[index]) for index in range(len(self.tasks))]

    def train_step(self, batch: Tensor | KeptBatch, labels: Tensor) -> Tensor:
        """One step of every task on a batch and its labels (B,); returns (tasks, 2): losses, gradient norms."""
        for engine in self.engines:
            engine.begin(self.step)
        losses = [torch.zeros((), device=self.device, dtype=torch.float32) for _ in self.tasks]
        for part, targets, weight in self.engines[0].parts(batch, labels):
            with self.accelerator.autocast():
                out = answers(self.model, part)
            shares = [share_of_loss(out[task.name], targets, weight / len(labels)) for task in self.tasks]
            self.accelerator.backward(torch.stack(shares).sum())
            for loss, share in zip(losses, shares, strict=True):
                loss += share.detach()
        return torch.stack([engine.apply(loss) for engine, loss in zip(self.engines, losses, strict=True)])

    def log(self) -> None:
        """Reads the losses since the last time, notices who diverged, and tells the progress."""
        values = torch.stack(self.pending).to("cpu", torch.float64)  # (steps, tasks, 2); waits for the device
        first = self.step - len(values) + 1
        self.pending = []
        for index, engine in enumerate(self.engines):
            finite = values[:, index].isfinite().all(dim=1).tolist()
            if self.diverged[index] is None and not all(finite):
                self.diverged[index] = first + finite.index(False)
            if self.diverged[index] is None:
                loss, norm = values[:, index].mean(dim=0).tolist()
                rate = engine.rate(self.step - 1)
                self.history[index].append(
                    {"step": self.step, "loss": loss, "learning_rate": rate, "gradient_norm": norm}
                )
        alive = [rows[-1]["loss"] for rows, lost in zip(self.history, self.diverged, strict=True) if lost is None]
        seen = images_seen(self.step, self.plan.train_images, self.plan.batch_size)
        self.progress.log(
            {
                "step": self.step,
                "epoch": round(seen / self.plan.train_images, 4),
                "loss": min(alive, default=math.nan),
                "learning_rate": self.engines[0].rate(self.step - 1),
                "gradient_norm": 0.0 if not alive else max(rows[-1]["gradient_norm"] for rows in self.history if rows),
                "images_per_second": round(seen / max(self.seconds, 1e-9), 2),
                "seconds": round(self.seconds, 3),
            }
        )

    @torch.no_grad()
    def validate(self) -> list[tuple[Validation, Score, Right]]:
        """What every task answers on the N validation images, its loss, and (N,) bool: which are answered right."""
        shape = len(self.tasks), 3, self.plan.validation_images
        given = torch.zeros(shape, dtype=torch.int64, device=self.device)
        losses = torch.zeros(len(self.tasks), dtype=torch.float64, device=self.device)
        with self.model.folded():
            for batch, labels, own in self.engines[0].shares(self.feed.validation()):
                with self.accelerator.autocast():
                    out = answers(self.model, batch)
                logits = [out[task.name].float() for task in self.tasks]
                given[:, :, own] = torch.stack([answered(one, labels) for one in logits])
                losses += torch.stack([F.cross_entropy(one, labels, reduction="sum") for one in logits])
        (losses,) = add_up(self.accelerator, [losses])
        (given,) = add_up(self.accelerator, [given])
        looks = []
        for task, loss, own_answers in zip(self.tasks, losses.cpu(), given.cpu(), strict=True):
            score = score_of(task.classes, own_answers)
            looks.append((found(self.step, loss, score), score, (own_answers[2] < 1).numpy()))
        return looks

    def result(self, index: int, validation: Validation, score: Score | None, right: Right) -> TrainResult:
        """What one task came to; a diverged one gets its initial values back."""
        task, plan, engine = self.tasks[index], self.plans[index], self.engines[index]
        finite = all(bool(parameter.isfinite().all()) for parameter in engine.parameters)
        if self.diverged[index] is None and not (finite and math.isfinite(validation.loss)):
            self.diverged[index] = self.step
        if self.diverged[index] is not None:
            engine.load(self.initial[index])
            validation = Validation(step=self.step, top1=0.0, top5=0.0, loss=0.0, balanced=0.0)
            score = None
        state = RunState(step=self.step, seconds=self.seconds, best=validation, last=validation)
        record = make_record(task, self.data, plan, state, validation, self.device.type)
        record["together"] = len(self.tasks)
        record |= self.feed.record()
        if self.diverged[index] is not None:
            record["metrics"] = {"diverged_at": self.diverged[index]}
        task.record = record
        trained, total = count_parameters(task)
        return TrainResult(
            model=task,
            steps=self.step,
            best_step=self.step,
            best_accuracy=validation.top1,
            final_accuracy=validation.top1,
            best_balanced=validation.balanced,
            final_balanced=validation.balanced,
            score=score,
            history=self.history[index],
            seconds=self.seconds,
            images_per_second=images_seen(self.step, plan.train_images, plan.batch_size) / max(self.seconds, 1e-9),
            trainable_parameters=trained,
            total_parameters=total,
            left_out=self.data.left_out,
            split_digest=self.data.split_digest,
            out=None,
            record=record,
            diverged_at=self.diverged[index],
            validation_right=None if self.diverged[index] is not None else right,
        )

    # The saved state

    def save(self) -> None:
        """Writes all that going on needs, atomically."""
        if self.path is None or not self.accelerator.is_main_process:
            return
        columns = zip(self.tasks, self.engines, self.configs, self.initial, self.history, self.diverged, strict=True)
        states = tuple(
            TaskState(config, engine.snapshot(), initial, optimizer_tensors(task, engine.optimizer), history, diverged)
            for task, engine, config, initial, history, diverged in columns
        )
        write_run(self.path, SavedRun(states, self.step, self.seconds, tuple(self.pending)))

    def restore(self) -> None:
        """Takes over the saved state, if there is one of this very run, else what the run is to begin with."""
        saved = read_run(self.path) if self.path else None
        if saved is None and self.begun is None:
            for engine in self.engines:
                same_start(self.accelerator, engine.parameters)
            return
        where = self.path if saved is not None else None
        saved = saved or self.begun
        assert saved
        if len(saved.tasks) != len(self.tasks):
            raise MemtokError(
                f"expected the state of {len(self.tasks)} tasks in {where or 'begun'}, found that of "
                f"{len(saved.tasks)}; delete it, or train the same tasks"
            )
        if saved.step > self.until:
            raise MemtokError(
                f"expected a state of step {self.until} at most in {where or 'begun'}, found one of step {saved.step}; "
                "delete it to start anew"
            )
        for index, (task, engine, state) in enumerate(zip(self.tasks, self.engines, saved.tasks, strict=True)):
            check_same_run(state.config, self.configs[index], where or Path("begun"), "delete it to start anew")
            engine.load(state.parameters)
            restore_optimizer(task, engine.optimizer, state.optimizer, str(where or "begun"))
            self.initial[index] = state.initial
            self.history[index], self.diverged[index] = list(state.history), state.diverged
        self.pending = [values.to(self.device) for values in saved.pending]
        self.step, self.seconds = saved.step, saved.seconds

    def info(self) -> RunInfo:
        """What progress is told at the start."""
        plan = self.plan
        counts = [count_parameters(task) for task in self.tasks]
        rates = sorted({each.learning_rate for each in self.plans})
        return RunInfo(
            name=f"{len(self.tasks)} tasks together",
            regime=", ".join(sorted({task.regime for task in self.tasks})),
            classes=len(self.tasks[0].classes),
            trainable_parameters=sum(own for own, _ in counts),
            total_parameters=sum(own for own, _ in counts) + counts[0][1] - counts[0][0],
            train_images=plan.train_images,
            validation_images=plan.validation_images,
            steps=self.until,
            start_step=self.step,
            epochs=plan.steps / plan.steps_per_epoch,
            batch_size=plan.batch_size,
            learning_rate=rates[-1],
            recipe=plan.recipe,
            augment=plan.augment,
            device=self.device.type,
            precision=plan.precision,
            out=self.path,
        )
