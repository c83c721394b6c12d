"""Configurations that Optuna proposes: a batch that fills a pass, then what came of it, then the next batch.

The study lies in a journal of JSON lines in the folder of the data set, so that a sweep goes on where it stopped: one
line names the trials of the batch that is being trained. The sampler of a trial is seeded with the number of the trials
before it, so a search proposes what it would have proposed wherever it was interrupted, also amid a batch.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memtok.errors import MemtokError
from memtok.sweeps.space import FIELDS, OPTION_OF, Configuration, Range, Space, applies
from memtok.sweeps.trials import Trial

BATCHES = 4  # a batch has at most a fourth of the trials, rounded up, so that later ones learn of earlier ones
BATCH = "batch"  # of the study: the numbers of the trials that are being trained
JOURNAL, NAME = "optuna.log", "memtok"


def import_optuna() -> Any:
    """The module; MemtokError where it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise MemtokError(
            "expected the package optuna for the search optuna, found none; install memtok[sweep], or search random",
            argument="search",
        ) from error
    return optuna


class Proposals:
    """A study in `folder`. fits: whether configurations can share a pass. seed: of the sampler."""

    def __init__(
        self, space: Space, folder: Path, *, seed: int, fits: Callable[[Sequence[Configuration]], bool]
    ) -> None:
        self.space, self.seed, self.fits = space, seed, fits
        self.optuna = import_optuna()
        folder.mkdir(parents=True, exist_ok=True)
        for lock in folder.glob(f"{JOURNAL}.lock*"):  # of a process that was killed; ours is the only one here
            lock.unlink(missing_ok=True)
        self.storage, self.study = self.open(folder / JOURNAL)

    def open(self, path: Path) -> tuple[Any, Any]:
        """A journal and the study in it, new where there is none; MemtokError for a file that is no journal."""
        drop_torn_line(path)
        storages = self.optuna.storages
        with quiet(self.optuna):
            try:
                storage = storages.JournalStorage(storages.journal.JournalFileBackend(str(path)))
                return storage, self.optuna.create_study(
                    storage=storage,
                    study_name=NAME,
                    direction="maximize",
                    sampler=self.sampler(0),
                    load_if_exists=True,
                )
            except (ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError) as error:
                raise MemtokError(
                    f"expected the journal of an Optuna study in {path}, found something else; delete it: the search "
                    "starts anew, and what was trained is not trained again"
                ) from error

    def sampler(self, number: int) -> Any:
        """Of trial `number`; it takes those that are not answered yet for poor ones, to spread a batch."""
        # A digest, so that searches with neighbouring seeds do not draw the same, one trial later.
        digest = hashlib.sha256(f"{self.seed} {number}".encode()).digest()
        return self.optuna.samplers.TPESampler(seed=int.from_bytes(digest[:4], "big"), constant_liar=True)

    @property
    def left(self) -> int:
        """How many trials are not answered yet."""
        assert self.space.trials
        return max(0, self.space.trials - len(self.answered()))

    def answered(self) -> list[Any]:
        """The trials that Optuna was told of; those that a kill cut off are none."""
        states = self.optuna.trial.TrialState
        return self.study.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED))  # type: ignore[no-any-return]

    def proposed(self) -> list[Configuration]:
        """All configurations of this study, in the order in which they were proposed."""
        found = [trial.user_attrs.get("configuration") for trial in self.study.get_trials(deepcopy=False)]
        return list(dict.fromkeys(Configuration.of(values) for values in found if values))

    def batches(self) -> Iterator[list[Configuration]]:
        """Batch after batch, until all trials were answered: each must be answered by `tell` before the next."""
        while batch := self.next_batch():
            yield batch

    def next_batch(self) -> list[Configuration]:
        """The batch that was being trained, else a new one; empty when all trials were answered.

        What is too large for the pass waits, asked, for the next batch. MemtokError if one alone does not fit.
        """
        with quiet(self.optuna):
            return self.chosen(self.next_trials())

    def next_trials(self) -> list[Any]:
        """The trials of the next batch."""
        assert self.space.trials
        waiting = self.waiting()
        trained = [trial for trial in waiting if self.in_batch(trial)]
        if trained:
            return trained
        answered = len(self.answered())
        most = min(self.left, math.ceil(self.space.trials / BATCHES))
        batch: list[Any] = []
        while len(batch) < most:
            # Those that an earlier batch left, or that a kill kept from being trained, go first.
            batch.append(waiting[len(batch)] if len(batch) < len(waiting) else self.ask(answered + len(batch)))
            if len(batch) > 1 and not self.fits(self.chosen(batch)):
                batch.pop()
                break
        self.study.set_user_attr(BATCH, [trial.number for trial in batch])
        return batch

    def ask(self, number: int) -> Any:
        """A new trial, before which there are `number`."""
        self.study.sampler = self.sampler(number)
        trial = self.study.ask()
        trial.set_user_attr("configuration", self.configuration(trial).to_dict())
        return trial

    def in_batch(self, trial: Any) -> bool:
        """Whether a trial that waits belongs to the batch that is being trained."""
        # Earlier versions marked the trials themselves.
        return trial.number in self.study.user_attrs.get(BATCH, ()) or BATCH in trial.user_attrs

    def new(self, batch: Sequence[Configuration]) -> list[Configuration]:
        """Those of a batch that no earlier batch had."""
        before = self.chosen([trial for trial in self.answered() if "configuration" in trial.user_attrs])
        return [each for each in batch if each not in before]

    def waiting(self) -> list[Any]:
        """Trials that were asked and not answered; one that a kill cut off is given up."""
        found = []
        for trial in self.study.get_trials(states=(self.optuna.trial.TrialState.RUNNING,)):
            if "configuration" in trial.user_attrs:
                found.append(trial)
            else:
                self.study.tell(trial.number, state=self.optuna.trial.TrialState.FAIL)
        return found

    def chosen(self, trials: Sequence[Any]) -> list[Configuration]:
        """The configurations of trials, each once."""
        return list(dict.fromkeys(Configuration.of(trial.user_attrs["configuration"]) for trial in trials))

    def live(self, trial: Any) -> Any:
        """A trial that can be written to, from one that was read."""
        study = self.storage.get_study_id_from_name(NAME)
        return self.optuna.trial.Trial(
            self.study, self.storage.get_trial_id_from_study_id_trial_number(study, trial.number)
        )

    def configuration(self, trial: Any) -> Configuration:
        """What Optuna proposes in a trial."""
        axes = self.space.axes()
        values: dict[str, Any] = {}
        for field in FIELDS:
            if field == "regime" or applies(field, values["regime"]):
                values[field] = suggest(trial, field, axes[field])
        return self.space.made({field: values.get(field) for field in FIELDS})

    def tell(self, trials: Mapping[Configuration, Trial]) -> None:
        """Answers the trials of the batch: accuracy at the end, or where it was stopped; 0 for one that diverged."""
        with quiet(self.optuna):
            for waiting in self.waiting():
                trial = trials.get(Configuration.of(waiting.user_attrs["configuration"]))
                if trial is not None and trial.last is not None and self.in_batch(waiting):
                    self.answer(waiting, trial)

    def answer(self, waiting: Any, trial: Trial) -> None:
        """Answers one trial."""
        assert trial.last
        if trial.state == "stopped":
            if trial.last.step not in waiting.intermediate_values:  # a kill may have come between the two
                self.live(waiting).report(trial.last.top1, trial.last.step)
            self.study.tell(waiting.number, state=self.optuna.trial.TrialState.PRUNED)
        else:
            self.study.tell(waiting.number, trial.last.top1)


def suggest(trial: Any, field: str, axis: Any) -> Any:
    """One value of an axis, proposed."""
    if not isinstance(axis, Range):
        return axis[0] if len(axis) == 1 else trial.suggest_categorical(field, list(axis))
    if field in OPTION_OF:
        return trial.suggest_int(field, int(axis.low), int(axis.high))
    return trial.suggest_float(field, axis.low, axis.high, log=True)


def drop_torn_line(path: Path) -> None:
    """Removes the end of a journal after its last whole line: a full disk may cut a line, which nobody can read on."""
    try:
        with path.open("rb+") as stream:
            content = stream.read()
            stream.truncate(content.rfind(b"\n") + 1)
    except FileNotFoundError:
        pass


@contextmanager
def quiet(optuna: Any) -> Iterator[None]:
    """Without Optuna's lines for every trial and its warnings of features that may still change."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
