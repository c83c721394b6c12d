"""`with model.folded()`: memory is computed once for the block, and no answer is ever made of two states of a task."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import memtok
from tests.tiny import VARIANTS, tiny_backbone, tiny_images, tiny_task


def model_of(**more: Any) -> memtok.MemoryViT:
    """Three tasks: one that extends another, with memory placed in both ways, and one that reads the base features."""
    backbone = tiny_backbone()
    first = tiny_task(backbone, "a", memory=2, adapter_rank=1, seed=1, **more)
    second = tiny_task(backbone, "b", memory=3, placement="after-norm", extends=[first], seed=2)
    return memtok.MemoryViT(backbone, [first, second, tiny_task(backbone, "c", regime="head", seed=3)])


@torch.no_grad()
def answers(model: memtok.MemoryViT) -> list[Tensor]:
    out = model(tiny_images(2))
    return [out[name] for name in model.names]


@torch.no_grad()
def check(model: memtok.MemoryViT) -> None:
    expected = memtok.reference_outputs(model.backbone, model.tasks, tiny_images(2))
    for name, found in zip(model.names, answers(model), strict=True):
        torch.testing.assert_close(found, expected[name], atol=1e-5, rtol=0)


def alike(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def operations(run: Callable[[], object]) -> int:
    """Multiply-adds of a call, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def test_memory_is_computed_once_in_a_block() -> None:
    model = model_of()
    outside = [operations(lambda: answers(model)) for _ in range(2)]
    with model.folded():
        inside = [operations(lambda: answers(model)) for _ in range(3)]
    # Keys and values of 5 memory cells in 2 layers, 2 D outputs of D inputs each; two operations for each product.
    memory = 2 * (2 * 5) * (2 * 32) * 32
    assert outside == [outside[0]] * 2
    assert inside == [outside[0], outside[0] - memory, outside[0] - memory]
    assert operations(lambda: answers(model)) == outside[0]


def test_answers_in_a_block_are_bitwise_those_outside() -> None:
    model = model_of()
    expected = answers(model)
    with model.folded():
        for _ in range(2):
            assert alike(answers(model), expected)
        with torch.no_grad():
            trace = model.trace(tiny_images(2))
            assert all(torch.equal(model.answer(trace)[name], model(tiny_images(2))[name]) for name in model.names)
    check(model)


def optimizer_step(model: memtok.MemoryViT, **options: Any) -> None:
    task = copy.deepcopy(model.tasks[2])  # what trains is another model of the same backbone; its values are written
    own = memtok.MemoryViT(model.backbone, [task.requires_grad_(True)])
    own(tiny_images(2), base=False)["c"].sum().backward()
    for mine, other in zip(model.tasks[2].parameters(), task.parameters(), strict=True):
        mine.grad = other.grad
    torch.optim.AdamW(model.tasks[2].parameters(), lr=0.05, **options).step()


def fused_optimizer(model: memtok.MemoryViT) -> None:
    optimizer_step(model, fused=True)  # torch does not count what it writes


def in_place(model: memtok.MemoryViT) -> None:
    with torch.no_grad():
        model.tasks[0].memory.mul_(2.0)


def loaded_state(model: memtok.MemoryViT) -> None:
    model.tasks[1].load_state_dict(tiny_task(model.backbone, "b", memory=3, seed=9).state_dict())


def new_parameter(model: memtok.MemoryViT) -> None:
    model.tasks[0].memory = torch.nn.Parameter(model.tasks[0].memory.detach() + 1)


def new_data(model: memtok.MemoryViT) -> None:
    for factor in (2.0, 3.0):  # the second may come to lie where the first was
        model.tasks[0].memory.data = model.tasks[0].memory.detach() * factor


def through_data(model: memtok.MemoryViT) -> None:
    model.tasks[0].memory.data.mul_(2.0)


def clamped(model: memtok.MemoryViT) -> None:
    model.tasks[1].class_tokens.data.clamp_(-0.1, 0.1)


def numpy_view(model: memtok.MemoryViT) -> None:
    model.tasks[0].memory.detach().numpy()[:] *= 2.0


def moving_average(model: memtok.MemoryViT) -> None:
    for parameter in model.tasks[0].parameters():
        parameter.data.copy_(parameter.data * 0.9 + 0.1)


def head(model: memtok.MemoryViT) -> None:
    model.tasks[1].head.weight.data.mul_(2.0)


def placement(model: memtok.MemoryViT) -> None:
    model.tasks[0].placement = "after-norm"


def adapters(model: memtok.MemoryViT) -> None:
    model.tasks[0].adapters["qkv_up"].data.add_(0.5)


CHANGES = [
    optimizer_step,
    fused_optimizer,
    in_place,
    loaded_state,
    new_parameter,
    new_data,
    through_data,
    clamped,
    numpy_view,
    moving_average,
    head,
    placement,
    adapters,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_shows_at_once_outside_and_after_the_block_inside(
    change: Callable[[memtok.MemoryViT], None],
) -> None:
    model = model_of()
    before = answers(model)
    with model.folded():
        first = answers(model)
        change(model)
        assert alike(answers(model), first)  # neither mixed nor changed
        with torch.autocast("cpu", torch.bfloat16, enabled=False), torch.inference_mode():
            assert torch.equal(model(tiny_images(2))["b"], first[1])
    assert not alike(answers(model), before)
    check(model)
    again = model_of()
    answers(again)
    change(again)
    check(again)


@pytest.mark.parametrize("regime", VARIANTS)
def test_a_model_of_a_variant_stands_still_as_well(regime: str) -> None:
    backbone = tiny_backbone()
    model = memtok.MemoryViT(backbone, [tiny_task(backbone, regime=regime)])
    with model.folded():
        before = answers(model)
        for parameter in model.tasks[0].parameters():
            parameter.data.mul_(2.0)
        assert alike(answers(model), before)
    assert not alike(answers(model), before)


def test_training_in_a_block_is_refused_and_goes_on_after_it() -> None:
    model = model_of()
    with model.folded():
        with pytest.raises(memtok.MemtokError, match="expected no gradients for the tasks of a folded model") as caught:
            model(tiny_images(2))
        with pytest.raises(memtok.MemtokError, match=r"torch\.no_grad"):
            model.answer(model.trace(tiny_images(2)))
        assert "\n" not in str(caught.value)
        answers(model)
    model(tiny_images(2), base=False)["b"].sum().backward()
    assert model.tasks[1].memory.grad is not None


def test_a_frozen_model_answers_with_gradients_on_and_gives_them_to_images() -> None:
    model = model_of().requires_grad_(False)
    images = tiny_images(2).requires_grad_()
    model(images)["b"].sum().backward()
    expected, images.grad = images.grad, None
    with model.folded():
        for _ in range(2):
            model(images)["b"].sum().backward()
            assert expected is not None
            assert images.grad is not None
            assert torch.equal(images.grad, expected)
            images.grad = None


def test_blocks_may_be_nested_and_what_is_made_inside_starts_outside() -> None:
    model = model_of()
    before = answers(model)
    with model.folded():
        with model.folded():
            in_place(model)
        assert alike(answers(model), before)
        for derived in (
            model.select(["a", "b", "c"]),
            model.remove("c").add(model.tasks[2]),
            copy.deepcopy(model),
            pickle.loads(pickle.dumps(model)),
        ):
            found = answers(derived)
            assert not alike(found, before)
            check(derived)
        with pytest.raises(RuntimeError, match="mine"), model.folded():
            raise RuntimeError("mine")
        assert alike(answers(model), before)
    check(model)


def test_another_precision_in_a_block() -> None:
    model = model_of()
    with model.folded(), torch.no_grad():
        single = answers(model)
        with torch.autocast("cpu", torch.bfloat16):
            model(tiny_images(2))
        assert alike(answers(model), single)
        model.double()
        double = model(tiny_images(2).double())
    expected = memtok.reference_outputs(model.backbone, model.tasks, tiny_images(2).double())
    for name in model.names:
        torch.testing.assert_close(double[name].double(), expected[name].double(), atol=1e-6, rtol=0)
    with torch.no_grad():
        assert model(tiny_images(2).double())["a"].dtype == torch.float64


@pytest.mark.gpu
def test_a_model_that_is_moved_in_a_block() -> None:
    model = model_of()
    expected = answers(model)
    with model.folded(), torch.no_grad():
        answers(model)
        model.to("cuda")
        for _ in range(2):
            out = model(tiny_images(2).cuda())
            for name, one in zip(model.names, expected, strict=True):
                torch.testing.assert_close(out[name].cpu(), one, atol=1e-3, rtol=0)
        model.to("cpu")
        assert alike(answers(model), expected)


def test_values_made_in_inference_mode_serve_outside() -> None:
    model = model_of().requires_grad_(False)
    images = tiny_images(2).requires_grad_()
    with model.folded():
        with torch.inference_mode():
            model(images)
        model(images)["b"].sum().backward()
    assert images.grad is not None
    assert bool(images.grad.any())


def test_several_threads_answer_with_one_model_at_once() -> None:
    """Each in blocks of its own, in two precisions, so that each finds the other's values."""
    model = model_of()
    expected = {}
    for precision in ("float32", "bf16"):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            expected[precision] = answers(model)
    meet = threading.Barrier(4)
    found: list[Any] = []

    def work(precision: str) -> None:
        try:
            for _ in range(5):
                meet.wait()
                with model.folded(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                    found.append(alike(answers(model), expected[precision]))
        except Exception as error:  # shown by the assertion
            meet.abort()
            found.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(precision,)) for precision in ("float32", "bf16") * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert found == [True] * 20
    in_place(model)
    check(model)  # the last one out took the values with it


def gradient(model: memtok.MemoryViT, images: Tensor) -> Any:
    return torch.func.grad(lambda images: model(images)["b"].square().sum())(images)


def jacobian_backward(model: memtok.MemoryViT, images: Tensor) -> Any:
    return torch.func.jacrev(lambda images: model(images)["b"].sum(0))(images)


def jacobian_forward(model: memtok.MemoryViT, images: Tensor) -> Any:
    with sdpa_kernel(SDPBackend.MATH):  # torch's fused attention has no forward mode on the CPU
        return torch.func.jvp(lambda images: model(images)["b"], (images,), (torch.ones_like(images),))


def mapped(model: memtok.MemoryViT, images: Tensor) -> Any:
    return torch.func.vmap(lambda image: model(image[None])["b"])(images)


def of_a_task(model: memtok.MemoryViT, images: Tensor) -> Any:
    task = model.tasks[2]

    def answer(weight: Tensor) -> Tensor:
        return torch.func.functional_call(task.head, {"weight": weight}, model(images).embeddings["c"]).sum()

    return torch.func.grad(answer)(task.head.weight.detach())


class Plain(torch.nn.Module):
    """The answer of one task, as a tensor."""

    def __init__(self, model: memtok.MemoryViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)["b"]


def traced(model: memtok.MemoryViT, images: Tensor) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the shape of images is checked once only, and that tracing is old
        return torch.jit.trace(Plain(model), images)(images)


def exported(model: memtok.MemoryViT, images: Tensor) -> Any:
    return torch.export.export(model, (images,)).module()(images)["b"]


def compiled(model: memtok.MemoryViT, images: Tensor) -> Any:
    torch.compiler.reset()
    return torch.compile(model, backend="aot_eager")(images)["b"]


# torch's own: what it has no batching rule for, and what its forward mode still uses.
@pytest.mark.filterwarnings("ignore:There is a performance drop", "ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("transform", [gradient, jacobian_backward, jacobian_forward, mapped, of_a_task])
def test_function_transforms_leave_nothing_behind(
    transform: Callable[[memtok.MemoryViT, Tensor], Any], folded: bool
) -> None:
    model = model_of().requires_grad_(False)
    images = tiny_images(2)
    expected = answers(model)
    with model.folded() if folded else nullcontext():
        once = transform(model, images)
        assert alike(answers(model), expected)
        torch.testing.assert_close(transform(model, images), once, atol=1e-4, rtol=1e-4)
    assert alike(answers(model), expected)
    if transform is gradient:
        wanted = images.clone().requires_grad_()
        memtok.reference_outputs(model.backbone, model.tasks, wanted)["b"].square().sum().backward()
        torch.testing.assert_close(once, wanted.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize(
    "transform",
    [pytest.param(traced, marks=pytest.mark.slow), exported, pytest.param(compiled, marks=pytest.mark.slow)],
)
def test_captured_graphs_leave_nothing_behind(
    transform: Callable[[memtok.MemoryViT, Tensor], Tensor], folded: bool
) -> None:
    backbone = tiny_backbone()
    model = memtok.MemoryViT(backbone, [tiny_task(backbone, "b", memory=2)]).requires_grad_(False)
    expected = answers(model)
    with model.folded() if folded else nullcontext():
        found = transform(model, tiny_images(2))
        assert alike(answers(model), expected)
    torch.testing.assert_close(found, expected[0], atol=1e-5, rtol=0)
    assert alike(answers(model), expected)


@pytest.mark.parametrize("folded", [False, True])
def test_a_pass_without_numbers_leaves_nothing_behind(folded: bool) -> None:
    """As tools make it that measure memory or shapes."""
    model = model_of()
    expected = answers(model)
    with model.folded() if folded else nullcontext(), torch.no_grad():
        with FakeTensorMode(allow_non_fake_inputs=True):
            shapes = [tuple(logits.shape) for logits in model(torch.empty(2, 3, 32, 32)).logits.values()]
        assert shapes == [tuple(logits.shape) for logits in expected]
        assert alike(answers(model), expected)
    assert alike(answers(model), expected)


def test_evaluate_and_predict_compute_memory_once(tmp_path: Path) -> None:
    model = model_of()
    for index in range(4):
        place = tmp_path / "photos" / f"class {index % 2}" / f"{index}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (60 * index, 0, 0)).save(place)
    data = memtok.open_data(f"folder:{tmp_path / 'photos'}", data_dir=tmp_path / "data").train
    images = len(data)
    assert images > 1
    once = operations(lambda: memtok.evaluate(model, {"a": data}, alone=True, batch_size=images))
    assert operations(lambda: memtok.evaluate(model, {"a": data}, alone=True, batch_size=1)) == once
    once = operations(lambda: memtok.predict(model, [tmp_path / "photos"], batch_size=4))
    assert operations(lambda: memtok.predict(model, [tmp_path / "photos"], batch_size=1)) == once
