"""Optuna proposes: batches that fill a pass, what came of them is told, and a search goes on where it stopped."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest

import memtok
from memtok.sweeps import Range
from memtok.sweeps.proposals import Proposals
from memtok.sweeps.space import Configuration, Space
from memtok.sweeps.trials import Trial
from memtok.training.state import Validation
from tests.sweeps.conftest import Quick
from tests.sweeps.test_sweep_run import Counted, Stop, winner_name

SEARCH: dict[str, Any] = {
    "search": "optuna",
    "learning_rates": Range(1e-4, 1e-1),
    "memory": Range(0, 3),
    "weight_decays": [0.0, 0.1],
    "regimes": ["memory", "head"],
}


@pytest.fixture(autouse=True)
def _needs_optuna() -> None:
    pytest.importorskip("optuna")


def names(result: Any) -> list[str]:
    return [each.name for each in result.data[0].order]


@pytest.mark.twice
def test_a_search_goes_on_where_it_was_killed(quick: Quick, tmp_path: Path) -> None:
    counted = Counted()
    straight = quick(**SEARCH, trials=4, progress=counted, out=tmp_path / "straight")
    assert [count for count, _, _ in counted.passes] == [1, 1, 1, 1]  # a fourth of the trials each
    assert len(straight.data[0].trials) == 4
    choice = straight.data[0].choice
    assert choice is not None
    assert choice.best.top1 == max(trial.last.top1 for trial in straight.data[0].trials if trial.last)
    assert straight.winner in [one.trials[0] for one in choice.tied]
    with pytest.raises(KeyboardInterrupt):
        quick(**SEARCH, trials=4, progress=Stop(3, 4))
    counted = Counted()
    resumed = quick(**SEARCH, trials=4, progress=counted)
    assert [count for count, _, _ in counted.passes] == [1, 1]
    assert names(resumed) == names(straight)  # what it would have proposed
    assert winner_name(resumed) == winner_name(straight)
    more = quick(**SEARCH, trials=5)
    assert names(more)[:4] == names(straight)
    assert len(names(more)) == 5


class Kill(BaseException):
    """What no handler catches."""


def outcome(configuration: Configuration) -> Trial:
    """Made-up, the same for the same configuration; some are stopped early."""
    top1 = configuration.learning_rate / (configuration.memory + 1)
    stopped = configuration.memory == 2
    look = Validation(step=4 if stopped else 8, top1=top1, top5=1.0, loss=1.0)
    return Trial(
        configuration=configuration,
        state="stopped" if stopped else "finished",
        looks=(look,),
        trained_parameters=1,
        seconds=0.0,
        diverged_at=None,
        data="digits",
        split="x",
        fingerprint="y",
    )


def search(folder: Path) -> tuple[list[Configuration], list[list[Configuration]]]:
    """Searches to the end with made-up outcomes; returns all that was proposed, and the batches of this call."""
    space = Space(**SEARCH, trials=14)
    proposals = Proposals(space, folder, seed=3, fits=lambda chosen: sum(each.memory + 1 for each in chosen) <= 7)
    batches = []
    for batch in proposals.batches():
        batches.append(batch)
        proposals.tell({each: outcome(each) for each in batch})
    assert len(proposals.answered()) == 14
    return proposals.proposed(), batches


@pytest.mark.twice
@pytest.mark.parametrize("every", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_a_search_that_is_killed_at_any_write_proposes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    from optuna.storages.journal import JournalFileBackend

    monkeypatch.setattr("os.fsync", lambda handle: None)
    append = JournalFileBackend.append_logs
    writes, last = 0, -1

    def counted(self: Any, logs: Any) -> None:
        nonlocal writes
        writes += 1
        if writes == last:
            raise Kill
        append(self, logs)

    monkeypatch.setattr(JournalFileBackend, "append_logs", counted)
    straight, whole = search(tmp_path / "straight")
    assert len(set(map(len, whole))) > 1  # some batches were full before they had their share
    for number in range(3, writes, every):
        writes, last = 0, number
        with pytest.raises(Kill):
            search(tmp_path / str(number))
        last = -1
        proposed, batches = search(tmp_path / str(number))
        assert proposed == straight, f"killed at write {number}"
        for batch in batches:
            assert any(one[-len(batch) :] == batch for one in whole), f"killed at write {number}"


def test_neighbouring_seeds_draw_different_configurations(tmp_path: Path) -> None:
    found = [
        Proposals(Space(**SEARCH, trials=16), tmp_path / str(seed), seed=seed, fits=lambda chosen: True).next_batch()
        for seed in (0, 1, 2**62)
    ]
    assert len({each.name for batch in found for each in batch}) == 12


def test_a_batch_that_an_earlier_version_asked_for_goes_on(tmp_path: Path) -> None:
    space = Space(**SEARCH, trials=16)
    proposals = Proposals(space, tmp_path, seed=0, fits=lambda chosen: True)
    trials = [proposals.ask(number) for number in range(3)]
    for trial in trials[:2]:  # it marked each trial of a batch
        trial.set_user_attr("batch", 0)
    batch = Proposals(space, tmp_path, seed=0, fits=lambda chosen: True).next_batch()
    assert batch == proposals.chosen(trials[:2])
    proposals.tell({each: outcome(each) for each in batch})
    assert len(proposals.answered()) == 2
    assert proposals.next_batch()[0] == proposals.chosen(trials)[2]


def test_a_damaged_journal(tmp_path: Path) -> None:
    straight, _ = search(tmp_path)
    path = tmp_path / "optuna.log"
    whole = path.read_bytes()
    with path.open("ab") as stream:
        stream.write(whole[:50])  # cut, as by a full disk
    assert search(tmp_path)[0] == straight
    assert path.read_bytes().startswith(whole)
    for damaged in (b"{\n" + whole, b"[]\n", b'{"op_code": 4}\n', b"\xff\n\n"):
        path.write_bytes(damaged)
        with pytest.raises(memtok.MemtokError, match="journal of an Optuna study") as caught:
            search(tmp_path)
        assert "\n" not in str(caught.value)


def test_the_study_knows_what_was_found(quick: Quick, tmp_path: Path) -> None:
    import optuna

    result = quick(**SEARCH, trials=8, halving=2, steps=16)
    journal = optuna.storages.journal.JournalFileBackend(str(tmp_path / "sweep" / "runs" / "digits" / "optuna.log"))
    study = optuna.load_study(study_name="memtok", storage=optuna.storages.JournalStorage(journal))
    by_name = {trial.configuration.name: trial for trial in result.data[0].trials}
    states = []
    for asked in study.trials:
        told = by_name[Configuration.of(asked.user_attrs["configuration"]).name]
        assert told.last is not None
        states.append((asked.state.name, told.state))
        if told.state == "finished":
            assert asked.value == told.last.top1
        else:
            assert asked.intermediate_values == {8: told.last.top1}
    assert set(states) == {("COMPLETE", "finished"), ("PRUNED", "stopped")}
    assert states.count(("PRUNED", "stopped")) == 4  # one of two in each batch


def test_batches_fill_a_pass(tmp_path: Path) -> None:
    space = Space(**SEARCH, trials=40)
    proposals = Proposals(space, tmp_path, seed=0, fits=lambda chosen: sum(each.memory + 1 for each in chosen) <= 12)
    batch = proposals.next_batch()
    assert 1 < len(batch) < 10
    assert sum(each.memory + 1 for each in batch) <= 12
    assert proposals.next_batch() == batch  # not answered yet
    assert all(1e-4 <= each.learning_rate <= 1e-1 for each in batch)
    # What did not fit any more waits for the next batch.
    assert len(proposals.proposed()) == len(batch) + 1


def test_without_optuna_there_is_a_line(quick: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def missing(name: str, *more: Any) -> Any:
        if name == "optuna":
            raise ImportError(name)
        return found(name, *more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(memtok.MemtokError, match=r"the package optuna.*install memtok\[sweep\], or search random"):
        quick(**SEARCH, trials=2)
    assert not (tmp_path / "sweep").exists()
