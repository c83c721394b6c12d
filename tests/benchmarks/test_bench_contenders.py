"""Contenders do what they are said to do: the dense form answers as the reference, peers are used as they should be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from memtok.errors import MemtokError
from memtok.reference import reference_outputs
from memtok_benchmarks import contenders, lines, peers
from memtok_benchmarks.contenders import Contender
from memtok_benchmarks.dense import DenseMasked
from memtok_benchmarks.scene import Scene, make_vit
from memtok_benchmarks.sizes import Sizes, quick_sizes
from tests.tiny import tiny_backbone, tiny_images, tiny_task

QUICK = quick_sizes(threads=1)
OWN = [name for name, contender in contenders.ALL.items() if not contender.needs]


@pytest.fixture
def scene() -> Iterator[Scene]:
    threads = torch.get_num_threads()
    with Scene(QUICK) as scene:
        yield scene
    torch.set_num_threads(threads)


@pytest.mark.parametrize("changes", [{}, {"class_token": True, "reg_tokens": 2}, {"pre_norm": True}, {"qk_norm": True}])
@pytest.mark.parametrize("trainable", [False, True])
def test_dense_form_answers_as_the_reference(changes: dict[str, object], trainable: bool) -> None:
    backbone = tiny_backbone(**changes)
    tasks = [tiny_task(backbone, "a", seed=1, memory=2), tiny_task(backbone, "b", seed=2, memory=3, classes=4)]
    model, images = DenseMasked(backbone, tasks, trainable=trainable), tiny_images()
    expected = reference_outputs(backbone, tasks, images)
    for task, logits in zip(tasks, model(images), strict=True):
        torch.testing.assert_close(logits, expected[task.name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("trainable", [False, True])
def test_dense_form_has_gradients_where_the_reproduction_has_them(trainable: bool) -> None:
    backbone = tiny_backbone()
    model = DenseMasked(backbone, [tiny_task(backbone)], trainable=trainable)
    model(tiny_images())[0].sum().backward()
    assert all(parameter.grad is not None for parameter in model.task_parameters())
    reached = {name for name, parameter in model.vit.named_parameters() if parameter.grad is not None}
    unused = {"head.weight", "head.bias"}  # of the base classes, which no task reads
    assert reached == ({name for name, _ in model.vit.named_parameters()} - unused if trainable else set())
    assert all(parameter.grad is None for parameter in backbone.parameters())


@pytest.mark.parametrize("name", OWN)
def test_every_step_runs_and_changes_what_it_trains(scene: Scene, name: str) -> None:
    run = contenders.ALL[name].make(scene)
    before = {key: value.clone() for key, value in scene.backbone.state_dict().items()}
    first, second = run(), run()
    if name != "trunk":
        assert not torch.equal(torch.as_tensor(first), torch.as_tensor(second))  # the loss moves
    assert all(torch.equal(value, scene.backbone.state_dict()[key]) for key, value in before.items())


@pytest.mark.parametrize(
    "make",
    [contenders.memtok_serving, contenders.dense_serving, contenders.models_serving],
    ids=lambda make: make.__name__,
)
def test_every_server_answers_all_tasks(scene: Scene, make: object) -> None:
    answers = make(scene, 3)()  # type: ignore[operator]
    found = list(answers.values()) if isinstance(answers, dict) else answers
    found = found[0] if len(found) == 1 else found
    assert [tuple(logits.shape) for logits in found] == [(QUICK.batch, QUICK.classes)] * 3


def test_memtok_and_dense_serve_the_same_answers(scene: Scene) -> None:
    own, dense = contenders.memtok_serving(scene, 3)(), contenders.dense_serving(scene, 3)()
    assert isinstance(own, dict)
    assert isinstance(dense, list)
    for one, other in zip(own.values(), dense[0], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit-pytorch", "lora"])
def test_peers_train_what_they_should(scene: Scene, name: str) -> None:
    contender = contenders.ALL[name]
    for package in contender.needs:
        pytest.importorskip(peers.PACKAGES[package])
    run = contender.make(scene)
    assert not torch.equal(torch.as_tensor(run()), torch.as_tensor(run()))
    if name == "vit-pytorch":
        vit = peers.vit_pytorch_vit(scene)
        trained = peers.trained(peers.vit_pytorch_adapter(scene, vit, 2))
        assert sum(parameter.numel() for parameter in trained) == 32 + 2 * 2 * 32 + 2 * 32 + 4 * 33
        assert contenders.vit_pytorch_serving(scene, 2)()[1].shape == (4, 4)  # type: ignore[index]
        return
    model = peers.LoRA(scene, ("a", "b"))
    rank, layers, width = peers.RANK, 2, 32
    expected = 2 * layers * 2 * rank * width + 4 * (width + 1)  # queries and values, down and up; the classifier
    assert sum(parameter.numel() for parameter in peers.trained(model)) == expected
    assert model.adapter_bytes("a") == 4 * expected
    assert contenders.lora_serving(scene, 2)()[1].shape == (4, 4)  # type: ignore[index]


def test_a_missing_package_leaves_a_gap(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "installed", lambda name: False)
    race = lines.run_race(scene, {"trunk": contenders.TRUNK, "lora": contenders.STEPS["lora"]})
    assert race.gaps == {"lora": "not installed: peft, transformers"}
    assert race.entry("lora", "LoRA", "trunk") == lines.Entry(
        label="LoRA", value=None, note="not installed: peft, transformers"
    )
    assert set(race.timings) == {"trunk"}


def test_a_package_that_does_not_run_leaves_a_gap_but_our_own_errors_are_errors(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Scene) -> object:
        raise AttributeError("no such name\nsecond line")

    monkeypatch.setattr(peers, "installed", lambda name: True)
    theirs = Contender(label="x", make=broken, needs=("peft",))  # type: ignore[arg-type]
    race = lines.run_race(scene, {"trunk": contenders.TRUNK, "x": theirs})
    assert race.gaps == {"x": "does not run here: AttributeError: no such name"}
    with pytest.raises(AttributeError):
        lines.run_race(scene, {"x": replace(theirs, needs=())})


def test_sizes_and_models_that_cannot_be() -> None:
    for model in ("resnet18", "no-such"):
        with pytest.raises(MemtokError, match=model) as error:
            make_vit(Sizes(model=model))
        assert error.value.argument == "model"
    for argument, value in (("rounds", 4), ("batch", 0), ("image_size", 0)):
        with pytest.raises(MemtokError) as error:
            Sizes(**{argument: value})
        assert error.value.argument == argument


def test_bounds_hold_for_the_sizes_that_they_are_stated_for() -> None:
    assert Sizes(threads=7, rounds=9, image_size=224).asked(1.15) == 1.15
    for other in (Sizes(batch=16), Sizes(image_size=384), Sizes(precision="bf16"), Sizes(model="x"), QUICK):
        assert other.asked(1.15) is None
    assert Sizes(**Sizes(tasks=(1, 2)).to_json()) == Sizes(tasks=(1, 2))


def test_weights_are_drawn_from_the_seed_and_nothing_else_moves() -> None:
    state = torch.random.get_rng_state()
    first, second = make_vit(QUICK).state_dict(), make_vit(QUICK).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert torch.equal(torch.random.get_rng_state(), state)
