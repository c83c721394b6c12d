"""Every form of a trace gives the same answers and gradients, and which one is taken follows from the sizes."""

from __future__ import annotations

import copy

import pytest
import torch

import memtok
from memtok.backbone import INPUTS, KEYS_AND_VALUES, NOTHING
from memtok.layers import family_of
from memtok.trace import AbsorbedInputs, KeysAndValues, Trace, read_layer
from tests.tiny import tiny_backbone, tiny_images, tiny_task

KINDS = {
    "plain": {},
    "no bias": {"qkv_bias": False},
    "query and key norm": {"qk_norm": True},
    "scale norms": {"scale_attn_norm": True},
    "registers": {"reg_tokens": 2},
}


def several(backbone: memtok.Backbone) -> list[memtok.Task]:
    first = tiny_task(backbone, name="a", memory=3, seed=1)
    return [
        first,
        tiny_task(backbone, name="b", memory=0, queries=2, seed=2),
        tiny_task(backbone, name="c", memory=2, adapter_rank=2, extends=[first], seed=3),
        tiny_task(backbone, name="d", regime="head", memory=0, seed=4),
    ]


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("absorbed", [True, False])
def test_inputs_answer_as_keys_and_values(kind: str, absorbed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # In double precision: absorbed projections add up in another order.
    backbone = memtok.load_backbone(tiny_backbone(**KINDS[kind]).vit, dtype=torch.float64)
    model = memtok.MemoryViT(backbone, several(backbone))
    images = tiny_images(3).double()
    monkeypatch.setattr("memtok.layers.Layer.break_even", lambda *_, **__: 1e9 if absorbed else 0.0)
    answers, gradients = [], []
    for keep in (KEYS_AND_VALUES, INPUTS):
        model.zero_grad()
        out = model.answer(backbone.trace(images, keep=keep))
        torch.stack([out[name].square().mean() for name in model.names]).sum().backward()
        answers.append(out)
        gradients.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    for name in model.names:
        torch.testing.assert_close(answers[1][name], answers[0][name], atol=1e-6, rtol=0)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-5)


def test_the_form_that_reads_a_layer_follows_from_the_number_of_queries() -> None:
    backbone = tiny_backbone()
    layer = backbone.layers[0]
    (inputs,) = backbone.trace(tiny_images(2), keep=INPUTS).layers[0]
    with torch.no_grad():
        limit = layer.break_even(inputs.shape[1])
        assert isinstance(read_layer(layer, (inputs,), None, int(limit)), AbsorbedInputs)
        assert isinstance(read_layer(layer, (inputs,), None, int(limit) + 1), KeysAndValues)
    assert isinstance(read_layer(layer, (inputs,), None, int(limit)), KeysAndValues)  # a backward pass pays twice


def test_keys_that_are_normed_are_never_absorbed() -> None:
    backbone = tiny_backbone(qk_norm=True)
    layer = backbone.layers[0]
    assert not layer.absorbs
    (inputs,) = backbone.trace(tiny_images(2), keep=INPUTS).layers[0]
    assert isinstance(read_layer(layer, (inputs,), None, 1), KeysAndValues)


def test_break_even_of_a_vit_b_32() -> None:
    """DESIGN section 3 has about 29 queries; the rest by hand from D = 768, H = 12, N = 50."""
    import timm

    with torch.device("meta"):
        vit = timm.create_model("vit_base_patch32_224", pretrained=False)
    layer = family_of(vit).layers(vit)[0]
    assert layer.break_even(50) == pytest.approx(29.1, abs=0.1)
    assert layer.break_even(50, training=True) == pytest.approx(29.1 / 2, abs=0.1)
    assert layer.absorbing_cost(50) == 2 * 768 * 768 + 2 * 50 * 12 * 768 - 2 * 50 * 768
    assert layer.cost(50) == 50 * 12 * 768 * 768 + 2 * 50 * 50 * 768


def test_what_is_kept() -> None:
    backbone = tiny_backbone()
    images = tiny_images(2)
    inputs = backbone.trace(images, keep=INPUTS)
    assert len(inputs.inputs) == backbone.depth
    assert inputs.inputs[0].shape == (2, backbone.tokens, backbone.dim)
    assert not inputs.keys
    nothing = backbone.trace(images, keep=NOTHING)
    assert nothing.layers == []
    assert nothing.features is not None
    short = backbone.trace(images, keep=INPUTS, outputs=False)
    assert short.features is None
    for one, other in zip(short.inputs, inputs.inputs, strict=True):
        assert torch.equal(one, other)
    with pytest.raises(memtok.MemtokError, match="expected keep keys and values, inputs, nothing, found 'all'"):
        backbone.trace(images, keep="all")


def test_half_precision_inputs_are_read_in_the_precision_of_the_backbone() -> None:
    backbone = tiny_backbone()
    task = tiny_task(backbone, memory=2)
    model = memtok.MemoryViT(backbone, [task])
    trace = backbone.trace(tiny_images(2), keep=INPUTS)
    half = Trace(inputs=[layer.half() for layer in trace.inputs], features=trace.features)
    with torch.no_grad():
        expected, found = model.answer(trace, base=False), model.answer(half, base=False)
    assert found[task.name].dtype == torch.float32
    torch.testing.assert_close(found[task.name], expected[task.name], atol=5e-3, rtol=0)


def test_a_live_training_step_keeps_inputs_for_few_queries_only(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone()
    one, many = tiny_task(backbone, name="one"), tiny_task(backbone, name="many", queries=3)
    seen: list[str] = []
    original = memtok.Backbone.trace

    def spy(self: memtok.Backbone, images: torch.Tensor, **options: object) -> Trace:
        seen.append(str(options["keep"]))
        return original(self, images, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(memtok.Backbone, "trace", spy)
    layer = backbone.layers[0]
    share = 3 * layer.absorbing_cost(backbone.tokens) / layer.cost(backbone.tokens)
    monkeypatch.setattr("memtok.model.INPUTS_SHARE", 1.5 * share)
    for task in (one, many):
        memtok.MemoryViT(backbone, [task])(tiny_images(2), base=False)
        with torch.no_grad():
            memtok.MemoryViT(backbone, [task])(tiny_images(2), base=False)
    assert seen == [INPUTS, KEYS_AND_VALUES, KEYS_AND_VALUES, KEYS_AND_VALUES]


def test_streams_follow_the_trunk_by_layers_and_in_training_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    trunk, streams = memtok.backbone.run_layer, memtok.streams.stream_layer
    monkeypatch.setattr(memtok.backbone, "run_layer", lambda *given: (order.append("trunk"), trunk(*given))[1])
    monkeypatch.setattr(memtok.streams, "stream_layer", lambda *given: (order.append("streams"), streams(*given))[1])
    backbone = tiny_backbone()
    model = memtok.MemoryViT(backbone, [tiny_task(backbone, memory=2)])
    trained = model(tiny_images())["pets"]
    assert order == ["trunk", "trunk", "streams", "streams"]
    order.clear()
    with torch.no_grad():
        answered = model(tiny_images())["pets"]
    assert order == ["trunk", "streams", "trunk", "streams"]
    torch.testing.assert_close(trained, answered, atol=1e-5, rtol=1e-5)
    model.requires_grad_(False)
    order.clear()
    model(tiny_images())
    assert order == ["trunk", "streams", "trunk", "streams"]


def test_the_base_is_bitwise_the_same_whatever_is_kept() -> None:
    backbone = tiny_backbone()
    images = tiny_images(3)
    features = [backbone.trace(images, keep=keep).features for keep in (KEYS_AND_VALUES, INPUTS, NOTHING)]
    assert all(torch.equal(features[0], other) for other in features[1:])  # type: ignore[arg-type]


def test_a_copy_of_a_model_answers_alike() -> None:
    backbone = tiny_backbone()
    model = memtok.MemoryViT(backbone, several(backbone))
    with torch.no_grad():
        model(tiny_images(2))
        copied = copy.deepcopy(model)
        for name in model.names:
            assert torch.equal(copied(tiny_images(2))[name], model(tiny_images(2))[name])


@pytest.mark.parametrize("how", ["autocast", "weights"])
@pytest.mark.parametrize("keep", [KEYS_AND_VALUES, INPUTS])
def test_bf16_stays_within_three_percent_of_float32(keep: str, how: str) -> None:
    """bf16 has 8 bits: a rounding is off by up to 0.4 %, and two layers add up some of them. The bound is stated in
    docs/performance.md."""
    backbone = tiny_backbone()
    tasks = several(backbone)
    images = tiny_images(4)
    with torch.no_grad():
        expected = memtok.reference_outputs(backbone, tasks, images)
        if how == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                found = memtok.MemoryViT(backbone, tasks).answer(backbone.trace(images, keep=keep))
        else:
            low = memtok.load_backbone(backbone.vit, dtype=torch.bfloat16)
            found = memtok.MemoryViT(low, tasks).answer(low.trace(images.bfloat16(), keep=keep))
    for task in tasks:
        difference = (found[task.name].float() - expected[task.name]).abs().max()
        assert difference <= 0.03 * expected[task.name].abs().max(), f"{task.name}: {difference}"


def test_what_is_no_trace_of_the_backbone_is_refused() -> None:
    backbone, other = tiny_backbone(), tiny_backbone(seed=9)
    model = memtok.MemoryViT(backbone, several(backbone))
    for wrong, words in (
        (memtok.MemoryViT(other, several(other)).trace(tiny_images(2)), "a trace of this backbone"),
        (memtok.MemoryViT(other).trace(tiny_images(2)), "a trace of this backbone"),
        (tiny_images(2), "expected a trace, found Tensor; make one with model.trace"),
        ("x", "expected a trace, found str"),
    ):
        with pytest.raises(memtok.MemtokError, match=words):
            model.answer(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("keep", [KEYS_AND_VALUES, INPUTS])
@pytest.mark.parametrize("made_under_autocast", [True, False])
def test_a_trace_answers_in_another_precision_than_it_was_made_in(keep: str, made_under_autocast: bool) -> None:
    backbone = tiny_backbone()
    tasks = several(backbone)
    images = tiny_images(4)
    model = memtok.MemoryViT(backbone, tasks)
    with torch.no_grad():
        expected = memtok.reference_outputs(backbone, tasks, images)
        with torch.autocast("cpu", torch.bfloat16, enabled=made_under_autocast):
            trace = backbone.trace(images, keep=keep)
        with torch.autocast("cpu", torch.bfloat16, enabled=not made_under_autocast):
            found = model.answer(trace)
    for task in tasks:
        difference = (found[task.name].float() - expected[task.name]).abs().max()
        assert difference <= 0.03 * expected[task.name].abs().max(), f"{task.name}: {difference}"
