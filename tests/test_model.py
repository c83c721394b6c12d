"""MemoryViT: the contract of composition, and what it guarantees."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import pytest
import torch

import memtok
from memtok.errors import MemtokError
from tests.tiny import VARIANTS, bytes_of, tiny_backbone, tiny_images, tiny_task, tiny_vit

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def backbone() -> memtok.Backbone:
    return tiny_backbone()


def test_outputs_of_an_empty_model(backbone: memtok.Backbone) -> None:
    out = memtok.MemoryViT(backbone)(tiny_images())
    assert out.base is not None
    assert out.features is not None
    assert out.base.shape == (3, 5)
    assert out.features.shape == (3, 32)
    assert out.names == ()


@pytest.mark.parametrize("count", [0, 1, 7])
def test_base_output_is_bitwise_that_of_timm(count: int) -> None:
    vit = tiny_vit()
    backbone = memtok.load_backbone(vit)
    model = memtok.MemoryViT(backbone, [tiny_task(backbone, f"task {index}", seed=index) for index in range(count)])
    images = tiny_images(5)
    with torch.no_grad():
        out = model(images)
        assert torch.equal(out.base, vit(images))
        assert torch.equal(out.features, vit.forward_features(images)[:, 0])


@pytest.mark.parametrize("regime", ["head", "memory", "head+class", "memory-shared", "memory-propagated"])
def test_base_output_is_bitwise_the_same_in_every_regime(backbone: memtok.Backbone, regime: str) -> None:
    images = tiny_images()
    alone = memtok.MemoryViT(backbone)(images)
    out = memtok.MemoryViT(backbone, [tiny_task(backbone, regime=regime)])(images)
    assert torch.equal(out.base, alone.base)
    assert torch.equal(out.features, alone.features)


def test_base_false_gives_the_same_task_answers(backbone: memtok.Backbone) -> None:
    tasks = [tiny_task(backbone, "pets"), tiny_task(backbone, "top", regime="head")]
    images = tiny_images()
    for chosen in (tasks, tasks[:1], tasks[1:]):
        model = memtok.MemoryViT(backbone, chosen)
        full, short = model(images), model(images, base=False)
        assert short.base is None
        assert short.features is None
        for task in chosen:
            torch.testing.assert_close(short[task.name], full[task.name], **CLOSE)


def test_order_of_tasks_is_irrelevant_bitwise(backbone: memtok.Backbone) -> None:
    first = tiny_task(backbone, "a", memory=2)
    tasks = [first, tiny_task(backbone, "b", seed=1), tiny_task(backbone, "c", seed=2, memory=2, extends=[first])]
    images = tiny_images()
    forward = memtok.MemoryViT(backbone, tasks)(images)
    backward = memtok.MemoryViT(backbone, tasks[::-1])(images)
    for task in tasks:
        assert torch.equal(forward[task.name], backward[task.name])


def test_a_composed_task_answers_as_alone(backbone: memtok.Backbone) -> None:
    tasks = [
        tiny_task(backbone, f"task {index}", seed=index, memory=index % 3, queries=1 + index % 2) for index in range(6)
    ]
    images = tiny_images()
    together = memtok.MemoryViT(backbone, tasks)(images)
    for task in tasks:
        torch.testing.assert_close(together[task.name], memtok.MemoryViT(backbone, [task])(images)[task.name], **CLOSE)


def test_add_concat_remove_select_return_new_models(backbone: memtok.Backbone) -> None:
    a, b, c = (tiny_task(backbone, name, seed=seed) for seed, name in enumerate("abc"))
    images = tiny_images()
    left = memtok.MemoryViT(backbone, [a])
    model = left.add(b).concat(memtok.MemoryViT(backbone, [c]))
    assert left.names == ("a",)
    assert model.names == ("a", "b", "c")
    assert model.tasks == (a, b, c)  # held, not copied
    assert model.remove("b").names == ("a", "c")
    assert model.select(["c", "a"]).names == ("c", "a")
    torch.testing.assert_close(model.select(["b"])(images)["b"], model(images)["b"], **CLOSE)
    with pytest.raises(MemtokError, match="expected one of the tasks 'b', found 'a'"):
        model.select(["b"])(images)["a"]


def test_extension(backbone: memtok.Backbone) -> None:
    a = tiny_task(backbone, "a")
    b = tiny_task(backbone, "b", seed=1, extends=[a])
    images = tiny_images()
    model = memtok.MemoryViT(backbone, [a, b])
    alone = memtok.MemoryViT(backbone, [a])(images)
    torch.testing.assert_close(model(images)["a"], alone["a"], **CLOSE)
    apart = tiny_task(backbone, "b", seed=1)
    unlike = memtok.MemoryViT(backbone, [apart])(images)["b"]
    assert not torch.allclose(model(images)["b"], unlike, atol=1e-3)

    selected = model.select(["b"])
    assert selected.names == ("b",)
    assert set(selected.tasks) == {a, b}
    torch.testing.assert_close(selected(images)["b"], model(images)["b"], **CLOSE)
    assert selected.add(a).names == ("b", "a")

    with pytest.raises(MemtokError, match="which 'b' extends; remove 'b' first"):
        model.remove("a")
    with pytest.raises(MemtokError, match="expected all that 'b' extends in the model, found no 'a'"):
        memtok.MemoryViT(backbone, [b])


def test_concat_takes_a_shared_ancestor_once(backbone: memtok.Backbone) -> None:
    a = tiny_task(backbone, "a")
    again = copy.deepcopy(a)
    b, c = tiny_task(backbone, "b", extends=[a]), tiny_task(backbone, "c", seed=1, extends=[again])
    model = memtok.MemoryViT(backbone, [a, b]).concat(memtok.MemoryViT(backbone, [again, c]).select(["c"]))
    assert model.names == ("a", "b", "c")
    assert len(model.tasks) == 3
    images = tiny_images()
    alone = memtok.MemoryViT(backbone, [again, c])(images)
    torch.testing.assert_close(model(images)["c"], alone["c"], **CLOSE)


def test_an_ancestor_of_the_same_name_and_other_content_is_refused(backbone: memtok.Backbone) -> None:
    a, other = tiny_task(backbone, "a"), tiny_task(backbone, "a", seed=5)
    b = tiny_task(backbone, "b", extends=[a])
    with pytest.raises(MemtokError, match="found another task of that name"):
        memtok.MemoryViT(backbone, [other, b])


def test_a_cycle_is_named(backbone: memtok.Backbone) -> None:
    a = tiny_task(backbone, "a")
    b = tiny_task(backbone, "b", extends=[a])
    a.extends = (b,)
    with pytest.raises(MemtokError, match="without a cycle, found 'a' -> 'b' -> 'a'"):
        memtok.MemoryViT(backbone, [a, b])


def test_two_tasks_of_one_name(backbone: memtok.Backbone) -> None:
    a, b = tiny_task(backbone, "a"), tiny_task(backbone, "a", seed=1)
    model = memtok.MemoryViT(backbone, [a])
    for compose in (
        lambda: memtok.MemoryViT(backbone, [a, b]),
        lambda: memtok.MemoryViT(backbone, [a, a]),
        lambda: model.add(b),
        lambda: model.add(a),
        lambda: model.concat(memtok.MemoryViT(backbone, [b])),
    ):
        with pytest.raises(MemtokError, match="different names, found 'a' twice"):
            compose()


@pytest.mark.parametrize("regime", VARIANTS)
def test_tasks_that_image_tokens_see_stand_alone(backbone: memtok.Backbone, regime: str) -> None:
    task, other = tiny_task(backbone, "seen", regime=regime), tiny_task(backbone, "b")
    model = memtok.MemoryViT(backbone, [task])
    assert not task.composable
    assert model(tiny_images())["seen"].shape == (3, 3)
    for compose in (
        lambda: model.add(other),
        lambda: memtok.MemoryViT(backbone).add(task),
        lambda: model.concat(memtok.MemoryViT(backbone, [other])),
        lambda: memtok.MemoryViT(backbone, [other]).concat(model),
        lambda: memtok.MemoryViT(backbone, [task, other]),
    ):
        with pytest.raises(MemtokError, match=f"found 'seen' of regime '{regime.replace('+', '.')}'"):
            compose()


def test_other_preprocessing_is_an_error_that_names_the_difference(backbone: memtok.Backbone) -> None:
    a, b = tiny_task(backbone, "a"), tiny_task(backbone, "b", seed=1)
    b.preprocessing = dataclasses.replace(b.preprocessing, mean=(0.0, 0.0, 0.0))
    with pytest.raises(MemtokError, match=r"between 'a' and 'b': .*mean"):
        memtok.MemoryViT(backbone, [a, b])
    model = memtok.MemoryViT(backbone, [a])
    with pytest.raises(MemtokError, match="mean"):
        model.add(b)
    assert model.add(b, preprocessing=b.preprocessing).preprocessing == b.preprocessing
    b.preprocessing = b.preprocessing.with_image_size(64)
    with pytest.raises(MemtokError, match="64x64"):
        memtok.MemoryViT(backbone, [b])


def test_another_backbone_is_an_error(backbone: memtok.Backbone) -> None:
    stranger = tiny_backbone(seed=1)
    task = tiny_task(stranger)
    with pytest.raises(MemtokError, match="expected tasks of backbone"):
        memtok.MemoryViT(backbone, [task])
    with pytest.raises(MemtokError, match="expected models of one backbone"):
        memtok.MemoryViT(backbone).concat(memtok.MemoryViT(stranger, [task]))


def test_only_a_tasks_own_parameters_get_gradients(backbone: memtok.Backbone) -> None:
    a = tiny_task(backbone, "a")
    b = tiny_task(backbone, "b", seed=1, extends=[a], adapter_rank=2)
    c = tiny_task(backbone, "c", seed=2)
    model = memtok.MemoryViT(backbone, [a, b, c])
    for parameter in a.parameters():
        parameter.requires_grad_(True)  # even when somebody asks for them
    out = model(tiny_images())
    (out["b"].square().sum() + out["a"].sum().detach()).backward()
    assert all(parameter.grad is None for parameter in backbone.parameters())
    for parameter in (*c.parameters(), *a.parameters()):
        assert parameter.grad is None or not parameter.grad.any()
    for name, parameter in b.named_parameters():
        assert parameter.grad is not None, name
        assert bool((parameter.grad != 0).any()), name


def test_an_extended_task_is_frozen(backbone: memtok.Backbone) -> None:
    a = tiny_task(backbone, "a")
    assert all(parameter.requires_grad for parameter in a.parameters())
    tiny_task(backbone, "b", extends=[a])
    assert not any(parameter.requires_grad for parameter in a.parameters())


def test_the_backbone_stays_in_evaluation_mode_and_keeps_its_bytes() -> None:
    backbone = memtok.load_backbone(
        tiny_vit(proj_drop_rate=0.5, attn_drop_rate=0.5, pos_drop_rate=0.5, drop_path_rate=0.5)
    )
    task = tiny_task(backbone)
    model = memtok.MemoryViT(backbone, [task])
    before, images = bytes_of(backbone), tiny_images()
    answers = model.eval()(images)
    model.train()
    assert not any(module.training for module in backbone.modules())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    model(images)["pets"].square().sum().backward()
    optimizer.step()
    assert bytes_of(backbone) == before
    after = model(images)
    assert torch.equal(after.base, answers.base)
    assert not torch.equal(after["pets"], answers["pets"])
    with pytest.raises(MemtokError, match="expected a frozen backbone"):
        backbone.requires_grad_(True)


def test_attention_adds_up_and_equals_the_reference(backbone: memtok.Backbone) -> None:
    a = tiny_task(backbone, "a", memory=2, queries=2)
    b = tiny_task(backbone, "b", seed=1, memory=3, extends=[a])
    c = tiny_task(backbone, "c", seed=2, memory=0)
    images = tiny_images()
    looks = memtok.MemoryViT(backbone, [c, b, a])(images, attention=True).attention
    expected = memtok.reference_outputs(backbone, [a, b, c], images, attention=True).attention
    assert looks["a"].image.shape == (2, 3, 2, 2, 17)
    assert looks["b"].memory.shape == (2, 3, 2, 1, 3)
    assert looks["b"].extended["a"].shape == (2, 3, 2, 1, 4)
    assert looks["c"].memory.shape == (2, 3, 2, 1, 0)
    for name, look in looks.items():
        parts = [look.image, look.class_tokens, look.memory, *look.extended.values()]
        total = sum(part.sum(-1) for part in parts)
        torch.testing.assert_close(total, torch.ones_like(total))
        reference = expected[name]
        others = [reference.image, reference.class_tokens, reference.memory, *reference.extended.values()]
        for part, other in zip(parts, others, strict=True):
            torch.testing.assert_close(part, other, **CLOSE)


@pytest.mark.parametrize("regime", VARIANTS)
def test_attention_of_the_variants_adds_up(backbone: memtok.Backbone, regime: str) -> None:
    task = tiny_task(backbone, regime=regime)
    look = memtok.MemoryViT(backbone, [task])(tiny_images(), attention=True).attention["pets"]
    total = look.image.sum(-1) + look.class_tokens.sum(-1) + look.memory.sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total))
    assert look.memory.shape[-1] == task.cells


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 3, 16, 16), r"expected images of shape \(batch, 3, 32, 32\), found \(2, 3, 16, 16\)"),
        (torch.zeros(3, 32, 32), "expected images of shape"),
        (torch.zeros(2, 1, 32, 32), "expected images of shape"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "expected normalised floating-point images, found torch.uint8"),
        (torch.zeros(2, 3, 32, 32, device="meta"), "expected images on cpu, found them on meta"),
        ([1, 2], "expected images as a tensor"),
    ],
)
def test_bad_images_are_one_line(backbone: memtok.Backbone, images: object, message: str) -> None:
    with pytest.raises(MemtokError, match=message) as caught:
        memtok.MemoryViT(backbone, [tiny_task(backbone)])(images)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_batch_of_none_is_answered(backbone: memtok.Backbone) -> None:
    out = memtok.MemoryViT(backbone, [tiny_task(backbone)])(tiny_images()[:0])
    assert out["pets"].shape == (0, 3)


def test_bfloat16_stays_near_float32() -> None:
    vit = tiny_vit()
    exact, rough = memtok.load_backbone(vit), memtok.load_backbone(vit, dtype=torch.bfloat16)
    assert exact.fingerprint == rough.fingerprint
    images = tiny_images()
    one = tiny_task(exact, adapter_rank=2)
    other = tiny_task(rough, adapter_rank=2)
    with torch.no_grad():
        expected = memtok.MemoryViT(exact, [one])(images)["pets"]
        found = memtok.MemoryViT(rough, [other])(images)["pets"]
    assert found.dtype == torch.float32
    assert float((found - expected).norm() / expected.norm()) < 0.05


def test_swapping_in_another_task_uses_its_values(backbone: memtok.Backbone) -> None:
    task = tiny_task(backbone)
    model = memtok.MemoryViT(backbone, [task])
    images = tiny_images()
    before = model(images)["pets"]
    with torch.no_grad():
        task.memory.add_(torch.linspace(-3, 3, 32))
    assert not torch.allclose(model(images)["pets"], before)


def test_asking_a_model_for_gradients_leaves_backbone_and_ancestors_frozen(backbone: memtok.Backbone) -> None:
    a = tiny_task(backbone, "a")
    b = tiny_task(backbone, "b", seed=1, extends=[a])
    model = memtok.MemoryViT(backbone, [a, b]).requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    model.requires_grad_(True)
    assert not any(parameter.requires_grad for parameter in (*backbone.parameters(), *a.parameters()))
    assert all(parameter.requires_grad for parameter in b.parameters())


def test_loading_a_state_dict_cannot_change_the_backbone(backbone: memtok.Backbone) -> None:
    model = memtok.MemoryViT(backbone, [tiny_task(backbone)])
    before = bytes_of(backbone)
    model.load_state_dict(model.state_dict())
    other = memtok.MemoryViT(tiny_backbone(seed=1), [])
    with pytest.raises(MemtokError, match="expected the backbone's own numbers"):
        memtok.MemoryViT(backbone).load_state_dict(other.state_dict())
    assert bytes_of(backbone) == before


def test_an_optimizer_that_holds_an_ancestor_moves_it_no_more(backbone: memtok.Backbone) -> None:
    a = tiny_task(backbone, "a")
    optimizer = torch.optim.SGD(a.parameters(), lr=0.1, momentum=0.9)
    memtok.MemoryViT(backbone, [a])(tiny_images())["a"].sum().backward()
    tiny_task(backbone, "b", extends=[a])
    fingerprint = a.fingerprint
    optimizer.step()
    assert a.fingerprint == fingerprint


@pytest.mark.parametrize("reverse", [False, True])
def test_a_deep_copy_of_a_model_stands_alone(backbone: memtok.Backbone, reverse: bool) -> None:
    a = tiny_task(backbone, "a")
    b = tiny_task(backbone, "b", seed=1, extends=[a])
    model = memtok.MemoryViT(backbone, [b, a] if reverse else [a, b])
    clone = copy.deepcopy(model)
    images = tiny_images()
    assert torch.equal(clone(images)["b"], model(images)["b"])
    assert all(task.backbone is clone.backbone is not backbone for task in clone.tasks)
    by_name = {task.name: task for task in clone.tasks}
    assert by_name["b"].extends == (by_name["a"],)
    assert by_name["a"] is not a
    clone.double()
    assert a.memory.dtype == backbone.dtype == torch.float32
    assert clone.select(["b"])(images.double())["b"].dtype == torch.float64


def test_a_renamed_task_is_answered_under_its_new_name(backbone: memtok.Backbone) -> None:
    task = tiny_task(backbone)
    model = memtok.MemoryViT(backbone, [task])
    task.name = "cats"
    assert model.names == ("cats",)
    assert model(tiny_images())["cats"].shape == (3, 3)
    with pytest.raises(MemtokError, match="other than 'base'"):
        task.name = "base"


def test_concat_of_models_that_both_answer_a_shared_ancestor(backbone: memtok.Backbone) -> None:
    a = tiny_task(backbone, "a")
    b, c = tiny_task(backbone, "b", extends=[a]), tiny_task(backbone, "c", seed=1, extends=[a])
    model = memtok.MemoryViT(backbone, [a, b]).concat(memtok.MemoryViT(backbone, [a, c]))
    assert model.names == ("a", "b", "c")
    with pytest.raises(MemtokError, match="found 'a' twice"):
        model.add(a)


def test_the_reference_takes_ancestors_that_are_equal_copies(backbone: memtok.Backbone) -> None:
    a = tiny_task(backbone, "a")
    b = tiny_task(backbone, "b", extends=[copy.deepcopy(a)])
    images = tiny_images()
    found = memtok.MemoryViT(backbone, [a, b])(images)
    expected = memtok.reference_outputs(backbone, [a, b], images)
    torch.testing.assert_close(found["b"], expected["b"], **CLOSE)


def test_an_explicit_preprocessing_stays_and_is_checked(backbone: memtok.Backbone) -> None:
    own = dataclasses.replace(backbone.preprocessing, mean=(0.1, 0.1, 0.1))
    a, b = tiny_task(backbone, "a"), tiny_task(backbone, "b", seed=1)
    model = memtok.MemoryViT(backbone, [a], preprocessing=own)
    with pytest.raises(MemtokError, match=r"found a difference in 'b': .*mean"):
        model.add(b)
    with pytest.raises(MemtokError, match=r"found a difference in 'b': .*mean"):
        memtok.MemoryViT(backbone, [b]).concat(model)
    assert model.add(b, preprocessing=own).preprocessing == own
    assert memtok.MemoryViT(backbone).concat(model).preprocessing == own


def test_a_task_takes_the_preprocessing_of_what_it_extends(backbone: memtok.Backbone) -> None:
    own = dataclasses.replace(backbone.preprocessing, mean=(0.1, 0.1, 0.1))
    a = memtok.Task.create(backbone, name="a", classes=["x"], preprocessing=own)
    b = memtok.Task.create(backbone, name="b", classes=["x"], extends=[a])
    assert memtok.MemoryViT(backbone, [a, b]).preprocessing == own
    c = tiny_task(backbone, "c")
    with pytest.raises(MemtokError, match="one preprocessing for 'd' to extend"):
        memtok.Task.create(backbone, name="d", classes=["x"], extends=[a, c])


def test_an_empty_batch_with_adapters(backbone: memtok.Backbone) -> None:
    task = tiny_task(backbone, adapter_rank=2, queries=2)
    assert memtok.MemoryViT(backbone, [task])(tiny_images()[:0])["pets"].shape == (0, 3)


def test_removing_the_last_task_that_needs_an_ancestor_stops_computing_it(backbone: memtok.Backbone) -> None:
    a = tiny_task(backbone, "a")
    b = tiny_task(backbone, "b", extends=[a])
    assert memtok.MemoryViT(backbone, [a, b]).select(["b"]).remove("b").tasks == ()


def test_fingerprints_of_a_dense_graph_are_computed_once_each(
    backbone: memtok.Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    import memtok.task as module

    tasks: list[memtok.Task] = []
    for index in range(12):
        tasks.append(tiny_task(backbone, f"task {index}", memory=0, extends=list(tasks)))
    counted = []
    inner = module.content_fingerprint
    monkeypatch.setattr(module, "content_fingerprint", lambda *a, **k: counted.append(1) or inner(*a, **k))
    assert tasks[-1].fingerprint
    assert len(counted) == 12


def test_embeddings_are_what_the_heads_read(backbone: memtok.Backbone) -> None:
    a = tiny_task(backbone, "a", queries=2)
    b = tiny_task(backbone, "b", seed=1, extends=[a])
    c = tiny_task(backbone, "c", seed=2, regime="head")
    images = tiny_images()
    with torch.no_grad():
        out = memtok.MemoryViT(backbone, [a, b, c]).select(["c", "a", "b"])(images)
        expected = memtok.reference_outputs(backbone, [a, b, c], images).embeddings
        bare = memtok.MemoryViT(backbone, [a, b, c]).select(["a"])(images, base=False)
    assert {name: tuple(one.shape) for name, one in out.embeddings.items()} == {
        "a": (3, 2 * 32),
        "b": (3, 32),
        "c": (3, 32),
    }
    for task in (a, b, c):
        torch.testing.assert_close(out.embeddings[task.name], expected[task.name], **CLOSE)
        assert torch.equal(task.head(out.embeddings[task.name]), out[task.name])
    assert torch.equal(out.embeddings["c"], out.features)
    assert set(bare.embeddings) == {"a"}
    tokens = out.embeddings["a"], out.embeddings["b"]
    assert tokens[0].untyped_storage().data_ptr() == tokens[1].untyped_storage().data_ptr()  # views, no copies


@pytest.mark.parametrize("regime", VARIANTS)
def test_embeddings_of_the_variants(backbone: memtok.Backbone, regime: str) -> None:
    task = tiny_task(backbone, regime=regime)
    with torch.no_grad():
        out = memtok.MemoryViT(backbone, [task])(tiny_images())
    assert out.embeddings["pets"].shape == (3, 32)
    assert torch.equal(task.head(out.embeddings["pets"]), out["pets"])


SALIENT = {
    "composed": ["a", "b", "c", "d"],
    "the base": [],
    "without memory": ["d"],
    "one that extends": ["c"],
    "several queries": ["b"],
}


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("kind", sorted(SALIENT))
def test_images_get_the_gradient_of_the_dense_form(kind: str, trains: bool) -> None:
    """And nothing else changes by that: neither the base, bit by bit, nor the gradients of the tasks."""
    vit = tiny_vit(reg_tokens=1, init_values=0.7)
    backbone = memtok.load_backbone(vit, dtype=torch.float64)
    first = tiny_task(backbone, "a", memory=3, seed=1)
    tasks = [
        first,
        tiny_task(backbone, "b", memory=2, queries=2, placement="after-norm", seed=2),
        tiny_task(backbone, "c", memory=0, adapter_rank=2, extends=[first], seed=3),
        tiny_task(backbone, "d", regime="head", seed=4),
    ]
    model = memtok.MemoryViT(backbone, tasks).requires_grad_(trains).select(SALIENT[kind])
    images = tiny_images(3).double()

    def run(images: torch.Tensor, dense: bool) -> tuple[memtok.Outputs, dict[str, torch.Tensor | None]]:
        model.zero_grad()
        out = memtok.reference_outputs(backbone, tasks, images) if dense else model(images)
        parts = [out.base, out.features, *(out[name].double() for name in SALIENT[kind])]
        loss = sum((part.square().sum() for part in parts), torch.zeros(()))
        if loss.requires_grad:
            loss.backward()
        return out, {name: value.grad for name, value in model.named_parameters()}

    plain, own = run(images, dense=False)
    asking, expected = images.clone().requires_grad_(), images.clone().requires_grad_()
    found, still_own = run(asking, dense=False)
    run(expected, dense=True)
    assert asking.grad is not None
    torch.testing.assert_close(asking.grad, expected.grad, atol=1e-6, rtol=1e-6)
    assert bool(asking.grad.any())
    assert torch.equal(found.base, plain.base)
    assert torch.equal(found.features, plain.features)
    for name, gradient in own.items():
        other = still_own[name]
        assert (gradient is None) == (other is None), name
        assert gradient is None or torch.equal(gradient, other), name
    with torch.no_grad():
        assert not model(asking).base.requires_grad


@pytest.mark.parametrize("regime", VARIANTS)
def test_images_get_a_gradient_from_the_variants(regime: str) -> None:
    """Against differences, for the dense form is the only one that they have."""
    backbone = memtok.load_backbone(tiny_vit(), dtype=torch.float64)
    task = tiny_task(backbone, regime=regime).double()
    model = memtok.MemoryViT(backbone, [task])
    images = tiny_images(2).double().requires_grad_()
    direction = tiny_images(2, seed=7).double()
    model(images)["pets"].square().sum().backward()
    assert images.grad is not None
    with torch.no_grad():
        step = 1e-5 * direction
        ahead, behind = (model(images + sign * step)["pets"].square().sum() for sign in (1, -1))
        torch.testing.assert_close((images.grad * direction).sum(), (ahead - behind) / 2e-5, rtol=1e-5, atol=1e-5)


def test_the_base_gives_images_the_gradient_that_timm_gives() -> None:
    vit = tiny_vit()
    model = memtok.MemoryViT(memtok.load_backbone(vit), [])
    own, theirs = (tiny_images().requires_grad_() for _ in range(2))
    answer, expected = model(own).base, vit(theirs)
    assert torch.equal(answer, expected)
    answer.square().sum().backward()
    expected.square().sum().backward()
    assert torch.equal(own.grad, theirs.grad)


def test_a_trace_of_images_that_ask_for_gradients_gives_them(backbone: memtok.Backbone) -> None:
    model = memtok.MemoryViT(backbone, [tiny_task(backbone, memory=2)])
    direct, traced = (tiny_images().requires_grad_() for _ in range(2))
    model(direct)["pets"].square().sum().backward()
    model.answer(model.trace(traced))["pets"].square().sum().backward()
    torch.testing.assert_close(traced.grad, direct.grad, atol=1e-4, rtol=1e-4)


def replaced_memory(task: memtok.Task) -> None:
    task.memory.data = torch.zeros(2, 7, 32)


def assigned_memory(task: memtok.Task) -> None:
    task.memory = torch.nn.Parameter(torch.zeros(2, 7, 32))  # a sound task of another size


def replaced_class_tokens(task: memtok.Task) -> None:
    task.class_tokens.data = torch.zeros(2, 32)


def replaced_head(task: memtok.Task) -> None:
    task.head.weight = torch.nn.Parameter(torch.zeros(3, 33))


def fewer_outputs(task: memtok.Task) -> None:
    task.head.weight.data, task.head.bias.data = torch.zeros(2, 32), torch.zeros(2)


def more_classes(task: memtok.Task) -> None:
    task.classes = ("w", "x", "y", "z")


def other_adapter(task: memtok.Task) -> None:
    task.adapters["qkv_up"] = torch.nn.Parameter(torch.zeros(2, 96, 3))


def no_adapters(task: memtok.Task) -> None:
    task.adapters.clear()


def no_placement(task: memtok.Task) -> None:
    task.placement = "nowhere"


def no_longer_extending(task: memtok.Task) -> None:
    task.extends = ()


@pytest.mark.parametrize(
    "change",
    [
        replaced_memory,
        assigned_memory,
        replaced_class_tokens,
        replaced_head,
        fewer_outputs,
        more_classes,
        other_adapter,
        no_adapters,
        no_placement,
        no_longer_extending,
    ],
)
def test_a_task_that_no_longer_fits_its_model_is_refused(
    backbone: memtok.Backbone, change: Callable[[memtok.Task], None]
) -> None:
    other = tiny_task(backbone, "other", memory=2, seed=1)
    task = tiny_task(backbone, memory=5, adapter_rank=2, extends=[other])
    model = memtok.MemoryViT(backbone, [other, task])
    trace = model.trace(tiny_images())
    change(task)
    for use in (lambda: model(tiny_images()), lambda: model.answer(trace), model.folded):
        with pytest.raises(MemtokError, match=r"pets|placement") as caught:
            use()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("memory", torch.nn.Parameter(torch.zeros(3, 5, 32))),
        ("memory", torch.nn.Parameter(torch.zeros(2, 5, 31))),
        ("memory", torch.nn.Parameter(torch.zeros(5, 32))),
        ("memory", None),
        ("class_tokens", torch.nn.Parameter(torch.zeros(0, 32))),
        ("class_tokens", torch.nn.Parameter(torch.zeros(2, 32))),
        ("head", torch.nn.Linear(32, 7)),
        ("head", torch.nn.Linear(31, 3)),
        ("head", torch.nn.Linear(32, 3, bias=False)),
        ("head", torch.nn.Sequential(torch.nn.Linear(32, 3))),
    ],
)
def test_what_does_not_fit_a_task_is_refused_when_it_is_assigned(
    backbone: memtok.Backbone, name: str, value: object
) -> None:
    task = tiny_task(backbone)
    before = bytes_of(task)
    with pytest.raises(MemtokError, match="'pets'"):
        setattr(task, name, value)
    assert bytes_of(task) == before
    task.memory = torch.nn.Parameter(torch.zeros(2, 5, 32))
    task.head = torch.nn.Linear(32, 3)
    assert memtok.MemoryViT(backbone, [task])(tiny_images())["pets"].shape == (3, 3)


def test_renaming_a_task_to_a_name_that_is_there_loses_no_output(backbone: memtok.Backbone) -> None:
    a, b = tiny_task(backbone, "a"), tiny_task(backbone, "b", seed=1)
    c = tiny_task(backbone, "c", seed=2, extends=[a])
    model = memtok.MemoryViT(backbone, [a, b, c])
    hidden = model.select(["b", "c"])  # computes a and does not answer it
    trace = model.trace(tiny_images())
    b.name = "a"
    for use in (
        lambda: model(tiny_images()),
        lambda: model.answer(trace),
        lambda: hidden(tiny_images()),
        lambda: model.select(["c"]),
        lambda: model.remove("c"),
        lambda: model.add(tiny_task(backbone, "d")),
        lambda: model.concat(memtok.MemoryViT(backbone, [tiny_task(backbone, "d")])),
        lambda: memtok.MemoryViT(backbone, [tiny_task(backbone, "d")]).concat(model),
        model.folded,
    ):
        with pytest.raises(MemtokError, match="different names, found 'a' twice"):
            use()
    b.name = "free"
    assert set(model(tiny_images()).names) == {"a", "free", "c"}
