"""On randomly drawn backbones and task graphs, the task streams answer as the literal masked attention does."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import memtok
from tests.tiny import tiny_backbone, tiny_images, tiny_task

BACKBONES = {
    "plain": {},
    "registers": {"reg_tokens": 2, "no_embed_class": True},
    "registers with positions": {"reg_tokens": 2},
    "layer scale": {"init_values": 0.7},
    "query and key norm": {"qk_norm": True},
    "scale norms": {"scale_attn_norm": True, "scale_mlp_norm": True},
    "norm before": {"pre_norm": True},
    "norm after pooling": {"global_pool": "avg", "fc_norm": True},
    "no classifier": {"num_classes": 0},
    "no bias": {"qkv_bias": False},
}


@functools.cache
def backbone_of(kind: str) -> memtok.Backbone:
    return tiny_backbone(**BACKBONES[kind])


@st.composite
def task_graphs(draw: st.DrawFn) -> list[dict[str, object]]:
    """Up to six tasks; each may extend any of those before it, so that every acyclic graph can come up."""
    graph = []
    for index in range(draw(st.integers(1, 6))):
        regime = draw(st.sampled_from(["memory", "memory", "memory", "head"]))
        settings_of_one: dict[str, object] = {
            "name": f"task {index}",
            "regime": regime,
            "classes": draw(st.integers(1, 4)),
            "readout": draw(st.sampled_from([0, 0, 1, 3])),
            "side": draw(st.sampled_from([0, 0, 8, 12])),
        }
        if regime == "memory":
            settings_of_one |= {
                "memory": draw(st.integers(0, 4)),
                "queries": draw(st.integers(1, 3)),
                "adapter_rank": draw(st.sampled_from([0, 0, 1, 3])),
                "placement": draw(st.sampled_from(["before-norm", "before-norm", "after-norm"])),
                "extends": draw(st.lists(st.integers(0, index - 1), unique=True, max_size=3)) if index else [],
            }
        graph.append(settings_of_one)
    return graph


def build(backbone: memtok.Backbone, graph: list[dict[str, object]], seed: int) -> list[memtok.Task]:
    tasks: list[memtok.Task] = []
    for index, settings_of_one in enumerate(graph):
        extends = [tasks[other] for other in settings_of_one.get("extends", ())]  # type: ignore[attr-defined]
        made = tiny_task(backbone, seed=seed + index, **(settings_of_one | {"extends": extends}))  # type: ignore[arg-type]
        tasks.append(made.to(backbone.dtype))
        if settings_of_one["regime"] == "head":
            tasks[-1].extends = ()
    return tasks


@settings(max_examples=60, deadline=None, print_blob=True)
@given(
    kind=st.sampled_from(sorted(BACKBONES)),
    graph=task_graphs(),
    seed=st.integers(0, 10_000),
    batch=st.integers(1, 3),
    shuffle=st.randoms(use_true_random=False),
    double=st.booleans(),
)
def test_streams_equal_reference(kind, graph, seed, batch, shuffle, double) -> None:  # type: ignore[no-untyped-def]
    backbone = backbone_of(kind)
    images = tiny_images(batch, seed)
    if double:
        backbone = memtok.load_backbone(backbone.vit, dtype=torch.float64)
        images = images.double()
    tasks = build(backbone, graph, seed)
    given_order = list(tasks)
    shuffle.shuffle(given_order)
    with torch.no_grad():
        bare = memtok.MemoryViT(backbone)(images)
        out = memtok.MemoryViT(backbone, given_order)(images)
        expected = memtok.reference_outputs(backbone, tasks, images)
    assert torch.equal(out.features, bare.features)
    assert (out.base is None) == (bare.base is None)
    assert out.base is None or torch.equal(out.base, bare.base)
    for task in tasks:
        # In single precision both are rounded in every layer, so the bound goes with the size of the answers.
        bound = 1e-6 if double else 1e-5 * max(1.0, expected[task.name].abs().max().item())
        torch.testing.assert_close(out[task.name], expected[task.name], atol=bound, rtol=0)


@settings(max_examples=25, deadline=None, print_blob=True)
@given(graph=task_graphs(), seed=st.integers(0, 10_000), data=st.data())
def test_selecting_and_removing_change_no_answer(graph, seed, data) -> None:  # type: ignore[no-untyped-def]
    # In double precision, where what is not rounding shows: other tasks beside it may change the order of a sum.
    backbone = memtok.load_backbone(backbone_of("plain").vit, dtype=torch.float64)
    tasks = build(backbone, graph, seed)
    images = tiny_images(2, seed).double()
    with torch.no_grad():
        model = memtok.MemoryViT(backbone, tasks)
        full = model(images)
        names = data.draw(st.lists(st.sampled_from([task.name for task in tasks]), unique=True, min_size=1))
        selected = model.select(names)(images)
        assert selected.names == tuple(names)
        for name in names:
            torch.testing.assert_close(selected[name], full[name], atol=1e-6, rtol=0)
        leaves = [task.name for task in tasks if not any(task in other.extends for other in tasks)]
        left = model.remove(data.draw(st.sampled_from(leaves)))
        answers = left(images)
        for name in left.names:
            torch.testing.assert_close(answers[name], full[name], atol=1e-6, rtol=0)


@settings(max_examples=25, deadline=None, print_blob=True)
@given(
    graph=task_graphs(),
    seed=st.integers(0, 10_000),
    kind=st.sampled_from(["plain", "query and key norm", "layer scale"]),
)
def test_gradients_equal_those_of_the_reference(graph, seed, kind) -> None:  # type: ignore[no-untyped-def]
    backbone = memtok.load_backbone(backbone_of(kind).vit, dtype=torch.float64)
    tasks = build(backbone, graph, seed)
    images = tiny_images(2, seed).double()

    def gradients(out: memtok.Outputs) -> dict[str, torch.Tensor | None]:
        for task in tasks:
            task.zero_grad()
        loss = sum((out[task.name].square().mean() for task in tasks), torch.zeros(()))
        if loss.requires_grad:
            loss.backward()
        return {f"{task.name} {name}": value.grad for task in tasks for name, value in task.named_parameters()}

    found = gradients(memtok.MemoryViT(backbone, tasks)(images))
    expected = gradients(memtok.reference_outputs(backbone, tasks, images))
    for name, gradient in expected.items():
        other = found[name]
        if gradient is None or other is None:
            assert gradient is None or not gradient.any(), name
            assert other is None or not other.any(), name
        else:
            torch.testing.assert_close(
                other, gradient, atol=1e-6, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize("kind", sorted(BACKBONES))
def test_the_trunk_is_bitwise_timm(kind: str) -> None:
    backbone = backbone_of(kind)
    images = tiny_images(4)
    with torch.no_grad():
        trace = backbone.trace(images)
        tokens = backbone.vit.forward_features(images)
        answer = backbone.vit(images)
    if not isinstance(backbone.vit.norm, torch.nn.Identity):
        assert torch.equal(trace.features, tokens[:, 0])
    if backbone.vit.num_classes:
        assert torch.equal(trace.base, answer)
    else:
        assert trace.base is None
    short = backbone.trace(images, outputs=False)
    for part, other in zip(short.keys + short.values, trace.keys + trace.values, strict=True):
        torch.testing.assert_close(part, other, atol=1e-6, rtol=1e-5)
