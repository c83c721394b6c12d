"""Task: what it owns, how it starts, and what it refuses."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import memtok
from memtok.errors import MemtokError
from tests.tiny import tiny_backbone, tiny_images, tiny_task


@pytest.fixture(scope="module")
def backbone() -> memtok.Backbone:
    return tiny_backbone()


def test_shapes_and_parameters(backbone: memtok.Backbone) -> None:
    task = memtok.Task.create(backbone, name="pets", classes=["cat", "dog"], memory=4, queries=3, adapter_rank=2)
    shapes = {name: tuple(parameter.shape) for name, parameter in task.named_parameters()}
    assert shapes == {
        "class_tokens": (3, 32),
        "memory": (2, 4, 32),
        "head.weight": (2, 96),
        "head.bias": (2,),
        "adapters.qkv_down": (2, 2, 32),
        "adapters.qkv_up": (2, 96, 2),
        "adapters.proj_down": (2, 2, 32),
        "adapters.proj_up": (2, 32, 2),
        "adapters.mlp_down": (2, 2, 32),
        "adapters.mlp_up": (2, 32, 2),
    }


def test_defaults(backbone: memtok.Backbone) -> None:
    task = memtok.Task.create(backbone, name="pets", classes=["cat", "dog"])
    assert (task.regime, task.cells, task.queries, task.adapter_rank) == ("memory", 5, 1, 0)
    assert task.placement == "before-norm"
    assert task.preprocessing == backbone.preprocessing
    head = memtok.Task.create(backbone, name="pets", classes=["cat", "dog"], regime="head")
    assert (head.cells, head.queries) == (0, 0)
    assert head.head.weight.shape == (2, 32)


def test_initial_values_are_those_of_the_paper(backbone: memtok.Backbone) -> None:
    """Memory from N(0, 0.02). The class token is the base one: fault 5 of the reproduction drew it from N(0, 1)."""
    task = memtok.Task.create(backbone, name="pets", classes=["a"], memory=2000, queries=40, seed=3)
    assert abs(float(task.memory.detach().std()) - 0.02) < 0.0005
    assert abs(float(task.memory.detach().mean())) < 0.0005
    assert torch.equal(task.class_tokens[0], backbone.class_token)
    assert abs(float((task.class_tokens.detach()[1:] - backbone.class_token).std()) - 0.02) < 0.001


def test_new_adapters_change_nothing(backbone: memtok.Backbone) -> None:
    plain = memtok.Task.create(backbone, name="pets", classes=["a", "b"], seed=1)
    adapted = memtok.Task.create(backbone, name="pets", classes=["a", "b"], adapter_rank=4, seed=1)
    with torch.no_grad():
        adapted.head.weight.copy_(plain.head.weight)
        adapted.memory.copy_(plain.memory)
    images = tiny_images()
    first = memtok.MemoryViT(backbone, [plain])(images)["pets"]
    torch.testing.assert_close(memtok.MemoryViT(backbone, [adapted])(images)["pets"], first)


def test_a_seed_gives_the_same_task_and_leaves_the_global_generator(backbone: memtok.Backbone) -> None:
    state = torch.get_rng_state()
    first, second = (memtok.Task.create(backbone, name="pets", classes=["a"], seed=7) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.fingerprint == second.fingerprint
    assert memtok.Task.create(backbone, name="pets", classes=["a"], seed=8).fingerprint != first.fingerprint


def test_fingerprint_follows_content_not_names(backbone: memtok.Backbone) -> None:
    task = tiny_task(backbone)
    fingerprint = task.fingerprint
    task.name = "animals"
    task.classes = ("x", "y", "z")
    assert task.fingerprint == fingerprint
    for parameter in task.parameters():
        changed = copy.deepcopy(task)
        target = dict(changed.named_parameters())[next(n for n, p in task.named_parameters() if p is parameter)]
        with torch.no_grad():
            target.view(-1)[0] += 1.0
        assert changed.fingerprint != fingerprint


def test_a_deep_copy_shares_the_backbone_and_what_it_extends(backbone: memtok.Backbone) -> None:
    a = tiny_task(backbone, "a")
    b = tiny_task(backbone, "b", extends=[a])
    clone = copy.deepcopy(b)
    assert clone.backbone is backbone
    assert clone.extends == (a,)
    with torch.no_grad():
        clone.memory.add_(1.0)
    assert not torch.equal(clone.memory, b.memory)


def test_ancestors_come_before_those_that_extend_them(backbone: memtok.Backbone) -> None:
    a = tiny_task(backbone, "a")
    b = tiny_task(backbone, "b", extends=[a])
    c = tiny_task(backbone, "c", extends=[a])
    d = tiny_task(backbone, "d", extends=[c, b])
    assert [task.name for task in d.ancestors()] == ["a", "c", "b"]
    assert not any(parameter is other for parameter in d.parameters() for other in a.parameters())


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"memory": -1}, "memory"),
        ({"memory": 2.5}, "memory"),
        ({"memory": True}, "memory"),
        ({"queries": 0}, "queries"),
        ({"adapter_rank": -2}, "adapter_rank"),
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "base"}, "name"),
        ({"classes": "cat"}, "classes"),
        ({"classes": []}, "classes"),
        ({"classes": ["a", "a"]}, "classes"),
        ({"classes": [1, 2]}, "classes"),
        ({"regime": "nonsense"}, "regime"),
        ({"regime": "full"}, "regime"),
        ({"regime": "head", "memory": 3}, "memory"),
        ({"regime": "head+class", "queries": 2}, "queries"),
        ({"regime": "memory-shared", "adapter_rank": 2}, "adapter_rank"),
        ({"placement": "between"}, "placement"),
    ],
)
def test_bad_values_are_one_line(backbone: memtok.Backbone, changes: dict[str, object], argument: str) -> None:
    arguments: dict[str, object] = {"name": "pets", "classes": ["cat", "dog"]}
    with pytest.raises(MemtokError) as caught:
        memtok.Task.create(backbone, **(arguments | changes))  # type: ignore[arg-type]
    assert caught.value.argument == argument
    assert "\n" not in str(caught.value)


def test_bad_extensions_are_one_line(backbone: memtok.Backbone) -> None:
    seen = tiny_task(backbone, "seen", regime="memory-shared")
    stranger = tiny_task(tiny_backbone(seed=9), "stranger")
    a = tiny_task(backbone, "a")
    for extends in ([seen], [stranger], [tiny_task(backbone, "new")], ["a.safetensors"], a):
        with pytest.raises(MemtokError) as caught:
            memtok.Task.create(backbone, name="new", classes=["x"], extends=extends)  # type: ignore[arg-type]
        assert caught.value.argument == "extends"
        assert "\n" not in str(caught.value)
    with pytest.raises(MemtokError) as caught:
        memtok.Task.create(backbone, name="new", classes=["x"], extends=[a], regime="head")
    assert caught.value.argument == "regime"


@pytest.mark.parametrize("name", ["", " ", "a\nb", "a\rb", "a\tb", "a\x00b", "a\x1b[31m", "a\u2028b", "a\x85b"])
def test_class_names_are_lines_of_text(backbone: memtok.Backbone, name: str) -> None:
    for kind in (memtok.Task, memtok.FullModel):
        with pytest.raises(MemtokError) as caught:
            kind.create(backbone, name="pets", classes=["cat", name])
        assert caught.value.argument == "classes"


def test_class_names_are_in_one_unicode_form(backbone: memtok.Backbone) -> None:
    task = memtok.Task.create(backbone, name="drinks", classes=["cafe\u0301", "tea"])
    assert task.classes == ("caf\u00e9", "tea")
    with pytest.raises(MemtokError) as caught:
        memtok.Task.create(backbone, name="drinks", classes=["cafe\u0301", "caf\u00e9"])
    assert caught.value.argument == "classes"


def test_files_with_class_names_of_before_are_read_and_written(backbone: memtok.Backbone, tmp_path: Path) -> None:
    """Earlier versions took any names; their files keep them."""
    task = tiny_task(backbone, classes=3)
    task.classes = ("a\tb", "cafe\u0301", "caf\u00e9")
    task.save(tmp_path / "old.safetensors")
    found = memtok.load_task(tmp_path / "old.safetensors", backbone)
    assert found.classes == task.classes
    memtok.save_tasks([found], tmp_path / "again.safetensors")
    assert memtok.load_tasks(tmp_path / "again.safetensors", backbone)[0].classes == task.classes
