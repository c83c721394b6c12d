"""Concatenation and extension as experiments: with the mask nothing changes, without it something does."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
import torch

import memtok
from memtok.backbone import Backbone
from memtok.data import DataSource, open_data
from memtok.reference import unmasked_outputs, variant_outputs
from memtok_experiments.composition import concat, evaluate_unmasked, extension
from memtok_experiments.grid import Grid
from memtok_experiments.pictures import BeforeAfter
from tests.experiments.test_grid import settings
from tests.tiny import tiny_backbone, tiny_images, tiny_task

DATA = ("digits", "mnist", "fashion-mnist")


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny_backbone()


@pytest.fixture
def pairs_of_digits(monkeypatch: pytest.MonkeyPatch, backbone: Backbone) -> dict[str, DataSource]:
    """Two digits each take the place of the data sets."""
    digits = open_data("digits")
    pairs = {name: digits.only([str(2 * n), str(2 * n + 1)]) for n, name in enumerate(DATA)}
    monkeypatch.setattr(Grid, "source", lambda self, spec: pairs[spec])
    monkeypatch.setattr("memtok_experiments.composition.open_backbone", lambda settings: backbone)
    monkeypatch.setattr("memtok_experiments.grid.open_backbone", lambda settings: backbone)
    return pairs


def test_concat(backbone: Backbone, pairs_of_digits: dict[str, DataSource], tmp_path: Path) -> None:
    asked = settings(tmp_path, data=DATA, seeds=(0, 1), steps=8)
    result = concat(asked, cells=2)
    assert result.unchanged
    assert [(row.task, row.seed) for row in result.rows] == [(name, seed) for seed in (0, 1) for name in DATA]
    for row in result.rows:
        assert row.alone == row.together
        assert row.alone_unmasked is not None
        images = pairs_of_digits[row.task].test
        assert row.images == len(images)
        path = next((tmp_path / "runs" / row.task / "memory-2").glob(f"*-seed-{row.seed}.safetensors"))
        table = memtok.evaluate(memtok.MemoryViT(backbone, [memtok.load_task(path, backbone)]), images)
        assert table.tasks["memory-2"].top1 == row.alone
    changed = [row.together_unmasked != row.alone_unmasked for row in result.rows]
    assert any(changed)  # without the mask the others disturb


def test_extension(
    backbone: Backbone, pairs_of_digits: dict[str, DataSource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = extension(settings(tmp_path, data=DATA), cells=1)
    assert result.unchanged
    assert {row.task: row.extends for row in result.rows} == {DATA[0]: (), DATA[1]: (DATA[0],), DATA[2]: ()}
    assert {row.task: row.without_extending is None for row in result.rows} == {
        DATA[0]: True,
        DATA[1]: False,
        DATA[2]: True,
    }
    again = extension(settings(tmp_path, data=DATA), cells=1)  # nothing is trained again
    assert again == result
    drawn: list[list[BeforeAfter]] = []
    monkeypatch.setattr("memtok_experiments.pictures.draw_before_after", lambda tasks, path: drawn.append(tasks))
    result.save(tmp_path)
    shown = {row.task: row.without_extending for row in drawn[0]}
    assert shown == {name: result.mean(name, "without_extending") for name in DATA}
    assert shown[DATA[1]] is not None


def test_a_rate_that_is_added_changes_what_is_extended(
    backbone: Backbone, pairs_of_digits: dict[str, DataSource], tmp_path: Path
) -> None:
    first = extension(settings(tmp_path, data=DATA[:2], learning_rates=(1e-9,)), cells=1)
    second = extension(settings(tmp_path, data=DATA[:2], learning_rates=(1e-9, 0.05)), cells=1)
    fresh = extension(settings(tmp_path / "fresh", data=DATA[:2], learning_rates=(1e-9, 0.05)), cells=1)
    assert first.rows != second.rows == fresh.rows


def test_a_task_that_was_not_measured_has_no_mean(pairs_of_digits: dict[str, DataSource], tmp_path: Path) -> None:
    result = extension(settings(tmp_path, data=DATA[:2]), cells=0)
    assert result.mean("cifar100", "alone") is None
    assert result.mean(DATA[0], "alone_unmasked") is None
    assert set(result.steps) == set(DATA[:2])


def test_two_data_sets_make_a_chain(backbone: Backbone, pairs_of_digits: dict[str, DataSource], tmp_path: Path) -> None:
    result = extension(settings(tmp_path, data=DATA[:2]), cells=0)
    assert result.rows[1].extends == (DATA[0],)
    assert result.column == "class"


def test_results_are_written(pairs_of_digits: dict[str, DataSource], tmp_path: Path) -> None:
    result = concat(settings(tmp_path, data=DATA[:2]), cells=1)
    paths = result.save(tmp_path)
    assert [path.name for path in paths] == ["concat.json", "concat.csv", "concat.md", "concat.png"]
    assert json.loads(paths[0].read_text())["rows"][0]["task"] == "digits"
    rows = list(csv.DictReader(io.StringIO(paths[1].read_text())))
    assert [row["task"] for row in rows] == ["digits", "mnist"]
    assert "| digits |" in paths[2].read_text()
    assert paths[3].read_bytes().startswith(b"\x89PNG")


def test_one_data_set_is_not_enough(tmp_path: Path) -> None:
    for experiment in (concat, extension):
        with pytest.raises(memtok.MemtokError, match="found 1") as error:
            experiment(settings(tmp_path))
        assert error.value.argument == "data"


# Side by side without a mask


def test_one_task_without_a_mask_is_the_variant(backbone: Backbone) -> None:
    images = tiny_images()
    for regime in ("head+class", "memory-shared"):
        task = tiny_task(backbone, regime=regime)
        expected = variant_outputs(backbone, task, images)["pets"]
        torch.testing.assert_close(unmasked_outputs(backbone, [task], images)["pets"], expected, rtol=1e-5, atol=1e-5)


def test_without_a_mask_tasks_disturb_each_other(backbone: Backbone) -> None:
    images = tiny_images()
    one, other = (tiny_task(backbone, name, seed=seed, regime="memory-shared") for name, seed in (("a", 1), ("b", 2)))
    alone = unmasked_outputs(backbone, [one], images)["a"]
    both = unmasked_outputs(backbone, [one, other], images)
    swapped = unmasked_outputs(backbone, [other, one], images)
    assert not torch.allclose(alone, both["a"], atol=1e-2)
    torch.testing.assert_close(both["a"], swapped["a"], rtol=1e-4, atol=1e-4)  # there is no order among them


def test_what_cannot_stand_side_by_side_is_refused(backbone: Backbone) -> None:
    for more in ({"regime": "head"}, {"regime": "memory-propagated"}, {"adapter_rank": 2}):
        with pytest.raises(memtok.MemtokError, match="memory in every layer"):
            unmasked_outputs(backbone, [tiny_task(backbone, **more)], tiny_images())


def test_accuracy_without_a_mask(backbone: Backbone, pairs_of_digits: dict[str, DataSource]) -> None:
    data = pairs_of_digits["digits"]
    task = tiny_task(backbone, "digits", classes=2, regime="memory-shared")
    task.classes = data.classes
    found = evaluate_unmasked(backbone, [task], {"digits": data.test})
    table = memtok.evaluate(memtok.MemoryViT(backbone, [task]), {"digits": data.test})
    assert found["digits"] == table.tasks["digits"].top1
