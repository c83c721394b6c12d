"""Optuna proposes: batches that fill a pass, what came of them is told, and a search goes on where it stopped."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest

import memtok
from memtok.sweeps import Range
from memtok.sweeps.space import Configuration, Space
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


def test_a_search_goes_on_where_it_was_killed(quick: Quick, tmp_path: Path) -> None:
    counted = Counted()
    straight = quick(**SEARCH, trials=4, progress=counted, out=tmp_path / "straight")
    assert [count for count, _, _ in counted.passes] == [1, 1, 1, 1]  # a fourth of the trials each
    assert len(straight.data[0].trials) == 4
    assert straight.winner is not None
    best = max(trial.last.top1 for trial in straight.data[0].trials if trial.last)
    assert straight.winner.last is not None
    assert straight.winner.last.top1 == best
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
    from memtok.sweeps.proposals import Proposals

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
