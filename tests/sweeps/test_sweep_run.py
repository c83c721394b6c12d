"""Sweeps: every configuration ends as it does alone, in one pass or several, after a kill, beside one that diverges."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import memtok
from memtok.backbone import Backbone
from memtok.data import DataSource
from memtok.sweeps import RichSweepListener, SweepListener, SweepResult, Trial
from memtok.sweeps.memory import Budget
from memtok.sweeps.trials import ranked, read_trial
from memtok.training import Progress, train
from memtok.training.state import Validation
from tests.flips import flip
from tests.sweeps.conftest import QUICK, Quick

Trained = Callable[..., dict[str, memtok.Task]]
SPACE: dict[str, Any] = {"learning_rates": [0.02, 0.05], "memory": [0, 3], "weight_decays": [0.0, 0.1]}


def same(one: memtok.Task, other: memtok.Task) -> None:
    """To float32 rounding."""
    for (name, left), right in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


def all_same(one: Mapping[str, memtok.Task], other: Mapping[str, memtok.Task]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        same(one[name], other[name])


class Stop(SweepListener):
    """Interrupts the training of pass number `number` at step `step`."""

    def __init__(self, number: int, step: int) -> None:
        self.number, self.at, self.passes = number, step, 0

    def training(self, configurations: Any, start: int, until: int) -> Progress:
        self.passes += 1
        return Interrupted(self.at if self.passes == self.number else None)


class Interrupted(Progress):
    def __init__(self, at: int | None) -> None:
        self.at = at

    def step(self, step: int) -> None:
        if step == self.at:
            raise KeyboardInterrupt


class Counted(SweepListener):
    """What was trained."""

    def __init__(self) -> None:
        self.passes: list[tuple[int, int, int]] = []  # configurations, from, to
        self.tests = 0

    def training(self, configurations: Any, start: int, until: int) -> Progress:
        self.passes.append((len(configurations), start, until))
        return Progress()

    def tested(self, data: str, trial: Trial, top1: float, images: int) -> None:
        self.tests += 1


@pytest.mark.twice
def test_each_configuration_ends_as_it_does_alone(
    quick: Quick, trained: Trained, backbone: Backbone, data: DataSource
) -> None:
    regimes = ["memory", "readout", "head"]
    space = SPACE | {"regimes": regimes, "seeds": [0, 1], "queries": [1, 2], "weight_decays": [0.1]}
    result = quick(**space, keep_all=True)
    found = trained()
    assert len(found) == len(result.data[0].trials) == 2 * 2 * 2 * 2 + 2 * (2 * 2)
    for trial in result.data[0].trials[::5]:
        each = trial.configuration
        alone = memtok.Task.create(
            backbone,
            name="digits",
            classes=data.classes,
            regime=each.regime,
            memory=each.memory if each.regime == "memory" else None,
            queries=each.queries,
            readout=each.readout,
            seed=each.seed,
        )
        rates = {"learning_rate": each.learning_rate, "weight_decay": each.weight_decay}
        single = train(alone, data, **rates, validate_every=8, **QUICK)
        same(found[each.name], alone)
        assert trial.last is not None
        assert trial.last.top1 == pytest.approx(single.final_accuracy, abs=0.04)
        assert trial.trained_parameters == single.trainable_parameters


@pytest.mark.twice
def test_several_passes_give_what_one_gives(quick: Quick, trained: Trained, tmp_path: Path) -> None:
    one, counted = quick(**SPACE, keep_all=True), Counted()
    whole = trained()
    split = {"memory_limit": bytes_of_three() / 1e9, "out": tmp_path / "b"}
    several = quick(**SPACE, **split, keep_all=True, progress=counted)
    assert len(counted.passes) >= 3
    assert sum(count for count, _, _ in counted.passes) == 8
    all_same(trained(tmp_path / "b"), whole)
    assert winner_name(one) == winner_name(several)


def bytes_of_three() -> int:
    """Bytes of a pass of three configurations of the largest kind."""
    from memtok.sweeps.memory import Step
    from memtok.sweeps.space import Space
    from tests.tiny import tiny_backbone

    backbone = tiny_backbone()
    step = Step.of(backbone, images=16, classes=2, optimizer="adamw", precision="float32")
    return Budget(step, 0).need(Space(learning_rates=[0.1, 0.2, 0.3], memory=[3]).grid())


def winner_name(result: Any) -> str:
    assert result.winner is not None
    return str(result.winner.configuration.name)


@pytest.mark.twice
@pytest.mark.parametrize(("number", "step"), [(1, 5), (2, 3)])
def test_goes_on_after_a_kill(
    quick: Quick, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, step: int
) -> None:
    monkeypatch.setattr("memtok.training.run.SAVE_SECONDS", 0.0)  # after every step
    monkeypatch.setattr("memtok.training.run.SAVE_SHARE", math.inf)
    split = SPACE | {"weight_decays": [0.1], "together": 3, "keep_all": True}
    with pytest.raises(KeyboardInterrupt):
        quick(**split, progress=Stop(number, step))
    assert not (tmp_path / "sweep" / "best.safetensors").exists()
    counted = Counted()
    result = quick(**split, progress=counted)
    assert [count for count, _, _ in counted.passes] == ([3, 1] if number == 1 else [1])
    straight = quick(**split, out=tmp_path / "straight")
    all_same(trained(), trained(tmp_path / "straight"))
    assert [trial.looks for trial in result.data[0].trials] == [trial.looks for trial in straight.data[0].trials]
    assert not (tmp_path / "sweep" / "runs" / "digits" / "passes").exists()
    again = Counted()
    assert quick(**split, progress=again).to_json() == result.to_json()
    assert again.passes == []
    assert again.tests == 0  # the test part is looked at once
    assert counted.tests == 1


def test_a_pass_that_is_too_large_by_now_is_split_where_it_is(
    quick: Quick, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memtok.training.run.SAVE_SECONDS", 0.0)
    monkeypatch.setattr("memtok.training.run.SAVE_SHARE", math.inf)
    with pytest.raises(KeyboardInterrupt):
        quick(**SPACE, keep_all=True, progress=Stop(1, 5))
    counted = Counted()
    quick(**SPACE, keep_all=True, together=3, progress=counted)
    assert counted.passes == [(3, 4, 8), (3, 4, 8), (2, 4, 8)]  # step 5 was not saved any more
    quick(**SPACE, keep_all=True, out=tmp_path / "straight")
    all_same(trained(), trained(tmp_path / "straight"))


def test_a_changed_setting_is_refused_and_a_grid_may_grow(quick: Quick, tmp_path: Path) -> None:
    first = quick(learning_rates=[0.02])
    for changed in ({"batch_size": 8}, {"seed": 1}, {"halving": 2}, {"search": "random", "trials": 1}):
        with pytest.raises(memtok.MemtokError) as caught:
            quick(learning_rates=[0.02], **changed)
        assert caught.value.argument == next(iter(changed))
    counted = Counted()
    grown = quick(learning_rates=[0.02, 1e-9], progress=counted)
    assert [count for count, _, _ in counted.passes] == [1]
    assert winner_name(grown) == winner_name(first)
    assert counted.tests == 0
    best = (tmp_path / "sweep" / "best.safetensors").read_bytes()
    shrunk = quick(learning_rates=[1e-9])  # its task went when the other one was better, so it is trained again
    assert winner_name(shrunk) == "memory-5-rate-1e-09-decay-0.01-seed-0"
    assert (tmp_path / "sweep" / "best.safetensors").read_bytes() != best


def test_a_sweep_from_before_a_setting_existed_had_its_default(quick: Quick, tmp_path: Path) -> None:
    first = quick(learning_rates=[0.02])
    settings = tmp_path / "sweep" / "sweep.json"
    written = json.loads(settings.read_text())
    assert written.pop("precision") == "float32"
    settings.write_text(json.dumps(written))
    assert winner_name(quick(learning_rates=[0.02])) == winner_name(first)
    with pytest.raises(memtok.MemtokError) as caught:
        quick(learning_rates=[0.02], precision="bf16")
    assert caught.value.argument == "precision"


def test_another_preprocessing_is_refused(quick: Quick, backbone: Backbone, data: DataSource, tmp_path: Path) -> None:
    quick(learning_rates=[0.02])
    settings = tmp_path / "sweep" / "sweep.json"
    written = json.loads(settings.read_text())
    other = copy.deepcopy(backbone)
    other.preprocessing = replace(backbone.preprocessing, mean=(0.0, 0.25, 0.5))
    assert other.fingerprint == backbone.fingerprint
    again: dict[str, Any] = {"learning_rates": [0.02, 0.05], "out": tmp_path / "sweep", **QUICK}
    words = r"sweep, preprocessing.mean \[0.5, 0.5, 0.5\], found \[0.0, 0.25, 0.5\]; use the same"
    with pytest.raises(memtok.MemtokError, match=words):
        memtok.sweep(other, data, **again)
    # Settings of a time when they did not tell the preprocessing: the winner's task does.
    old = {name: value for name, value in written.items() if name != "preprocessing"}
    settings.write_text(json.dumps(old))
    words = r"memory-5-rate-0.02-decay-0.01-seed-0.safetensors, which this sweep trained, mean \[0.5, 0.5, 0.5\], found"
    with pytest.raises(memtok.MemtokError, match=words):
        memtok.sweep(other, data, **again)
    assert json.loads(settings.read_text()) == old
    counted = Counted()
    quick(learning_rates=[0.02, 0.05], progress=counted)
    assert [count for count, _, _ in counted.passes] == [1]
    assert json.loads(settings.read_text()) == written


def test_one_process_at_a_time_works_on_a_folder(quick: Quick, tmp_path: Path) -> None:
    """Also while the settings are looked at: neither of two that start at once may miss those of the other."""

    class Second(SweepListener):
        def training(self, configurations: Any, start: int, until: int) -> Progress:
            with pytest.raises(memtok.MemtokError, match=r"nobody else at work.*found another process"):
                quick(learning_rates=[0.02], seed=1)
            return Progress()

    quick(learning_rates=[0.02], progress=Second())
    assert json.loads((tmp_path / "sweep" / "sweep.json").read_text())["seed"] == 0


def test_one_that_diverges_loses_and_disturbs_nobody(quick: Quick, trained: Trained, tmp_path: Path) -> None:
    result = quick(learning_rates=[0.02, 1e38], recipe="paper", keep_all=True)
    last = result.data[0].trials[-1]
    assert (last.state, last.configuration.learning_rate) == ("diverged", 1e38)
    assert last.diverged_at is not None
    assert winner_name(result) == "memory-5-rate-0.02-decay-0-seed-0"
    quick(learning_rates=[0.02], recipe="paper", keep_all=True, out=tmp_path / "quiet")
    all_same(trained(), trained(tmp_path / "quiet"))  # of the diverged one no task is kept
    assert "diverged at step" in (tmp_path / "sweep" / "result.md").read_text()
    none = quick(learning_rates=[1e38], recipe="paper", out=tmp_path / "none")
    assert none.winner is None
    assert "no winner" in none.sentences()[1]
    assert not (tmp_path / "none" / "best.safetensors").exists()


def trial(quality: tuple[float, float], parameters: int, number: int, state: str = "finished", step: int = 8) -> Trial:
    from memtok.sweeps.space import Space

    return Trial(
        configuration=Space(learning_rates=[0.1], seeds=list(range(9))).grid()[number],
        state=state,
        looks=(Validation(step=step, top1=quality[0], top5=1.0, loss=quality[1]),),
        trained_parameters=parameters,
        seconds=1.0,
        diverged_at=None,
        data="digits",
        split="",
        fingerprint="",
    )


def test_the_order_of_the_table() -> None:
    first = trial((0.9, 0.3), 100, 0)
    more_accurate = trial((0.91, 0.9), 900, 1)
    lower_loss = trial((0.9, 0.2), 900, 2)
    fewer = trial((0.9, 0.3), 90, 3)
    later = trial((0.9, 0.3), 100, 4)
    stopped = trial((0.99, 0.1), 1, 5, "stopped", 4)
    earlier = trial((0.999, 0.1), 1, 6, "stopped", 2)
    diverged = trial((0.0, 0.0), 1, 7, "diverged")
    order = [first, more_accurate, lower_loss, fewer, later, earlier, stopped, diverged]
    assert ranked(order) == [more_accurate, lower_loss, fewer, first, later, stopped, earlier, diverged]


def test_what_is_written(backbone: Backbone, data: DataSource, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    result = memtok.sweep(backbone, data, out=out, **SPACE, name="zero-or-one", **QUICK)
    task = memtok.load_task(out / "best.safetensors", backbone)
    assert task.name == "zero-or-one"
    assert result.winner is not None
    assert task.record["hyperparameters"]["learning_rate"] == result.winner.configuration.learning_rate
    kept = [path.stem for path in (out / "runs" / "digits").glob("*.safetensors")]
    assert kept == [winner_name(result)]
    found = json.loads((out / "result.json").read_text())
    assert found == result.to_json()
    (one,) = found["data"]
    assert one["winner"] == winner_name(result)
    assert [each["rank"] for each in one["configurations"]] == list(range(1, 13))  # four heads beside the eight
    assert 0 <= one["test"]["top1"] <= one["test"]["top5"] <= 1
    assert len((out / "result.csv").read_text().splitlines()) == 13
    assert (out / "sweep.png").stat().st_size > 1000
    assert all(sentence in (out / "result.md").read_text() for sentence in result.sentences())


def test_data_without_a_test_part_of_its_own(quick: Quick, backbone: Backbone, tmp_path: Path) -> None:
    pictures = torch.utils.data.TensorDataset(torch.zeros(40, 3, 32, 32), torch.arange(40) % 2)
    source = memtok.data.from_dataset(Pictures(pictures), ["a", "b"])
    result = memtok.sweep(backbone, source, out=tmp_path / "own", learning_rates=[0.1], **QUICK)
    assert result.data[0].test is None
    assert "no test part of their own" in result.sentences()[-1]


class Pictures(torch.utils.data.Dataset[Any]):
    """Pictures of a tensor data set."""

    def __init__(self, inner: torch.utils.data.TensorDataset) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from torchvision.transforms.functional import to_pil_image

        picture, label = self.inner[index]
        return to_pil_image(picture), int(label)


def test_several_data_sets_in_turn(backbone: Backbone, data: DataSource, tmp_path: Path) -> None:
    other = replace(memtok.open_data("digits").only(["2", "3"]), spec="more digits")
    result = memtok.sweep(backbone, [data, other], out=tmp_path, learning_rates=[0.02, 0.1], **QUICK)
    assert [one.data for one in result.data] == ["digits", "more digits"]
    assert all(one.best and one.best.exists() for one in result.data)
    heads, lines, _ = result.table()
    assert heads[0] == "data"
    assert [line[0] for line in lines] == ["digits"] * 4 + ["more digits"] * 4


def test_bad_arguments_are_one_line(quick: Quick, backbone: Backbone, data: DataSource, tmp_path: Path) -> None:
    for more, words in (
        ({"learning_rate": 0.1}, "no learning_rate for a sweep, found one; give learning_rates"),
        ({"resume": True}, "no resume for a sweep"),
        ({"halving": 1}, "halving as a whole number of 2 or more"),
        ({"together": 0}, "together as a whole number"),
        ({"memory_limit": -1.0}, "memory_limit in GB"),
        ({"memory_limit": float("nan")}, "memory_limit in GB"),
        ({"learning_rates": [10**400]}, r"learning_rates of 3e\+38 at most"),
        ({"memory_limit": 1e-6}, "of memory for memory-5"),
        ({"steps": 0}, "steps as a whole number"),
        ({"name": "base"}, "task name other than 'base'"),
    ):
        with pytest.raises(memtok.MemtokError, match=words):
            quick(**more)
    with pytest.raises(memtok.MemtokError, match="each once"):
        memtok.sweep(backbone, [data, data], out=tmp_path / "two", **QUICK)
    with pytest.raises(memtok.MemtokError, match="data by name"):
        memtok.sweep(backbone, [3], out=tmp_path / "two", **QUICK)  # type: ignore[list-item]
    assert not (tmp_path / "two").exists()
    assert not (tmp_path / "sweep" / "runs").exists()


def test_a_damaged_record_is_named(quick: Quick, tmp_path: Path) -> None:
    quick(learning_rates=[0.02])
    path = tmp_path / "sweep" / "runs" / "digits" / "memory-5-rate-0.02-decay-0.01-seed-0.json"
    for text in ("{", "[]", '{"format_version": 99}'):
        path.write_text(text)
        with pytest.raises(memtok.MemtokError, match="expected the record of a configuration"):
            read_trial(path)


def test_one_flipped_bit_of_a_record_is_refused_or_harmless(quick: Quick, tmp_path: Path) -> None:
    quick(learning_rates=[0.02], steps=1)
    folder = tmp_path / "sweep" / "runs" / "digits"
    path = folder / "memory-5-rate-0.02-decay-0.01-seed-0.json"
    whole, expected = path.read_bytes(), read_trial(path)
    for bit in range(0, 8 * len(whole), 53):
        path.write_bytes(flip(whole, bit))
        try:
            found = read_trial(path)
        except memtok.MemtokError:
            continue
        assert found == expected, f"bit {bit}"


def test_other_images_under_the_same_names_are_refused(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memtok.sweeps.picture.draw", lambda result, path: None)
    generator = np.random.default_rng(0)

    def picture(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (36, 36, 3), dtype=np.uint8)).save(path)

    for name in ("a/0", "a/1", "a/2", "b/0", "b/1", "b/2"):
        picture(tmp_path / "photos" / f"{name}.bmp")

    def run() -> SweepResult:
        arguments: dict[str, Any] = {"learning_rates": [0.02], "steps": 1, "data_dir": tmp_path / "data"}
        return memtok.sweep(backbone, f"folder:{tmp_path / 'photos'}", out=tmp_path / "sweep", **(QUICK | arguments))

    run()
    run()
    picture(tmp_path / "photos" / "a" / "1.bmp")
    with pytest.raises(memtok.MemtokError, match="of the images sha256"):
        run()


def test_a_sweep_solves_without_steps(quick: Quick, trained: Trained) -> None:
    solving: dict[str, Any] = {"solver": "ridge", "regimes": ["readout"], "steps": None, "log_every": None}
    result = quick(**solving, readouts=[1, "all"], keep_all=True, compare_head=True)
    names = {f"readout-{levels}-rate-0.01-decay-0.01-seed-0" for levels in (1, 3)}
    assert {trial.configuration.name for trial in result.data[0].trials} == names == set(trained())
    assert all(trial.last is not None and trial.last.top1 > 0.9 for trial in result.data[0].trials)
    for more, argument in (({"halving": 2}, "halving"), ({"regimes": ["readout", "head"]}, "solver")):
        with pytest.raises(memtok.MemtokError) as caught:
            quick(**(solving | more))
        assert caught.value.argument == argument


def test_the_console_listener_says_what_is_going_on(quick: Quick) -> None:
    from io import StringIO

    from rich.console import Console

    for terminal in (False, True):
        stream = StringIO()
        listener = RichSweepListener(Console(file=stream, force_terminal=terminal, width=200))
        quick_out = {"learning_rates": [0.02 + 0.01 * terminal, 0.1 + 0.01 * terminal], "together": 1}
        quick(**quick_out, progress=listener)
        said = stream.getvalue()
        assert "2 configurations in 2 passes (1, 1)" in said
        assert "best " in said
        assert "on the test part" in said or terminal
