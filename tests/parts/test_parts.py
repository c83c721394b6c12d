"""What follows from the declarations of the parts: keywords, options of commands, axes of a sweep, checks, counts."""

from __future__ import annotations

import math

import pytest
import torch

import memtok
from memtok.parts import CHOICES, OPTIONS, PARTS, TENSORS, Options, choose, cost, kept, parameters
from memtok.regimes import REGIMES, TASK_REGIMES
from tests.layers.small_models import small_model
from tests.tiny import tiny_backbone, tiny_task


def test_names_are_told_apart() -> None:
    for names in ([option.name for option in OPTIONS], [option.axis for option in OPTIONS], list(TENSORS)):
        assert len(names) == len(set(names))
    # In a file of several tasks, `tasks.NAME.TENSOR` is read in one way only.
    assert not [(one, other) for one in TENSORS for other in TENSORS if one.endswith("." + other)]


def test_type_checkers_know_all_keywords() -> None:
    assert set(Options.__annotations__) == {one.name for one in (*OPTIONS, *CHOICES)}


@pytest.mark.parametrize("regime", TASK_REGIMES)
def test_a_task_has_the_tensors_that_are_declared(regime: str) -> None:
    backbone = tiny_backbone()
    given = {option.name: option.least + 1 for option in OPTIONS if option.fits(REGIMES[regime])}
    task = memtok.Task.create(backbone, name="pets", classes=["cat", "dog"], regime=regime, seed=0, **given)  # type: ignore[arg-type]
    declared = {
        name: spec.shape for part in PARTS for name, spec in part.specs(backbone, REGIMES[regime], task.form).items()
    }
    assert {name: tuple(tensor.shape) for name, tensor in task.named().items()} == declared
    assert sum(parameter.numel() for parameter in task.parameters()) == parameters(backbone, REGIMES[regime], task.form)
    assert {name: size for name, size in task.sizes.items() if name in given} == given


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
@pytest.mark.parametrize("regime", REGIMES)
def test_an_option_that_does_not_fit_the_regime_is_refused(regime: str, option: memtok.parts.Option) -> None:
    sizes, _ = choose(REGIMES[regime], {})
    default = {("readout", "readout"): "all", ("side", "side"): 16}.get((regime, option.name), option.default)
    assert sizes[option.name] == (default if option.fits(REGIMES[regime]) else option.least)
    if option.fits(REGIMES[regime]):
        assert choose(REGIMES[regime], {option.name: option.least + 3})[0][option.name] == option.least + 3
        return
    with pytest.raises(memtok.MemtokError) as caught:
        choose(REGIMES[regime], {option.name: option.least + 1})
    assert caught.value.argument == option.name


@pytest.mark.parametrize("regime", REGIMES)
def test_a_choice_that_does_not_fit_the_regime_is_refused(regime: str) -> None:
    for choice in CHOICES:
        other = {choice.name: choice.values[1]} | ({choice.of: 1} if choice.of else {})
        if choice.fits(REGIMES[regime]):
            assert choose(REGIMES[regime], other)[1][choice.name] == choice.values[1]
            continue
        with pytest.raises(memtok.MemtokError) as caught:
            choose(REGIMES[regime], other)
        assert caught.value.argument == (choice.of or choice.name)  # the option does not fit either


def test_an_option_that_no_part_has_is_refused() -> None:
    with pytest.raises(memtok.MemtokError, match="'cells'"):
        memtok.Task.create(tiny_backbone(), name="pets", classes=["cat"], cells=3)  # type: ignore[call-arg]


def test_costs_of_the_parts_are_those_of_their_products() -> None:
    backbone = tiny_backbone()  # 2 layers, 32 wide, 17 tokens, MLPs of 128
    layer = 3 * 32 * 32 + 32 * 32 + 2 * 32 * 128
    task = tiny_task(backbone, classes=3, memory=4, queries=2)
    assert cost(backbone, task.form) == 2 * (2 * layer + 2 * 2 * (17 + 2 + 4) * 32) + 2 * 32 * 3
    adapted = tiny_task(backbone, classes=3, memory=4, queries=2, adapter_rank=3)
    assert cost(backbone, adapted.form) - cost(backbone, task.form) == 2 * 2 * 3 * (4 * 32 + 2 * 32 + 2 * 32)
    reading = tiny_task(backbone, classes=3, memory=4, queries=2, readout=2)
    assert cost(backbone, reading.form) - cost(backbone, task.form) == 2 * 6 * 32 * 3
    head = tiny_task(backbone, classes=3, regime="head")
    assert cost(backbone, head.form) == 32 * 3
    assert kept(backbone, task.form, 8) > kept(backbone, head.form, 8) > 0
    assert math.isclose(kept(backbone, task.form, 800), 100 * kept(backbone, task.form, 8), rel_tol=0.05)


def test_a_class_token_starts_from_the_base_one_or_from_the_mean_patch() -> None:
    made = {"name": "pets", "classes": ["cat", "dog"], "seed": 0}
    backbone = tiny_backbone()
    assert torch.equal(memtok.Task.create(backbone, **made).class_tokens[0], backbone.vit.cls_token[0, 0])
    vit = small_model("no class token, mean")
    without = memtok.load_backbone(vit)
    expected = vit.patch_embed.proj.bias + vit.pos_embed[0, without.prefix_tokens :].mean(dim=0)
    two = memtok.Task.create(without, **made, queries=2)
    torch.testing.assert_close(two.class_tokens[0], expected)
    assert 0 < float((two.class_tokens[1] - expected).detach().std()) < 0.05
