"""`train`: all regimes learn, change only what they may, and give the same result for the same seed."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import Subset

import memtok
from memtok.data import DataSource, open_data
from memtok.errors import MemtokError
from memtok.training import RECIPES, REGIMES, FullModel, train
from memtok.training.state import Validation
from memtok.training.trainer import Trainer
from tests.tiny import tiny_backbone
from tests.training.helpers import STEPS, Recorder, fingerprint, new_task, quick

Backbone = memtok.Backbone


def tensors_of(trainable: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainable.named_parameters()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def losses(result: memtok.training.TrainResult) -> list[float]:
    return [row["loss"] for row in result.history if "loss" in row]


@pytest.mark.parametrize("regime", REGIMES)
def test_every_regime_learns_and_changes_only_its_own_parameters(
    backbone: Backbone, data: DataSource, regime: str
) -> None:
    trainable = new_task(backbone, data, regime)
    before, own = fingerprint(backbone), tensors_of(trainable)

    class Watch(Recorder):
        def step(self, step: int) -> None:
            assert all(parameter.grad is None for parameter in backbone.parameters())
            assert all(parameter.grad is not None for parameter in trainable.parameters() if parameter.numel())

    result = quick(trainable, data, steps=24, progress=Watch())
    assert fingerprint(backbone) == before
    assert losses(result)[-1] < 0.7 * losses(result)[0]
    assert result.model is trainable
    assert all(not torch.equal(value, own[name]) for name, value in tensors_of(trainable).items() if value.numel())
    assert all(parameter.grad is None for parameter in trainable.parameters())
    assert result.best_accuracy > 0.6
    assert trainable.record["regime"] == regime


def test_extended_tasks_stay_as_they_are(backbone: Backbone, data: DataSource) -> None:
    first = new_task(backbone, data, name="first")
    second = new_task(backbone, data, name="second", extends=[first], seed=1)
    third = new_task(backbone, data, name="third", extends=[second], seed=2)
    before = fingerprint(backbone, first, second)
    result = quick(third, data, steps=16)
    assert fingerprint(backbone, first, second) == before
    assert all(parameter.grad is None for task in (first, second) for parameter in task.parameters())
    assert losses(result)[-1] < losses(result)[0]


def test_frozen_task_is_refused(backbone: Backbone, data: DataSource) -> None:
    first = new_task(backbone, data, name="first")
    new_task(backbone, data, name="second", extends=[first])
    with pytest.raises(MemtokError, match="'first' with class_tokens frozen"):
        quick(first, data)
    with pytest.raises(MemtokError, match=r"float32, found class_tokens of 'third' in torch\.bfloat16"):
        quick(new_task(backbone, data, name="third").to(torch.bfloat16), data)
    with pytest.raises(MemtokError, match="expected a Task or a FullModel to train, found Linear"):
        train(torch.nn.Linear(2, 2), data)  # type: ignore[arg-type]


@pytest.mark.twice
def test_generators_and_modes_stay_as_found(backbone: Backbone, data: DataSource) -> None:
    # The public reproduction reseeds the global generator in validate() and leaves the model in evaluation mode.
    for regime, mode in (("memory", True), ("memory", False), ("full", True), ("full", False)):
        trainable = new_task(backbone, data, regime).train(mode)
        modes = [module.training for module in (backbone, *backbone.modules(), *trainable.modules())]
        states = (random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy())  # type: ignore[union-attr]
        quick(trainable, data, augment="inception")
        assert [module.training for module in (backbone, *backbone.modules(), *trainable.modules())] == modes
        assert random.getstate() == states[0]
        assert torch.equal(torch.get_rng_state(), states[1])
        assert np.array_equal(np.random.get_state()[1], states[2])


@pytest.mark.twice
def test_dropout_of_a_full_model_works_in_training_only_and_follows_the_seed(data: DataSource) -> None:
    found = []
    backbone = tiny_backbone(proj_drop_rate=0.5)
    for noise in (1, 2):
        torch.manual_seed(noise)  # must not matter
        model = new_task(backbone, data, "full")
        seen: list[bool] = []
        model.vit.blocks[0].register_forward_hook(lambda block, *_: seen.append(block.training))  # noqa: B023
        quick(model, data, steps=4, validate_every=2)
        found.append(tensors_of(model))
        # 2 steps, 2 batches of validation images, and the same again.
        assert seen == [True, True, False, False] * 2
    assert same(*found)


@pytest.mark.twice
@pytest.mark.parametrize("regime", ["memory", "full"])
def test_same_seed_same_bytes(backbone: Backbone, data: DataSource, regime: str) -> None:
    def run(**arguments: Any) -> dict[str, torch.Tensor]:
        trainable = new_task(backbone, data, regime)
        quick(trainable, data, augment="crop", **arguments)
        return tensors_of(trainable)

    reference = run()
    assert same(run(), reference)
    assert same(run(workers=2), reference)
    assert not same(run(seed=1), reference)


@pytest.mark.twice
@pytest.mark.parametrize("regime", ["memory", "full"])
def test_accumulated_gradients_are_those_of_the_batch(backbone: Backbone, data: DataSource, regime: str) -> None:
    def run(accumulate: int) -> tuple[dict[str, torch.Tensor], list[float]]:
        trainable = new_task(backbone, data, regime)
        # 16 images in 3 parts: 6, 5 and 5; SGD, so that the gradients themselves show in the parameters.
        result = quick(trainable, data, recipe="paper", steps=3, accumulate=accumulate, log_every=1, validate_every=3)
        return tensors_of(trainable), losses(result)

    (whole, whole_losses), (parts, parts_losses) = run(1), run(3)
    start = tensors_of(new_task(backbone, data, regime))
    for name, value in whole.items():
        moved = (value - start[name]).abs().max()
        assert (parts[name] - value).abs().max() <= 1e-3 * moved + 1e-7, name
    assert parts_losses == pytest.approx(whole_losses, rel=1e-5)


def test_one_step_of_sgd_by_hand(backbone: Backbone, data: DataSource) -> None:
    task, twin = new_task(backbone, data, "head"), new_task(backbone, data, "head")
    every = len(data.train)
    recipe = replace(RECIPES["paper"], clip_norm=0.2)
    quick(task, data, recipe=recipe, steps=1, batch_size=every, learning_rate=0.5)
    transform = memtok.evaluation_transform(task.preprocessing)
    images = torch.stack([transform(data.train[index][0]) for index in range(every)])
    labels = torch.from_numpy(data.train.labels)
    features, _ = backbone(images)
    torch.nn.functional.cross_entropy(twin.head(features), labels).backward()
    norm = torch.cat([parameter.grad.flatten() for parameter in twin.head.parameters()]).norm()
    assert norm > 0.2  # or clipping would not be tested
    scale = 0.5 / 5 * 0.2 / norm  # a fifth of the rate in the first of 5 steps, and the gradient cut to norm 0.2
    expected = twin.head.weight - scale * twin.head.weight.grad
    assert torch.allclose(task.head.weight, expected, atol=1e-5)


def test_bf16_keeps_parameters_in_float32(backbone: Backbone, data: DataSource) -> None:
    for regime in ("memory", "full"):
        trainable = new_task(backbone, data, regime)
        result = quick(trainable, data, precision="bf16", steps=4)
        assert {parameter.dtype for parameter in trainable.parameters()} == {torch.float32}
        plain = quick(new_task(backbone, data, regime), data, steps=4)
        assert losses(result) != losses(plain)
        assert losses(result) == pytest.approx(losses(plain), rel=0.05)


def test_an_accelerator_of_the_caller_stays_as_it_is(backbone: Backbone, data: DataSource) -> None:
    mine = Accelerator(cpu=True, mixed_precision="no", gradient_accumulation_steps=7)
    quick(new_task(backbone, data), data, steps=1, precision="bf16")
    quick(new_task(backbone, data), data, steps=1)
    assert (mine.mixed_precision, mine.gradient_accumulation_steps) == ("no", 7)


def test_nothing_is_written_without_out(
    backbone: Backbone, data: DataSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = quick(new_task(backbone, data), data)
    assert list(tmp_path.iterdir()) == []
    assert (result.out, result.steps) == (None, STEPS)


def test_files_of_a_run(backbone: Backbone, data: DataSource, out: Path) -> None:
    task = new_task(backbone, data)
    result = quick(task, data, out=out, seed=3)
    run = out.with_suffix(".run")
    assert sorted(path.name for path in out.parent.iterdir()) == ["digits.run", "digits.safetensors"]
    assert sorted(path.name for path in run.iterdir()) == [
        *(".lock", "config.json", "confusion.csv", "confusion.json", "confusion.png"),
        *("last.safetensors", "metrics.jsonl", "record.json"),
        *("split.json", "state.safetensors", "tensorboard"),
    ]
    loaded = memtok.load_task(out, backbone)
    assert same(tensors_of(loaded), tensors_of(task))
    assert loaded.record == task.record == json.loads((run / "record.json").read_text())
    assert json.loads((run / "split.json").read_text()) == data.split
    assert json.loads((run / "config.json").read_text())["seed"] == 3
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines == result.history
    assert [(row["step"], "loss" in row) for row in lines] == [
        *((2, True), (4, True), (4, False), (6, True), (8, True), (8, False)),
    ]
    assert set(lines[0]) == {
        *("step", "epoch", "loss", "learning_rate", "gradient_norm", "images_per_second", "seconds")
    }
    assert set(lines[2]) >= {"step", "epoch", "validation_top1", "validation_top5", "validation_loss"}


def test_tensorboard_says_the_same_as_the_lines(backbone: Backbone, data: DataSource, out: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = quick(new_task(backbone, data), data, out=out)
    events = EventAccumulator(str(out.with_suffix(".run") / "tensorboard"))
    events.Reload()
    for tag, key in (("train/loss", "loss"), ("validation/top1", "validation_top1")):
        expected = [(row["step"], pytest.approx(row[key])) for row in result.history if key in row]
        assert [(event.step, event.value) for event in events.Scalars(tag)] == expected


def test_record_and_result(backbone: Backbone, data: DataSource) -> None:
    task = new_task(backbone, data)
    result = quick(task, data, seed=5)
    record = result.record
    assert json.loads(json.dumps(record)) == record == task.record
    assert record["data"] == {"spec": "digits", "name": "digits", "split": data.split, "skipped_images": 0}
    assert result.split_digest == data.split_digest == record["data"]["split"]["digest"]
    assert (record["regime"], record["recipe"], record["seed"]) == ("memory", "default", 5)
    assert {"optimizer", "learning_rate", "batch_size", "warmup", "augment"} <= set(record["hyperparameters"])
    assert set(record["versions"]) >= {"memtok", "torch", "timm", "python"}
    assert (record["steps"], record["completed"], record["images_seen"]) == (STEPS, True, STEPS * 16)
    metrics = record["metrics"]
    assert (metrics["step"], metrics["validation_top1"]) == (result.best_step, result.best_accuracy)
    own = sum(parameter.numel() for parameter in task.parameters())
    whole = own + sum(parameter.numel() for parameter in backbone.parameters())
    assert (result.trainable_parameters, result.total_parameters) == (own, whole)
    assert record["parameters"] == {"trained": own, "total": whole}
    assert result.seconds > 0
    assert result.images_per_second > 0
    assert result.task is task


def test_accuracy_is_that_of_the_returned_state(backbone: Backbone, data: DataSource) -> None:
    result = quick(new_task(backbone, data), data, steps=12)
    transform = memtok.evaluation_transform(backbone.preprocessing)
    images = torch.stack([transform(data.validation[index][0]) for index in range(len(data.validation))])
    logits = memtok.MemoryViT(backbone, [result.task])(images)["digits"]
    right = (logits.argmax(dim=1) == torch.from_numpy(data.validation.labels)).float().mean()
    assert result.best_accuracy == pytest.approx(right.item())


def test_best_and_last_state(backbone: Backbone, data: DataSource, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {2: (0.5, 0.1), 4: (0.75, 0.4), 6: (0.75, 0.3), 8: (0.75, 0.3), 10: (0.6, 0.1)}
    states: dict[int, dict[str, torch.Tensor]] = {}

    def pretend(self: Trainer, step: int, *_: Any) -> list[tuple[Validation, torch.Tensor]]:
        states[step] = tensors_of(self.tasks[0])
        top1, loss = told[step]
        return [(Validation(step=step, top1=top1, top5=1.0, loss=loss, balanced=top1), torch.zeros(3, 1))]

    monkeypatch.setattr(Trainer, "validate", pretend)
    task = new_task(backbone, data)
    result = quick(task, data, out=out, steps=10, validate_every=2)
    # Highest accuracy, then lowest loss, then the earlier one.
    assert (result.best_step, result.best_accuracy, result.final_accuracy) == (6, 0.75, 0.6)
    assert same(tensors_of(task), states[6])
    assert same(load_file(out), states[6])
    last = memtok.load_task(out.with_suffix(".run") / "last.safetensors", backbone)
    assert same(tensors_of(last), states[10])
    assert (last.record["metrics"]["step"], task.record["metrics"]["step"]) == (10, 6)


def test_data_in_its_forms(backbone: Backbone, data: DataSource) -> None:
    by_name = open_data("digits")
    task = new_task(backbone, by_name)
    assert quick(task, "digits", steps=1).split_digest == by_name.split_digest

    class Pairs(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            return data.train[index]

    result = quick(new_task(backbone, data), Pairs(), steps=1)
    assert result.record["data"]["split"]["counts"]["train"] == 32
    assert quick(new_task(backbone, data), Subset(Pairs(), range(20)), steps=1).steps == 1


def test_classes_in_another_order_are_mapped(backbone: Backbone, data: DataSource) -> None:
    turned = new_task(backbone, data, "head", classes=("1", "0"))
    result = quick(turned, data, steps=24)
    assert result.best_accuracy > 0.6
    straight = new_task(backbone, data, "head")
    quick(straight, data, steps=24)
    # The same pictures in the same order, so the head differs by the order of its rows, and by how it started.
    assert torch.sign(turned.head.bias[0] - turned.head.bias[1]) == torch.sign(
        straight.head.bias[1] - straight.head.bias[0]
    )


def test_no_split_of_data_that_are_opened_already(backbone: Backbone, data: DataSource) -> None:
    with pytest.raises(MemtokError, match=r"only with data given by name, found '80-20' with a DataSource"):
        quick(new_task(backbone, data), data, split="80-20")


def test_other_classes_are_an_error(backbone: Backbone, data: DataSource) -> None:
    with pytest.raises(MemtokError, match="found no 'cat' in digits"):
        quick(new_task(backbone, data, classes=("cat", "dog")), data)
    with pytest.raises(MemtokError, match=r"found '2' in digits as well .*data\.only"):
        quick(new_task(backbone, data), open_data("digits"))


def test_unreadable_images_are_counted(backbone: Backbone, tmp_path: Path) -> None:
    for name in ("dark", "light"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(6):
            grey = index + (200 if name == "light" else 0)
            Image.new("RGB", (40, 36), (grey, grey, grey)).save(tmp_path / "photos" / name / f"{index}.png")
    (tmp_path / "photos" / "dark" / "broken.png").write_bytes(b"no picture")
    spec = f"folder:{tmp_path / 'photos'}"
    task = memtok.Task.create(backbone, name="light", classes=["dark", "light"], memory=1)
    with pytest.raises(MemtokError, match=r"broken\.png"):
        quick(task, spec)
    listener = Recorder()
    result = quick(task, spec, on_bad_image="skip", progress=listener)
    assert [Path(path).name for path in result.skipped_images] == ["broken.png"]
    assert result.record["data"]["skipped_images"] == 1
    assert listener.said("reading")[-1] == (13, 13)


def test_progress_is_told_everything_in_order(backbone: Backbone, data: DataSource) -> None:
    listener = Recorder()
    quick(new_task(backbone, data), data, progress=listener)
    (info,) = listener.said("start")
    assert (info.steps, info.start_step, info.regime, info.device) == (STEPS, 0, "memory", "cpu")
    assert 0 < info.trainable_parameters < info.total_parameters
    assert listener.said("step") == list(range(1, STEPS + 1))
    assert [row["step"] for row in listener.said("log")] == [2, 4, 6, 8]
    assert [row["step"] for row, _ in listener.said("validation")] == [4, 8]
    (first, praised), (second, better) = listener.said("validation")
    assert praised is False  # the first one got better than nothing
    assert better is (second["validation_balanced"] > first["validation_balanced"])
    assert listener.calls[0][0] == "start"
    assert listener.calls[-1][0] == "close"


def test_full_result_has_a_model_and_no_task(backbone: Backbone, data: DataSource, out: Path) -> None:
    model = new_task(backbone, data, "full")
    result = quick(model, data, out=out, steps=2)
    assert isinstance(result.model, FullModel)
    with pytest.raises(MemtokError, match="found a whole model"):
        _ = result.task
    reloaded = memtok.load_backbone(out)
    assert reloaded.classes == data.classes
    images = torch.randn(3, 3, 32, 32)
    assert torch.equal(reloaded(images)[1], model(images))


def test_train_is_what_the_package_exports() -> None:
    assert memtok.train is train
