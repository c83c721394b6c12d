"""The reference against Table 1 of the paper, row by row, and the variants against their definitions."""

from __future__ import annotations

import torch

import memtok
from tests.tiny import VARIANTS, tiny_backbone, tiny_images, tiny_task


def test_attention_mask_is_table_1() -> None:
    backbone = tiny_backbone()
    a = tiny_task(backbone, "a", memory=2)
    b = tiny_task(backbone, "b", memory=1, extends=[a])
    c = tiny_task(backbone, "c", memory=1, queries=2)
    mask = memtok.attention_mask(2, [a, b, c]).int()
    expected = [
        # trunk  a  b  c  c  a's cells  b's  c's
        [1, 1, 0, 0, 0, 0, 0, 0, 0, 0],  # a trunk token sees the trunk
        [1, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 1, 1, 0, 0],  # a sees itself and its memory
        [1, 1, 1, 1, 0, 0, 1, 1, 1, 0],  # b extends a
        [1, 1, 0, 0, 1, 1, 0, 0, 0, 1],  # the class tokens of one task see each other
        [1, 1, 0, 0, 1, 1, 0, 0, 0, 1],
    ]
    assert mask.tolist() == expected


def test_memory_goes_through_the_first_norm_of_its_layer() -> None:
    """Memory that is scaled and shifted as a whole answers alike before the norm, and otherwise after it."""
    backbone = tiny_backbone()
    images = tiny_images()
    for placement, alike in (("before-norm", True), ("after-norm", False)):
        task = tiny_task(backbone, placement=placement)
        with torch.no_grad():
            first = memtok.MemoryViT(backbone, [task])(images)["pets"]
            task.memory.mul_(10.0).add_(3.0)
            second = memtok.MemoryViT(backbone, [task])(images)["pets"]
        assert torch.allclose(first, second, atol=1e-3) is alike


def test_head_and_class_with_the_base_token_answers_as_a_head() -> None:
    """A copied class token in the place of the base one leaves the features of the base."""
    backbone = tiny_backbone()
    task = memtok.Task.create(backbone, name="pets", classes=["a", "b"], regime="head+class", seed=0)
    images = tiny_images()
    out = memtok.MemoryViT(backbone, [task])(images)
    torch.testing.assert_close(out["pets"], task.head(out.features), atol=1e-5, rtol=1e-5)


def test_memory_of_no_cells_makes_all_variants_alike() -> None:
    backbone = tiny_backbone()
    images = tiny_images()
    answers = []
    for regime in VARIANTS:
        task = tiny_task(backbone, regime=regime, memory=0)
        answers.append(memtok.MemoryViT(backbone, [task])(images)["pets"])
    for answer in answers[1:]:
        torch.testing.assert_close(answer, answers[0], atol=1e-5, rtol=1e-5)


def test_additive_without_updates_is_propagated() -> None:
    backbone = tiny_backbone()
    images = tiny_images()
    additive = memtok.Task.create(backbone, name="pets", classes=["a", "b"], regime="memory-additive", seed=0)
    propagated = memtok.Task.create(backbone, name="pets", classes=["a", "b"], regime="memory-propagated", seed=0)
    with torch.no_grad():
        for target in (propagated.class_tokens, propagated.head.weight, propagated.head.bias):
            target.copy_(
                dict(additive.named_parameters())[next(n for n, p in propagated.named_parameters() if p is target)]
            )
        propagated.memory.copy_(additive.memory[:1])
        first = memtok.MemoryViT(backbone, [additive])(images)["pets"]
        second = memtok.MemoryViT(backbone, [propagated])(images)["pets"]
        torch.testing.assert_close(first, second, atol=1e-6, rtol=1e-6)
        additive.memory[1:].add_(torch.linspace(-3, 3, 32))
        assert not torch.allclose(memtok.MemoryViT(backbone, [additive])(images)["pets"], second, atol=1e-3)


def test_memory_that_image_tokens_see_changes_more_than_memory_that_they_do_not() -> None:
    backbone = tiny_backbone()
    images = tiny_images()
    shared = tiny_task(backbone, regime="memory-shared")
    masked = tiny_task(backbone, regime="memory")
    with torch.no_grad():
        for target, source in zip(masked.parameters(), shared.parameters(), strict=True):
            target.copy_(source)
        one = memtok.MemoryViT(backbone, [shared])(images)["pets"]
        other = memtok.MemoryViT(backbone, [masked])(images)["pets"]
    assert not torch.allclose(one, other, atol=1e-3)


def test_every_variant_trains_its_parameters_and_no_other() -> None:
    backbone = tiny_backbone()
    for regime in ("head", "head+class", "memory-shared", "memory-propagated", "memory-additive"):
        task = tiny_task(backbone, regime=regime)
        memtok.MemoryViT(backbone, [task])(tiny_images())["pets"].square().sum().backward()
        assert all(parameter.grad is None for parameter in backbone.parameters())
        for name, parameter in task.named_parameters():
            assert parameter.numel() == 0 or (parameter.grad is not None and parameter.grad.any()), (regime, name)
