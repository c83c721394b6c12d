"""A run of N tasks: steps, log, validation, saved states. `train` (N = 1) and `train_together` make one each.

Nothing here waits for the device between two log entries: losses and gradient norms stay there and are read, and
checked, together. What a run does follows from its configuration; times only decide when it saves its state.
"""

from __future__ import annotations

import math
import time
from contextlib import ExitStack

import torch
from torch import Tensor

from memtok.errors import Argument, DivergedError, MemtokError
from memtok.training.clock import Clock
from memtok.training.finishing import finish
from memtok.training.interrupts import Interrupted, Interrupts
from memtok.training.logbook import Logbook, Row
from memtok.training.measure import measure, solve
from memtok.training.result import TrainResult
from memtok.training.saving import Saving
from memtok.training.settings import GRADIENT
from memtok.training.setup import Setup
from memtok.training.state import RunState, Validation
from memtok.training.trainer import Trainer, load, snapshot

SAVE_SECONDS = 60.0  # between saved states, unless told otherwise
SAVE_SHARE = 0.05  # saving takes at most this share of the time


class Run:
    """A run from its start, or from its saved state, to its end. begun: where to begin if there is no saved state."""

    def __init__(self, setup: Setup, begun: RunState | None = None) -> None:
        self.setup, self.tasks, self.progress = setup, setup.tasks, setup.progress
        self.trainer = Trainer(setup.tasks, setup.plans, setup.processes, setup.device, setup.compiler)
        self.saving = Saving(setup, self.trainer.optimizer, begun)
        self.state = self.saving.fresh()
        self.clock = Clock(self.state, 0)
        self.until = setup.plan.steps
        self.logbook: Logbook | None = None
        # Several processes would have to stop after the same step.
        self.interrupts = Interrupts(active=setup.writes and setup.processes.num_processes == 1)

    def run(self, until: int | None = None) -> list[TrainResult]:
        """Goes to step `until` (the last one if None) and returns the results, the best states loaded."""
        steps = self.setup.plan.steps
        if until is not None and not 0 < until <= steps:
            raise MemtokError(f"expected until from 1 to {steps}, the steps of the run, found {until}; change it")
        self.until = steps if until is None else until
        with ExitStack() as stack:
            stack.enter_context(self.saving.alone())
            self.begin()
            if self.logbook:
                stack.callback(self.logbook.close)
            stack.enter_context(self.interrupts)
            self.train_steps()
            return [self.finish(number) for number in range(len(self.tasks))]

    def begin(self) -> None:
        """Takes over the saved state if there is one to go on from, and makes the run folder ready."""
        saved = self.saving.restore(self.state, self.until)
        self.state = saved or self.state
        self.clock = Clock(self.state, self.images)
        self.setup.feed.prepare(self.state.step, self.until)
        if saved is None and self.setup.plan.solver == GRADIENT:
            measure(self.setup, self.trainer)
        self.saving.prepare(self.state, resumed=saved is not None)
        self.progress.start(self.setup.info(self.state.step, self.until))
        if self.setup.writes and self.saving.folder:
            self.logbook = Logbook(self.saving.folder, self.state.tasks[0].history)

    def finish(self, number: int) -> TrainResult:
        """The result of a task."""
        self.clock.seconds()
        return finish(self.setup, self.trainer, self.state, number)

    # Steps

    @property
    def images(self) -> int:
        """Images seen so far."""
        return self.setup.plan.images_seen(self.state.step)

    def train_steps(self) -> None:
        """All steps that are left, with what is due after each."""
        self.trainer.set_mode(training=True)
        if self.owes_validation():
            self.validate()
            self.save()
        if self.state.step == self.until:
            return
        self.clock.go_on()
        if self.setup.plan.solver != GRADIENT:
            self.solve()
            return
        for batch, labels, _ in self.setup.feed.training(self.state.step, self.until):
            self.state.pending.append(self.trainer.step(self.state.step, batch, labels))
            self.state.step += 1
            self.progress.step(self.state.step)
            self.after_step()

    def solve(self) -> None:
        """The only step of a run that takes none along the gradient. Interrupted, it begins anew."""
        while self.state.step == 0:
            try:
                solve(self.setup, self.trainer, self.interrupts.check)
                self.state.step = self.setup.plan.steps
            except Interrupted:
                self.interrupts.deliver()
        self.progress.step(self.state.step)
        self.clock.pause()
        self.validate()
        self.save()

    def after_step(self) -> None:
        """Log, validate and save, each when it is due. Nothing is written before the losses since were checked."""
        step = self.state.step
        logs = step % self.setup.plan.log_every == 0 or step == self.until
        validates = self.validation_is_due()
        stops = self.interrupts.pending is not None
        saves = validates or stops or self.save_is_due()
        if not (logs or saves):
            return
        values = self.check_pending()  # waits for the device
        if validates or (saves and not self.setup.together):
            self.check_parameters()
        self.clock.pause()
        if logs:
            self.log(values)
        if validates:
            self.validate()
        if saves:
            self.save()
        if stops:
            self.interrupts.deliver()
        self.clock.go_on()

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
        own, plan, saving = self.state.tasks[number], self.setup.plan, self.saving
        if self.setup.together:
            own.diverged = step if own.diverged is None else own.diverged
            return
        load(self.tasks[number], own.good)
        rate = self.trainer.optimizer.rate(number, step - 1)
        hint = f"{Argument('learning_rate', float(f'{plan.learning_rate / 10:g}'))}"
        if plan.precision != "float32":
            hint += f" or {Argument('precision', 'float32')}"
        if saving.folder and saving.step:
            anew = Argument("overwrite", True)
            kept = f"the state of step {saving.step} stays in {saving.folder.path}, {anew} starts anew"
        elif own.best:
            kept = f"the task holds its values of step {own.best.step}"
        else:
            kept = "the task is as it was before"
        raise DivergedError(
            f"expected a finite {what}, found {value} at step {step} with learning rate {rate:.3g}; try {hint}; {kept}"
        )

    # What is due now and then

    def log(self, values: Tensor) -> None:
        """Writes a row of metrics per task from (n, N, 2) losses and gradient norms."""
        state, rate = self.state, self.trainer.optimizer.rate
        common = self.common()
        times = {
            "images_per_second": round(self.clock.speed(self.images), 2),
            "seconds": round(state.seconds, 3),
        }
        rows = []
        for number, task in enumerate(state.tasks):
            if task.diverged is None:
                loss, norm = values[:, number].mean(dim=0).tolist()
                own = {"loss": loss, "learning_rate": rate(number, state.step - 1), "gradient_norm": norm}
                rows.append(common | own | times)
                self.add_row(number, rows[-1])
        state.pending = []
        shown = {
            "loss": min((row["loss"] for row in rows), default=math.nan),
            "learning_rate": rate(0, state.step - 1),
            "gradient_norm": max((row["gradient_norm"] for row in rows), default=0.0),
        }
        self.progress.log(common | shown | times)

    def common(self) -> Row:
        """What every row of metrics begins with."""
        self.clock.seconds()
        return {"step": self.state.step, "epoch": round(self.images / self.setup.plan.train_images, 4)}

    def add_row(self, number: int, row: Row) -> None:
        """Keeps a row of metrics and writes it."""
        self.state.tasks[number].history.append(row)
        if self.logbook:
            self.logbook.write(row)

    def validation_is_due(self) -> bool:
        """Whether a validation follows this step; tasks that keep their last state have one, at the end."""
        step, plan = self.state.step, self.setup.plan
        return step == self.until or (plan.select is not None and step % plan.validate_every == 0)

    def owes_validation(self) -> bool:
        """Whether the run was interrupted between a step and its validation."""
        step = self.state.step
        due = step > 0 and self.validation_is_due()
        return due and any(task.last is None or task.last.step < step for task in self.state.tasks)

    def validate(self) -> None:
        """Looks at the validation images and takes note of what each task found."""
        for number, (found, answers) in enumerate(self.look()):
            if not math.isfinite(found.loss):
                self.diverge(number, "validation loss", found.loss, self.state.step)
            self.note(number, found, answers)

    def look(self) -> list[tuple[Validation, Tensor]]:
        """What is found on the validation images, and the answers to them.

        A signal breaks it off; the state that is saved then owes it.
        """
        while True:
            try:
                return self.trainer.validate(self.state.step, self.setup.feed, self.interrupts.check)
            except Interrupted:
                self.save()
                self.interrupts.deliver()

    def note(self, number: int, found: Validation, answers: Tensor) -> None:
        """Keeps what a task found; the best state so far is written to the task file."""
        own, select = self.state.tasks[number], self.setup.plan.select
        if own.diverged is not None:
            found = Validation(step=self.state.step, top1=0.0, top5=0.0, loss=0.0, balanced=0.0)
        if select is None:  # the last state counts
            own.last, own.best_answers = found, answers
            return
        best = found.beats(own.best, select)
        better = own.best is not None and found.chosen(select) > own.best.chosen(select)
        own.last = found
        if best:
            own.best, own.best_tensors, own.best_answers = found, snapshot(self.tasks[number]), answers
        row = self.common() | found.row() | {"validation_images": self.setup.plan.validation_images}
        row["seconds"] = round(self.state.seconds, 3)
        self.add_row(number, row)
        self.saving.write_task(self.state, found, best_too=best)
        self.progress.validation(row, better)

    def save_is_due(self) -> bool:
        """Whether the state is saved after this step; without `save_every` by the time that saving costs."""
        every = self.setup.settings.save_every
        if every:
            return self.state.step % every == 0
        return time.perf_counter() - self.saving.at >= max(SAVE_SECONDS, self.saving.cost / SAVE_SHARE)

    def save(self) -> None:
        """Writes the state from which the run can go on."""
        self.clock.seconds()
        self.saving.save(self.state)
