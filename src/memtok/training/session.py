"""One run: steps, validation, saved states. Read from top to bottom; `train` in loop.py makes one and runs it.

Nothing here waits for the device between two log entries: losses and gradient norms stay there and are read, and
checked, together. What a run does follows from its configuration; times only decide when it saves its state.
"""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from memtok.confusion import write_confusion
from memtok.data import DataSource
from memtok.data.content import training_content
from memtok.errors import Argument, DivergedError, MemtokError
from memtok.files import write_json
from memtok.folders import locked
from memtok.metrics import score_of
from memtok.training.compiler import Compiler
from memtok.training.device import OneProcess, same_start
from memtok.training.engine import Engine
from memtok.training.feed import Feed
from memtok.training.head_alone import HeadAlone, is_due, train_head
from memtok.training.interrupts import Interrupted, Interrupts
from memtok.training.logbook import Logbook
from memtok.training.optim import optimizer_tensors, restore_optimizer
from memtok.training.progress import Progress, RunInfo
from memtok.training.recipes import images_seen
from memtok.training.regimes import FullModel, Trainable, count_parameters
from memtok.training.result import TrainResult, make_record
from memtok.training.saved import read_saved
from memtok.training.settings import SAVE_SECONDS, SAVE_SHARE, Plan, Settings
from memtok.training.state import (
    BALANCED,
    CONFUSION,
    TOP1,
    RunFolder,
    RunState,
    Validation,
    check_same_run,
    first_non_finite,
    read_header,
    read_state,
    write_state,
)


class Session:
    """A run from its start, or from its saved state, to its end. Modules are on `device` already."""

    def __init__(
        self,
        trainable: Trainable,
        data: DataSource,
        plan: Plan,
        settings: Settings,
        accelerator: Accelerator | OneProcess,
        device: torch.device,
        progress: Progress,
        feed: Feed,
        compiler: Compiler | None = None,
    ) -> None:
        self.trainable, self.data, self.plan, self.settings = trainable, data, plan, settings
        self.accelerator, self.device, self.progress, self.feed = accelerator, device, progress, feed
        self.folder = RunFolder(settings.out) if settings.out else None
        self.writes = self.folder is not None and accelerator.is_main_process
        self.engine = Engine(trainable, plan, accelerator, device, compiler)
        self.config = configuration(trainable, data, plan, training_content(data)) if self.folder else {}
        self.state = RunState()
        self.logbook: Logbook | None = None
        self.saved_step: int | None = None
        # Several processes would have to stop after the same step.
        self.interrupts = Interrupts(active=self.writes and accelerator.num_processes == 1)

    def run(self) -> TrainResult:
        """Goes to the last step and returns the result, the best state loaded."""
        with ExitStack() as stack:
            if self.writes and self.folder:
                stack.enter_context(locked(self.folder.path))
            check_replaces_nothing(self.settings)
            resumed = self.restore()
            self.start_clocks()
            self.prepare_folder(resumed)
            self.good = self.state.best_tensors or self.engine.snapshot()  # what the task falls back to
            self.progress.start(self.info())
            if self.writes and self.folder:
                self.logbook = Logbook(self.folder, self.state.history)
                stack.callback(self.logbook.close)
            stack.enter_context(self.interrupts)
            self.train_steps()
            return self.finish()

    # Starting and resuming

    def restore(self) -> bool:
        """Takes over the saved state where there is one to go on from, and returns whether there is."""
        saved = read_saved(self.folder.state) if self.folder and self.settings.resume else None
        if self.folder is None or saved is None:
            if self.folder and self.settings.resume:
                self.progress.message(f"no saved state in {self.folder.path}: starting anew")
            same_start(self.accelerator, self.engine.parameters)
            return False
        check_same_run(self.as_of_today(saved.header["config"]), self.config, self.folder.path)
        named = dict(self.trainable.named_parameters())
        self.state, parameters, optimizer = read_state(self.folder.state, saved, named)
        self.state.pending = [values.to(self.device) for values in self.state.pending]
        self.engine.load(parameters)
        restore_optimizer(self.trainable, self.engine.optimizer, optimizer, str(self.folder.state))
        self.saved_step = self.state.step
        return True

    def as_of_today(self, config: dict[str, Any]) -> dict[str, Any]:
        """The configuration of a saved run. Version 0.1 chose by top-1 and did not say so; its runs go on like that."""
        if "select" in config:
            return config
        if self.settings.select is None:
            self.plan = replace(self.plan, select=TOP1)
            self.config = self.config | {"select": TOP1}
        return config | {"select": TOP1}

    def prepare_folder(self, resumed: bool) -> None:
        """Makes the run folder ready. A fresh run saves its state at once: killed early, it begins with the same."""
        self.accelerator.wait_for_everyone()  # nobody writes before everybody has read
        if not (self.writes and self.folder):
            return
        self.folder.clear_remains()
        if not resumed:
            self.folder.clear()
            write_json(self.folder.config, self.config)
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
        plan = self.plan
        trained, total = count_parameters(self.trainable)
        return RunInfo(
            name=self.trainable.name,
            regime=self.trainable.regime,
            classes=len(self.trainable.classes),
            trainable_parameters=trained,
            total_parameters=total,
            train_images=plan.train_images,
            validation_images=plan.validation_images,
            steps=plan.steps,
            start_step=self.state.step,
            epochs=plan.steps / plan.steps_per_epoch,
            batch_size=plan.batch_size,
            learning_rate=plan.learning_rate,
            recipe=plan.recipe,
            augment=plan.augment,
            device=self.device.type,
            precision=plan.precision,
            out=self.settings.out,
        )

    # Steps

    @property
    def images(self) -> int:
        """Images seen so far."""
        return images_seen(self.state.step, self.plan.train_images, self.plan.batch_size)

    def train_steps(self) -> None:
        """All steps that are left, with what is due after each."""
        plan = self.plan
        self.engine.set_mode(training=True)
        if self.owes_validation():
            self.validate()
            self.save()
        if self.state.step == plan.steps:
            return
        for batch, labels, _ in self.feed.training(self.state.step):
            self.state.pending.append(self.engine.step(self.state.step, batch, labels))
            self.state.step += 1
            self.progress.step(self.state.step)
            self.after_step()

    def after_step(self) -> None:
        """Log, validate and save, each when it is due. Nothing is written before the losses since were checked."""
        plan, step = self.plan, self.state.step
        logs = step % plan.log_every == 0 or step == plan.steps
        validates = self.validation_is_due()
        stops = self.interrupts.pending is not None
        every = self.settings.save_every
        saves = validates or stops or (step % every == 0 if every else logs and self.save_is_due())
        if not (logs or saves):
            return
        values = self.check_pending()  # waits for the device
        if saves:
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

    def check_pending(self) -> Tensor:
        """(n, 2) losses and gradient norms since the last log entry, on the CPU; MemtokError if one is not finite."""
        values = torch.stack(self.state.pending).to("cpu", torch.float64)
        row = first_non_finite(values)
        if row is not None:
            loss, norm = values[row].tolist()
            step = self.state.step - len(values) + row + 1
            what, value = ("gradient norm", norm) if math.isfinite(loss) else ("loss", loss)
            raise self.stopped(what, value, step)
        return values

    def check_parameters(self) -> None:
        """MemtokError unless all parameters are finite: the last update may have broken what the losses do not show."""
        finite = torch.stack([parameter.isfinite().all() for parameter in self.engine.parameters]).tolist()
        if not all(finite):
            names = [name for name, _ in self.trainable.named_parameters()]
            raise self.stopped(names[finite.index(False)], math.nan, self.state.step)

    def stopped(self, what: str, value: float, step: int) -> DivergedError:
        """Puts the last good values back into the task, and says what happened and what to try."""
        self.engine.load(self.good)
        plan = self.plan
        rate = self.engine.rate(step - 1)
        hint = f"{Argument('learning_rate', float(f'{plan.learning_rate / 10:g}'))}"
        if plan.precision != "float32":
            hint += f" or {Argument('precision', 'float32')}"
        if self.folder and self.saved_step:
            anew = Argument("overwrite", True)
            kept = f"; the state of step {self.saved_step} stays in {self.folder.path}, {anew} starts anew"
        else:
            best = self.state.best
            kept = f"; the task holds its values of step {best.step}" if best else "; the task is as it was before"
        return DivergedError(
            f"expected a finite {what}, found {value} at step {step} with learning rate {rate:.3g}; try {hint}{kept}"
        )

    # What is due now and then

    def common(self) -> dict[str, Any]:
        """What every row of metrics begins with."""
        self.state.seconds = self.seconds_before + time.perf_counter() - self.started
        return {"step": self.state.step, "epoch": round(self.images / self.plan.train_images, 4)}

    def log(self, values: Tensor) -> None:
        """Writes a row of metrics from (n, 2) losses and gradient norms."""
        state = self.state
        loss, norm = values.mean(dim=0).tolist()
        elapsed = state.training_seconds - self.marked_seconds
        row = self.common() | {
            "loss": loss,
            "learning_rate": self.engine.rate(state.step - 1),
            "gradient_norm": norm,
            "images_per_second": round((self.images - self.marked_images) / max(elapsed, 1e-9), 2),
            "seconds": round(state.seconds, 3),
        }
        self.marked_images, self.marked_seconds = self.images, state.training_seconds
        state.pending = []
        self.add_row(row)
        self.progress.log(row)

    def add_row(self, row: dict[str, Any]) -> None:
        """Keeps a row of metrics and writes it."""
        self.state.history.append(row)
        if self.logbook:
            self.logbook.write(row)

    def validation_is_due(self) -> bool:
        """Whether the task looks at the validation images after this step."""
        return self.state.step % self.plan.validate_every == 0 or self.state.step == self.plan.steps

    def owes_validation(self) -> bool:
        """Whether the run was interrupted between a step and its validation."""
        last = self.state.last
        return self.state.step > 0 and self.validation_is_due() and (last is None or last.step < self.state.step)

    def look(self) -> tuple[Validation, Tensor]:
        """What is found on the validation images, and the answers to them.

        A signal breaks it off; the state that is saved then owes it.
        """
        while True:
            try:
                return self.engine.validate(self.state.step, self.feed, self.interrupts.check)
            except Interrupted:
                self.save()
                self.interrupts.deliver()

    def validate(self) -> None:
        """Looks at the validation images; the best state so far is written to the task file."""
        state, select = self.state, self.plan.select or BALANCED
        found, answers = self.look()
        if not math.isfinite(found.loss):
            raise self.stopped("validation loss", found.loss, state.step)
        best = found.beats(state.best, select)
        better = state.best is not None and found.chosen(select) > state.best.chosen(select)
        state.last = found
        if best:
            state.best, state.best_tensors, state.best_answers = found, self.engine.snapshot(), answers
            self.good = state.best_tensors
        row = self.common() | {
            "validation_top1": found.top1,
            "validation_top5": found.top5,
            "validation_balanced": found.balanced,
            "validation_loss": found.loss,
            "validation_images": self.plan.validation_images,
            "seconds": round(state.seconds, 3),
        }
        self.add_row(row)
        if self.writes and self.folder:
            self.write_trainable(found, best_too=best)
        self.progress.validation(row, better)

    def save_is_due(self) -> bool:
        """Whether enough time went by since the last saved state, for what saving costs."""
        return time.perf_counter() - self.saved_at >= max(SAVE_SECONDS, self.save_cost / SAVE_SHARE)

    def save(self) -> None:
        """Writes the state from which the run can go on."""
        if not (self.writes and self.folder):
            return
        begun = time.perf_counter()
        self.common()
        finished = self.state.step == self.plan.steps
        optimizer = {} if finished else optimizer_tensors(self.trainable, self.engine.optimizer)
        write_state(self.folder.state, self.state, self.config, dict(self.trainable.named_parameters()), optimizer)
        self.saved_step, self.saved_at = self.state.step, time.perf_counter()
        self.save_cost = self.saved_at - begun

    def write_trainable(self, stored: Validation, *, best_too: bool) -> None:
        """Writes the parameters as they are now: as the last state, and as the best one."""
        assert self.folder
        self.set_record(stored)
        self.trainable.save(self.folder.last)
        if best_too:
            self.trainable.save(self.folder.out)

    def set_record(self, stored: Validation) -> None:
        """Puts the record of the run into the task."""
        self.common()
        record = make_record(self.trainable, self.data, self.plan, self.state, stored, self.device.type)
        self.trainable.record = record | self.feed.record()

    # The end

    def finish(self) -> TrainResult:
        """Loads the best state, writes it with its final record, and reports."""
        state = self.state
        assert state.best
        assert state.last
        self.engine.load(state.best_tensors)
        self.set_record(state.best)
        score = None if state.best_answers is None else score_of(self.trainable.classes, state.best_answers)
        if self.writes and self.folder:
            self.trainable.save(self.folder.out)
            write_json(self.folder.record, self.trainable.record)
            if score is not None:
                title = f"{self.trainable.name}: validation part of {self.data.spec}"
                write_confusion(self.folder.path, CONFUSION, score, title)
        for warning in [] if score is None else score.warnings():
            self.progress.message(f"warning: {warning} (best state, validation images)")
        head = self.compare_head()
        trained, total = count_parameters(self.trainable)
        return TrainResult(
            model=self.trainable,
            steps=state.step,
            best_step=state.best.step,
            best_accuracy=state.best.top1,
            final_accuracy=state.last.top1,
            best_balanced=state.best.balanced,
            final_balanced=state.last.balanced,
            score=score,
            history=state.history,
            seconds=state.seconds,
            images_per_second=self.images / max(state.training_seconds, 1e-9),
            trainable_parameters=trained,
            total_parameters=total,
            left_out=self.data.left_out,
            split_digest=self.data.split_digest,
            out=self.settings.out,
            record=self.trainable.record,
            head_alone=head,
        )

    def compare_head(self) -> HeadAlone | None:
        """What a head alone gives on the same images, where that is to be told; the record says it too."""
        task, processes = self.trainable, self.accelerator.num_processes
        if not is_due(self.settings.compare_head, task, self.plan, self.feed, processes) or isinstance(task, FullModel):
            return None
        self.progress.message("comparing with a head alone on the same images")
        head = train_head(task, self.plan, self.feed, self.engine)
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
    header = read_header(folder.state)
    if header is not None and header["step"] > 0:
        raise MemtokError(
            f"expected no run beside {settings.out}, found one at step {header['step']} of "
            f"{header['config']['steps']} in {folder.path}; {Argument('resume', True)} goes on with it, "
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
