"""A run of N tasks: steps, log, validation, saved states, results. `train` (N = 1) and `train_together` make one each.

Nothing here waits for the device between two log entries: losses and gradient norms stay there and are read, and
checked, together. What a run does follows from its configuration; times only decide when it saves its state.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memtok.confusion import write_confusion
from memtok.data import DataSource
from memtok.data.content import training_content
from memtok.errors import Argument, DivergedError, MemtokError
from memtok.files import write_json
from memtok.metrics import score_of
from memtok.training.compiler import Compiler
from memtok.training.device import Processes, same_start
from memtok.training.feed import Feed
from memtok.training.head_alone import HeadAlone, is_due, train_head
from memtok.training.interrupts import Interrupted, Interrupts
from memtok.training.logbook import Logbook
from memtok.training.progress import Progress, RunInfo
from memtok.training.recipes import images_seen
from memtok.training.regimes import FullModel, Trainable, count_parameters
from memtok.training.result import TrainResult, make_record
from memtok.training.settings import SAVE_SECONDS, SAVE_SHARE, Plan, Settings
from memtok.training.state import (
    CONFUSION,
    TOP1,
    RunFolder,
    RunState,
    TaskState,
    Validation,
    check_same_run,
    check_tensors,
    read_run,
    write_run,
)
from memtok.training.trainer import Trainer, load, snapshot


class Run:
    """A run of N tasks from its start, or from its saved state, to its end. Modules are on `device` already.

    settings: what its tasks share; `out`, `resume`, `save_every` and `compare_head` are for one task. state: the file
    that the run is saved to and goes on from. together: a task that diverges leaves the others alone, in place of
    ending the run, and is reported with its initial values. begun: where to begin if there is no saved state.
    """

    def __init__(
        self,
        tasks: Sequence[Trainable],
        data: DataSource,
        plans: Sequence[Plan],
        settings: Settings,
        accelerator: Processes,
        device: torch.device,
        progress: Progress,
        feed: Feed,
        compiler: Compiler | None = None,
        *,
        state: Path | None = None,
        together: bool = False,
        begun: RunState | None = None,
    ) -> None:
        self.tasks, self.data, self.plans, self.plan, self.settings = tasks, data, list(plans), plans[0], settings
        self.accelerator, self.device, self.progress, self.feed = accelerator, device, progress, feed
        self.path, self.together, self.begun, self.until = state, together, begun, self.plan.steps
        self.folder = RunFolder(settings.out) if settings.out else None
        self.writes = state is not None and accelerator.is_main_process
        self.trainer = Trainer(tasks, plans, accelerator, device, compiler)
        self.optimizer = self.trainer.optimizer
        content = "" if state is None and begun is None else training_content(data)
        self.state = RunState(
            [
                TaskState(configuration(task, data, plan, content), snapshot(task))
                for task, plan in zip(tasks, plans, strict=True)
            ]
        )
        self.logbook: Logbook | None = None
        self.saved_step: int | None = None
        # Several processes would have to stop after the same step.
        self.interrupts = Interrupts(active=self.writes and accelerator.num_processes == 1)

    def run(self, until: int | None = None) -> list[TrainResult]:
        """Goes to step `until` (the last one if None) and returns the results, the best states loaded."""
        if until is not None and not 0 < until <= self.plan.steps:
            raise MemtokError(
                f"expected until from 1 to {self.plan.steps}, the steps of the run, found {until}; change it"
            )
        self.until = self.plan.steps if until is None else until
        with ExitStack() as stack:
            check_replaces_nothing(self.settings)
            resumed = self.restore()
            self.start_clocks()
            self.prepare_folder(resumed)
            self.progress.start(self.info())
            if self.writes and self.folder:
                self.logbook = Logbook(self.folder, self.state.tasks[0].history)
                stack.callback(self.logbook.close)
            stack.enter_context(self.interrupts)
            self.train_steps()
            return [self.finish(number) for number in range(len(self.tasks))]

    # Starting and resuming

    def restore(self) -> bool:
        """Takes over the saved state, or the one to begin with, and returns whether there is one to go on from."""
        asked = self.settings.resume or not self.folder
        saved = read_run(self.path) if self.path and asked else None
        where = self.path if saved is not None else None
        saved = saved or self.begun
        if saved is None:
            if self.folder and self.settings.resume:
                self.progress.message(f"no saved state in {self.folder.path}: starting anew")
            same_start(self.accelerator, [parameter for task in self.tasks for parameter in task.parameters()])
            return False
        self.check(saved, where)
        for number, (task, state) in enumerate(zip(self.tasks, saved.tasks, strict=True)):
            load(task, state.parameters)
            self.optimizer.restore(number, state.optimizer, str(where or "begun"))
        tasks = [replace(state, history=list(state.history)) for state in saved.tasks]  # `begun` is the caller's
        self.state = replace(saved, tasks=tasks, pending=[values.to(self.device) for values in saved.pending])
        self.saved_step = self.state.step
        return True

    def check(self, saved: RunState, where: Path | None) -> None:
        """MemtokError unless a saved state is one of this very run. where: its file, None where it was given."""
        place = where or "begun"
        if len(saved.tasks) != len(self.tasks):
            raise MemtokError(
                f"expected the state of {len(self.tasks)} tasks in {place}, found that of {len(saved.tasks)}; delete "
                "it, or train the same tasks"
            )
        for number, (task, state) in enumerate(zip(self.tasks, saved.tasks, strict=True)):
            if self.folder:
                found = self.as_of_today(number, state.config)
                check_same_run(found, self.state.tasks[number].config, self.folder.path)
            else:
                expected = self.state.tasks[number].config
                check_same_run(state.config, expected, Path(place), "delete it to start anew")
            check_tensors(state, dict(task.named_parameters()), str(place))
        if saved.step > self.until:
            raise MemtokError(
                f"expected a state of step {self.until} at most in {place}, found one of step {saved.step}; delete it "
                "to start anew"
            )

    def as_of_today(self, number: int, config: dict[str, Any]) -> dict[str, Any]:
        """The configuration of a saved run. Version 0.1 chose by top-1 and did not say so; its runs go on like that."""
        if "select" in config:
            return config
        if self.settings.select is None:
            self.plan = self.plans[number] = replace(self.plans[number], select=TOP1)
            self.state.tasks[number].config |= {"select": TOP1}
        return config | {"select": TOP1}

    def prepare_folder(self, resumed: bool) -> None:
        """Makes the run folder ready. A fresh run saves its state at once: killed early, it begins with the same."""
        self.accelerator.wait_for_everyone()  # nobody writes before everybody has read
        if not (self.writes and self.folder):
            return
        self.folder.clear_remains()
        if not resumed:
            self.folder.clear()
            write_json(self.folder.config, self.state.tasks[0].config)
            write_json(self.folder.split, self.data.split)
            self.save()

    def start_clocks(self) -> None:
        """Sets the marks that times and rates are counted from; the state has what earlier sessions took."""
        now = time.perf_counter()
        self.seconds_before = self.state.seconds
        self.started = self.training_since = self.saved_at = now
        self.save_cost = 0.0
        self.marked_images, self.marked_seconds = self.images, self.state.training_seconds

    def info(self) -> RunInfo:
        """What progress is told at the start."""
        plan, first = self.plan, self.tasks[0]
        counts = [count_parameters(task) for task in self.tasks]
        return RunInfo(
            name=f"{len(self.tasks)} tasks together" if self.together else first.name,
            regime=", ".join(sorted({task.regime for task in self.tasks})),
            classes=len(first.classes),
            trainable_parameters=sum(own for own, _ in counts),
            total_parameters=sum(own for own, _ in counts) + counts[0][1] - counts[0][0],
            train_images=plan.train_images,
            validation_images=plan.validation_images,
            steps=self.until,
            start_step=self.state.step,
            epochs=plan.steps / plan.steps_per_epoch,
            batch_size=plan.batch_size,
            learning_rate=max(each.learning_rate for each in self.plans),
            recipe=plan.recipe,
            augment=plan.augment,
            device=self.device.type,
            precision=plan.precision,
            out=self.settings.out or self.path,
        )

    # Steps

    @property
    def images(self) -> int:
        """Images seen so far."""
        return images_seen(self.state.step, self.plan.train_images, self.plan.batch_size)

    def train_steps(self) -> None:
        """All steps that are left, with what is due after each."""
        self.trainer.set_mode(training=True)
        if self.owes_validation():
            self.validate()
            self.save()
        if self.state.step == self.until:
            return
        for batch, labels, _ in self.feed.training(self.state.step, self.until):
            self.state.pending.append(self.trainer.step(self.state.step, batch, labels))
            self.state.step += 1
            self.progress.step(self.state.step)
            self.after_step()

    def after_step(self) -> None:
        """Log, validate and save, each when it is due. Nothing is written before the losses since were checked."""
        step = self.state.step
        logs = step % self.plan.log_every == 0 or step == self.until
        validates = self.validation_is_due()
        stops = self.interrupts.pending is not None
        every = self.settings.save_every
        saves = validates or stops or (step % every == 0 if every else self.save_is_due())
        if not (logs or saves):
            return
        values = self.check_pending()  # waits for the device
        if validates or (saves and not self.together):
            self.check_parameters()
        now = time.perf_counter()
        self.state.training_seconds += now - self.training_since
        if logs:
            self.log(values)
        if validates:
            self.validate()
        if saves:
            self.save()
        if stops:
            self.interrupts.deliver()
        self.training_since = time.perf_counter()

    # Tasks that diverge

    def check_pending(self) -> Tensor:
        """(n, N, 2) losses and gradient norms since the last log entry, on the CPU; tells of those not finite."""
        values = torch.stack(self.state.pending).to("cpu", torch.float64)
        first = self.state.step - len(values) + 1
        for number in range(len(self.tasks)):
            finite = values[:, number].isfinite().all(dim=1).tolist()
            if not all(finite):
                row = finite.index(False)
                loss, norm = values[row, number].tolist()
                what, value = ("gradient norm", norm) if math.isfinite(loss) else ("loss", loss)
                self.diverge(number, what, value, first + row)
        return values

    def check_parameters(self) -> None:
        """The last update may have broken what the losses do not show."""
        for number, task in enumerate(self.tasks):
            named = dict(task.named_parameters())
            finite = torch.stack([parameter.isfinite().all() for parameter in named.values()]).tolist()
            if not all(finite):
                self.diverge(number, list(named)[finite.index(False)], math.nan, self.state.step)

    def diverge(self, number: int, what: str, value: float, step: int) -> None:
        """Notes that a task of several diverged. The only one gets its last good values back, and ends in an error."""
        state = self.state.tasks[number]
        if self.together:
            state.diverged = step if state.diverged is None else state.diverged
            return
        load(self.tasks[number], state.good)
        plan = self.plan
        rate = self.optimizer.rate(number, step - 1)
        hint = f"{Argument('learning_rate', float(f'{plan.learning_rate / 10:g}'))}"
        if plan.precision != "float32":
            hint += f" or {Argument('precision', 'float32')}"
        if self.folder and self.saved_step:
            anew = Argument("overwrite", True)
            kept = f"; the state of step {self.saved_step} stays in {self.folder.path}, {anew} starts anew"
        else:
            kept = (
                f"; the task holds its values of step {state.best.step}"
                if state.best
                else "; the task is as it was before"
            )
        raise DivergedError(
            f"expected a finite {what}, found {value} at step {step} with learning rate {rate:.3g}; try {hint}{kept}"
        )

    # What is due now and then

    def common(self) -> dict[str, Any]:
        """What every row of metrics begins with."""
        self.state.seconds = self.seconds_before + time.perf_counter() - self.started
        return {"step": self.state.step, "epoch": round(self.images / self.plan.train_images, 4)}

    def log(self, values: Tensor) -> None:
        """Writes a row of metrics per task from (n, N, 2) losses and gradient norms."""
        state = self.state
        elapsed = state.training_seconds - self.marked_seconds
        common = self.common()
        times = {
            "images_per_second": round((self.images - self.marked_images) / max(elapsed, 1e-9), 2),
            "seconds": round(state.seconds, 3),
        }
        rows = []
        for number, task in enumerate(state.tasks):
            if task.diverged is None:
                loss, norm = values[:, number].mean(dim=0).tolist()
                rate = self.optimizer.rate(number, state.step - 1)
                rows.append(common | {"loss": loss, "learning_rate": rate, "gradient_norm": norm} | times)
                self.add_row(number, rows[-1])
        self.marked_images, self.marked_seconds = self.images, state.training_seconds
        state.pending = []
        shown = {
            "loss": min((row["loss"] for row in rows), default=math.nan),
            "learning_rate": self.optimizer.rate(0, state.step - 1),
            "gradient_norm": max((row["gradient_norm"] for row in rows), default=0.0),
        }
        self.progress.log(common | shown | times)

    def add_row(self, number: int, row: dict[str, Any]) -> None:
        """Keeps a row of metrics and writes it."""
        self.state.tasks[number].history.append(row)
        if self.logbook:
            self.logbook.write(row)

    def validation_is_due(self) -> bool:
        """Whether a validation follows this step; tasks that keep their last state have one, at the end."""
        step = self.state.step
        return step == self.until or (self.plan.select is not None and step % self.plan.validate_every == 0)

    def owes_validation(self) -> bool:
        """Whether the run was interrupted between a step and its validation."""
        step = self.state.step
        due = step > 0 and self.validation_is_due()
        return due and any(task.last is None or task.last.step < step for task in self.state.tasks)

    def look(self) -> list[tuple[Validation, Tensor]]:
        """What is found on the validation images, and the answers to them.

        A signal breaks it off; the state that is saved then owes it.
        """
        while True:
            try:
                return self.trainer.validate(self.state.step, self.feed, self.interrupts.check)
            except Interrupted:
                self.save()
                self.interrupts.deliver()

    def validate(self) -> None:
        """Looks at the validation images and takes note of what each task found."""
        for number, (found, answers) in enumerate(self.look()):
            if not math.isfinite(found.loss):
                self.diverge(number, "validation loss", found.loss, self.state.step)
            self.note(number, found, answers)

    def note(self, number: int, found: Validation, answers: Tensor) -> None:
        """Keeps what a task found; the best state so far is written to the task file."""
        state, select = self.state.tasks[number], self.plan.select
        if state.diverged is not None:
            found = Validation(step=self.state.step, top1=0.0, top5=0.0, loss=0.0, balanced=0.0)
        if select is None:  # the last state counts
            state.last, state.best_answers = found, answers
            return
        best = found.beats(state.best, select)
        better = state.best is not None and found.chosen(select) > state.best.chosen(select)
        state.last = found
        if best:
            state.best, state.best_tensors, state.best_answers = found, snapshot(self.tasks[number]), answers
        row = self.common() | {
            "validation_top1": found.top1,
            "validation_top5": found.top5,
            "validation_balanced": found.balanced,
            "validation_loss": found.loss,
            "validation_images": self.plan.validation_images,
            "seconds": round(self.state.seconds, 3),
        }
        self.add_row(number, row)
        if self.writes and self.folder:
            self.write_task(number, found, best_too=best)
        self.progress.validation(row, better)

    def save_is_due(self) -> bool:
        """Whether enough time went by since the last saved state, for what saving costs."""
        return time.perf_counter() - self.saved_at >= max(SAVE_SECONDS, self.save_cost / SAVE_SHARE)

    def save(self) -> None:
        """Writes the state from which the run can go on."""
        if not (self.writes and self.path):
            return
        begun = time.perf_counter()
        self.common()
        finished = self.state.step == self.plan.steps
        for number, (task, state) in enumerate(zip(self.tasks, self.state.tasks, strict=True)):
            state.parameters = {name: parameter.detach() for name, parameter in task.named_parameters()}
            state.optimizer = {} if finished else self.optimizer.tensors(number)
        write_run(self.path, self.state)
        self.saved_step, self.saved_at = self.state.step, time.perf_counter()
        self.save_cost = self.saved_at - begun

    def write_task(self, number: int, stored: Validation, *, best_too: bool) -> None:
        """Writes the parameters as they are now: as the last state, and as the best one."""
        assert self.folder
        self.set_record(number, stored)
        self.tasks[number].save(self.folder.last)
        if best_too:
            self.tasks[number].save(self.folder.out)

    def set_record(self, number: int, stored: Validation) -> None:
        """Puts the record of the run into a task."""
        self.common()
        task, diverged = self.tasks[number], self.state.tasks[number].diverged
        record = make_record(task, self.data, self.plans[number], self.state, stored, self.device.type)
        if self.together:
            record["together"] = len(self.tasks)
        record |= self.feed.record()
        if diverged is not None:
            record["metrics"] = {"diverged_at": diverged}
        task.record = record

    # The end

    def finish(self, number: int) -> TrainResult:
        """Loads the best state of a task, writes it with its final record, and reports."""
        task, state = self.tasks[number], self.state.tasks[number]
        last = state.last
        assert last
        best = state.best or last
        if state.best or state.diverged is not None:
            load(task, state.good)
        self.set_record(number, best)
        answers = None if state.diverged is not None else state.best_answers
        score = None if answers is None else score_of(task.classes, answers)
        if self.writes and self.folder:
            task.save(self.folder.out)
            write_json(self.folder.record, task.record)
            if score is not None:
                write_confusion(self.folder.path, CONFUSION, score, f"{task.name}: validation part of {self.data.spec}")
        for warning in [] if score is None or self.together else score.warnings():
            self.progress.message(f"warning: {warning} (best state, validation images)")
        head = None if self.together else self.compare_head(task)
        trained, total = count_parameters(task)
        return TrainResult(
            model=task,
            steps=self.state.step,
            best_step=best.step,
            best_accuracy=best.top1,
            final_accuracy=last.top1,
            best_balanced=best.balanced,
            final_balanced=last.balanced,
            score=score,
            history=state.history,
            seconds=self.state.seconds,
            images_per_second=self.images / max(self.state.training_seconds, 1e-9),
            trainable_parameters=trained,
            total_parameters=total,
            left_out=self.data.left_out,
            split_digest=self.data.split_digest,
            out=self.settings.out,
            record=task.record,
            diverged_at=state.diverged,
            validation_right=(answers[2] < 1).numpy() if self.together and answers is not None else None,
            head_alone=head,
        )

    def compare_head(self, task: Trainable) -> HeadAlone | None:
        """What a head alone gives on the same images, where that is to be told; the record says it too."""
        processes = self.accelerator.num_processes
        if not is_due(self.settings.compare_head, task, self.plan, self.feed, processes) or isinstance(task, FullModel):
            return None
        self.progress.message("comparing with a head alone on the same images")
        head = train_head(task, self.plan, self.feed, self.trainer)
        if head is not None:
            task.record = task.record | {"head_alone": head.to_json()}
            if self.writes and self.folder:
                task.save(self.folder.out)
                write_json(self.folder.record, task.record)
        return head


def check_replaces_nothing(settings: Settings) -> None:
    """MemtokError if this run would take the place of one that did a step already, finished or not."""
    if settings.out is None or settings.resume or settings.overwrite:
        return
    folder = RunFolder(settings.out)
    saved = read_run(folder.state)
    if saved is not None and saved.step > 0:
        raise MemtokError(
            f"expected no run beside {settings.out}, found one at step {saved.step} of "
            f"{saved.tasks[0].config['steps']} in {folder.path}; {Argument('resume', True)} goes on with it, "
            f"{Argument('overwrite', True)} starts anew",
            argument="out",
        )


def configuration(trainable: Trainable, data: DataSource, plan: Plan, content: str) -> dict[str, Any]:
    """All that must agree when a run is resumed, as JSON-able values. content: of the data, by `training_content`."""
    own: dict[str, Any] = {
        "regime": trainable.regime,
        "name": trainable.name,
        "classes": list(trainable.classes),
        "preprocessing": trainable.preprocessing.to_dict(),
        "shapes": {name: list(parameter.shape) for name, parameter in trainable.named_parameters()},
        "data": data.name,
        "split": data.split_digest,
        "content": content,
    }
    if isinstance(trainable, FullModel):
        own["backbone"] = trainable.backbone_fingerprint
    else:
        own["backbone"] = trainable.backbone.fingerprint
        own["placement"] = trainable.placement
        own["extends"] = [task.fingerprint for task in trainable.extends]
    return own | plan.to_dict()
