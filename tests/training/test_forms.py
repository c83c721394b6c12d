"""Which form a task gets where nobody says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import memtok
from memtok.cli.train import FORM_NAMES
from memtok.training import Progress, choose_form
from memtok.training.forms import FORMS, TRIED, USUAL_OF_MANY, chosen_form
from tests.tiny import bytes_of, tiny_backbone

SETTINGS: dict[str, Any] = {"steps": 12, "images": 60, "device": "cpu", "workers": 0}


class Passes(Progress):
    """Counts what is cached."""

    def __init__(self) -> None:
        self.cached = 0

    def caching(self, what: str, done: int, total: int) -> None:
        if what == "caching traces" and done == total:
            self.cached += total


def test_all_forms_answer_every_image_once_and_the_trunk_runs_once() -> None:
    backbone, data, passes = tiny_backbone(depth=3), memtok.open_data("digits").only(["0", "1", "2"]), Passes()
    before = bytes_of(backbone)
    found = choose_form(backbone, data, progress=passes, **SETTINGS)
    assert passes.cached == found.images == 60
    assert bytes_of(backbone) == before
    assert {score.name for score in found.scores} == set(TRIED) - {"ridge-low-rank"}  # for more classes
    assert [score.accuracy for score in found.scores] == sorted((s.accuracy for s in found.scores), reverse=True)
    assert all(score.accuracy > 0.5 for score in found.scores)  # chance is a third
    assert (found.options, found.solver) == (FORMS[found.name].options, FORMS[found.name].solver)
    assert found.name in found.tied
    again = choose_form(backbone, data, **SETTINGS)
    assert again == found
    slow = choose_form(backbone, data, learning_rate=1e-7, label_smoothing=0.2, **SETTINGS)
    before, after = ({score.name: score.accuracy for score in one.scores} for one in (found, slow))
    assert before["ridge"] == after["ridge"]  # it takes no steps
    assert after["side"] < before["side"]


def test_memory_is_tried_where_it_is_named() -> None:
    backbone, data = tiny_backbone(depth=3), memtok.open_data("digits").only(["0", "1", "2"])
    found = choose_form(backbone, data, forms=("memory", "readout", "readout"), **SETTINGS)
    scores = {score.name: score for score in found.scores}
    assert set(scores) == {"memory", "readout"}
    assert scores["memory"].cost > scores["readout"].cost
    assert all(score.accuracy > 0.3 for score in found.scores)
    assert tuple(FORMS) == FORM_NAMES


def answers(right: int, of: int = 1000) -> Any:
    return np.arange(of) < right


@pytest.mark.parametrize(
    ("right", "name", "tied"),
    [
        ((900, 901, 850, 900), "readout+side", {"ridge", "readout", "readout+side"}),
        ((900, 700, 899, 899), "side", {"ridge", "side", "readout+side"}),
        ((900, 700, 700, 700), "ridge", {"ridge"}),
        ((900, 901, 700, 700), "ridge", {"ridge", "readout"}),
        ((900, 700, 898, 700), "ridge", {"ridge"}),  # 2 images and none the other way: above one standard error
    ],
)
def test_the_cheapest_within_a_standard_error_wins(right: tuple[int, ...], name: str, tied: set[str]) -> None:
    costs = {"ridge": 3, "readout": 3, "side": 1, "readout+side": 2}
    found = chosen_form(dict(zip(costs, map(answers, right), strict=True)), costs, 3, 10)
    assert (found.name, set(found.tied)) == (name, tied)


def test_of_few_images_the_usual_form_wins_where_it_is_as_good() -> None:
    costs = {"ridge-class-mean": 1, "ridge": 2, "side": 3}
    for right, name in (((45, 46, 47), "ridge"), ((45, 30, 46), "ridge-class-mean"), ((30, 30, 45), "side")):
        rows = {form: answers(count, 50) for form, count in zip(costs, right, strict=True)}
        found = chosen_form(rows, costs, 3, 10)
        assert (found.name, found.usual) == (name, name == "ridge")
    rows = {form: answers(45, 50) for form in costs}
    assert chosen_form(rows, costs, 3, 10, usual=USUAL_OF_MANY).name == "ridge-class-mean"
    stepped = {name: answers(45, 50) for name in ("side", "readout")}
    assert chosen_form(stepped, {"side": 1, "readout": 2}, 3, 10).name == "readout"


def test_images_of_classes_that_no_other_fold_has_tell_nothing() -> None:
    backbone, source = tiny_backbone(depth=3), memtok.open_data("digits")
    labels = source.train.labels
    single = replace(source, train=source.train.select(np.unique(labels, return_index=True)[1]))
    found = choose_form(backbone, single, **SETTINGS)
    assert (found.name, found.usual, found.scores, found.images) == ("ridge", True, (), 0)
    assert "ridge" in str(found)
    assert choose_form(backbone, single, forms=("readout+side", "side"), **SETTINGS).name == "side"  # the cheaper one
    some = [*np.flatnonzero(labels == 0)[:20], *np.flatnonzero(labels == 1)[:20], *np.flatnonzero(labels == 2)[:1]]
    mixed = choose_form(backbone, replace(source, train=source.train.select(some)), **SETTINGS)
    assert mixed.images == 40


def test_classes_count_alike_however_many_images_they_have() -> None:
    labels = np.repeat([0, 1], [900, 100])
    right = {"ridge": labels == 0, "side": np.ones(1000, dtype=np.bool_)}
    right["side"][:150] = False  # worse at most images, better at most classes
    costs = {"ridge": 3, "side": 1}
    weights = 1000 / (2 * np.array([900, 100]))[labels]
    by_images, by_classes = (chosen_form(right, costs, 3, 10, weights=of) for of in (None, weights))
    assert [(one.name, one.metric) for one in (by_images, by_classes)] == [("ridge", "top1"), ("side", "balanced")]
    assert by_classes.scores[0].accuracy == pytest.approx((750 / 900 + 1) / 2)
    assert by_classes.scores[1].accuracy == pytest.approx(0.5)
    assert by_classes.scores[1].behind.value == pytest.approx((750 / 900 + 1) / 2 - 0.5)


def test_of_no_form_none_is_chosen() -> None:
    with pytest.raises(memtok.MemtokError):
        chosen_form({}, {}, 3, 10)


def test_many_classes_may_answer_through_few_numbers(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for label in range(64):
        colour = np.array([label % 8, label // 8, 3]) * 30 + 20
        for image in range(4):
            path = tmp_path / f"{label:02}" / f"{image}.png"
            path.parent.mkdir(exist_ok=True)
            pixels = np.clip(colour + generator.normal(0, 2, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(path)
    forms = ("ridge-low-rank", "ridge-class-mean")
    data, backbone = memtok.open_data(f"folder:{tmp_path}"), tiny_backbone(depth=3)
    found = choose_form(backbone, data, forms=forms, images=192, device="cpu", workers=0)
    scores = {score.name: score for score in found.scores}
    assert scores["ridge-low-rank"].cost < scores["ridge-class-mean"].cost
    assert all(score.accuracy > 0.5 for score in found.scores)  # chance is 1 / 64
    assert found.name == ("ridge-class-mean" if "ridge-class-mean" in found.tied else "ridge-low-rank")  # 192 are few


@pytest.mark.parametrize(
    "wrong", [{"folds": 1}, {"images": 1}, {"metric": "loss"}, {"forms": ["magic"]}, {"forms": ["ridge-low-rank"]}]
)
def test_wrong_numbers_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(memtok.MemtokError) as caught:
        choose_form(tiny_backbone(), memtok.open_data("digits"), **wrong)
    assert caught.value.argument in wrong
