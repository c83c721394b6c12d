"""Which task a stored one extends: by content, and by name where tasks of equal content stand side by side."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

import memtok
from memtok.cli import main
from memtok.errors import MemtokError
from memtok.parts import TENSORS
from tests.tiny import tiny_backbone, tiny_images, tiny_task


@pytest.fixture(scope="module")
def backbone() -> memtok.Backbone:
    return tiny_backbone()


def twins(backbone: memtok.Backbone) -> tuple[memtok.Task, memtok.Task, memtok.Task]:
    """Two tasks of equal content and different names, and one that extends both."""
    a, b = tiny_task(backbone, "a"), tiny_task(backbone, "b")
    assert a.fingerprint == b.fingerprint
    return a, b, tiny_task(backbone, "c", seed=1, extends=[a, b])


def answers(backbone: memtok.Backbone, tasks: list[memtok.Task]) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        out = memtok.MemoryViT(backbone, tasks)(tiny_images(), base=False)
    return {name: out[name] for name in out}


def lose_sees(path: Path) -> None:
    """Rewrites a file as version 0.1 wrote it: without digest, and without the number of tasks that it sees."""
    with safe_open(path, framework="pt") as stream:
        tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 - not a mapping
        content = json.loads(stream.metadata()["memtok"])
    for header in content.get("tasks", [content]):
        header.pop("digest")
        header.pop("sees", None)
    save_file(tensors, path, metadata={"memtok": json.dumps(content)})


@pytest.mark.parametrize("old", [False, True])
def test_a_task_that_extends_twins_extends_both_after_loading(
    backbone: memtok.Backbone, tmp_path: Path, old: bool
) -> None:
    tasks = twins(backbone)
    expected = answers(backbone, list(tasks))
    for order in permutations(tasks):
        memtok.save_tasks(order, tmp_path / "all.safetensors")
        if old:
            lose_sees(tmp_path / "all.safetensors")
        loaded = {task.name: task for task in memtok.load_tasks(tmp_path / "all.safetensors", backbone)}
        assert loaded["c"].extends == (loaded["a"], loaded["b"])
        found = answers(backbone, list(loaded.values()))
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        copied = memtok.load_tasks(tmp_path / "all.safetensors", backbone)
        memtok.save_tasks(copied, tmp_path / "again.safetensors")  # and so for ever
        again = {task.name: task for task in memtok.load_tasks(tmp_path / "again.safetensors", backbone)}
        assert again["c"].extends == (again["a"], again["b"])


def test_twins_in_files_of_their_own(backbone: memtok.Backbone, tmp_path: Path) -> None:
    a, b, c = twins(backbone)
    c.save(tmp_path / "c.safetensors")
    other = tiny_task(backbone, "z", seed=9)
    for given_tasks in permutations([a, b, other]):
        loaded = memtok.load_task(tmp_path / "c.safetensors", backbone, extends=given_tasks)
        assert loaded.extends == (a, b)
    third = copy.deepcopy(a)
    third.name = "third"
    assert memtok.load_task(tmp_path / "c.safetensors", backbone, extends=[third, b, a]).extends == (a, b)


def test_one_twin_does_not_stand_for_both(backbone: memtok.Backbone, tmp_path: Path) -> None:
    a, b, c = twins(backbone)
    c.save(tmp_path / "c.safetensors")
    for path in ("c.safetensors", "old.safetensors"):
        c.save(tmp_path / path)
        if path == "old.safetensors":
            lose_sees(tmp_path / path)
        for lone in (a, b):
            with pytest.raises(MemtokError):
                memtok.load_task(tmp_path / path, backbone, extends=[lone])
    for lone in (a, b):
        with pytest.raises(MemtokError):
            memtok.save_tasks([lone, c], tmp_path / "all.safetensors")
    assert not (tmp_path / "all.safetensors").exists()


def test_renamed_ancestors_are_found_by_content(backbone: memtok.Backbone, tmp_path: Path) -> None:
    a, b, c = twins(backbone)
    c.save(tmp_path / "c.safetensors")
    d = tiny_task(backbone, "d", seed=2, extends=[a])
    d.save(tmp_path / "d.safetensors")
    expected = answers(backbone, [a, b, c])["c"]
    a.name, b.name = "x", "y"
    assert memtok.load_task(tmp_path / "d.safetensors", backbone, extends=[a]).extends == (a,)
    loaded = memtok.load_task(tmp_path / "c.safetensors", backbone, extends=[b, a])
    assert set(loaded.extends) == {a, b}
    with pytest.raises(MemtokError):
        memtok.load_task(tmp_path / "c.safetensors", backbone, extends=[a])
    torch.testing.assert_close(answers(backbone, [a, b, loaded])["c"], expected, atol=1e-6, rtol=1e-6)
    b.name = "a"  # one has the recorded name, the other is what is left
    assert memtok.load_task(tmp_path / "c.safetensors", backbone, extends=[a, b]).extends == (b, a)


def test_a_choice_among_renamed_twins_is_made_only_where_it_makes_no_difference(
    backbone: memtok.Backbone, tmp_path: Path
) -> None:
    a, b, _ = twins(backbone)
    d = tiny_task(backbone, "d", seed=2, extends=[a])
    expected = answers(backbone, [a, d])["d"]
    d.save(tmp_path / "d.safetensors")
    a.name, b.name = "x", "y"
    loaded = memtok.load_task(tmp_path / "d.safetensors", backbone, extends=[b, a])
    assert loaded.extends == (a,)  # the first by name, in whatever order they come
    torch.testing.assert_close(answers(backbone, [a, loaded])["d"], expected, atol=1e-6, rtol=1e-6)
    lose_sees(tmp_path / "d.safetensors")  # which could tell whether another one is needed
    with pytest.raises(MemtokError):
        memtok.load_task(tmp_path / "d.safetensors", backbone, extends=[b, a])
    assert memtok.load_task(tmp_path / "d.safetensors", backbone, extends=[b]).extends == (b,)


def test_a_twin_behind_another_task_is_missed(backbone: memtok.Backbone, tmp_path: Path) -> None:
    """e extends a, and d, which extends the twin of a: three tasks, though two contents name all that it extends."""
    a, b, _ = twins(backbone)
    d = tiny_task(backbone, "d", seed=2, extends=[b])
    e = tiny_task(backbone, "e", seed=3, extends=[a, d])
    for task in (a, b, d, e):
        task.save(tmp_path / f"{task.name}.safetensors")
    memtok.save_tasks([e, d, b, a], tmp_path / "all.safetensors")
    expected = answers(backbone, [a, b, d, e])["e"]
    assert torch.equal(answers(backbone, memtok.load_tasks(tmp_path / "all.safetensors", backbone))["e"], expected)
    alone = memtok.load_task(tmp_path / "d.safetensors", backbone, extends=[a])  # as if b had been renamed
    with pytest.raises(MemtokError):
        memtok.load_task(tmp_path / "e.safetensors", backbone, extends=[a, alone])
    with pytest.raises(MemtokError):
        memtok.MemoryViT(backbone, [a, alone, e])
    files = [str(tmp_path / f"{name}.safetensors") for name in "ade"]
    assert main(["concat", *files, "--out", str(tmp_path / "out.safetensors")]) == 1
    assert not (tmp_path / "out.safetensors").exists()


def test_concat_of_twins_in_any_order(backbone: memtok.Backbone, tmp_path: Path) -> None:
    tasks = twins(backbone)
    expected = answers(backbone, list(tasks))
    for task in tasks:
        task.save(tmp_path / f"{task.name}.safetensors")
    for order in permutations("abc"):
        out = tmp_path / f"{''.join(order)}.safetensors"
        assert main(["concat", *(str(tmp_path / f"{name}.safetensors") for name in order), "--out", str(out)]) == 0
        found = answers(backbone, memtok.load_tasks(out, backbone))
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_concat_names_what_was_renamed_as_it_is_called_there(backbone: memtok.Backbone, tmp_path: Path) -> None:
    a, b, c = twins(backbone)
    c.save(tmp_path / "c.safetensors")
    b.name = "y"
    a.save(tmp_path / "a.safetensors")
    b.save(tmp_path / "y.safetensors")
    files = [str(tmp_path / name) for name in ("y.safetensors", "c.safetensors", "a.safetensors")]
    assert main(["concat", *files, "--out", str(tmp_path / "all.safetensors")]) == 0
    loaded = {task.name: task for task in memtok.load_tasks(tmp_path / "all.safetensors", backbone)}
    assert loaded["c"].extends == (loaded["a"], loaded["y"])
    with safe_open(tmp_path / "all.safetensors", framework="pt") as stream:
        headers = {header["name"]: header for header in json.loads(stream.metadata()["memtok"])["tasks"]}
    assert [entry["name"] for entry in headers["c"]["extends"]] == ["a", "y"]


def test_one_task_with_two_lists_of_classes_is_refused(backbone: memtok.Backbone, tmp_path: Path) -> None:
    a = tiny_task(backbone, "a")
    a.save(tmp_path / "a.safetensors")
    d = tiny_task(backbone, "d", seed=2, extends=[a])
    memtok.save_tasks([a, d], tmp_path / "both.safetensors")
    first = memtok.MemoryViT(backbone, memtok.load_tasks(tmp_path / "both.safetensors", backbone))
    a.classes = tuple(reversed(a.classes))
    a.save(tmp_path / "a.safetensors")
    with pytest.raises(MemtokError):
        first.concat(memtok.MemoryViT(backbone, [memtok.load_task(tmp_path / "a.safetensors", backbone)]))
    files = [str(tmp_path / name) for name in ("a.safetensors", "both.safetensors")]
    assert main(["concat", *files, "--out", str(tmp_path / "all.safetensors")]) == 1


# Names that end in what a tensor is called


def test_no_name_of_a_tensor_is_the_end_of_another(backbone: memtok.Backbone) -> None:
    for one in TENSORS:
        assert not any(other.endswith("." + one) for other in TENSORS), one
    tasks = [tiny_task(backbone, adapter_rank=1, readout=1, readout_rank=rank, side=1) for rank in (0, 1)]
    assert {name for task in tasks for name in task.tensors()} == set(TENSORS)


PARTS = st.sampled_from(
    ["a", "b", "tasks", "memory", "head", "weight", "bias", "class_tokens", "adapters", "qkv", "up"]
)
NAMES = st.lists(PARTS, min_size=1, max_size=5).map(".".join)


@settings(max_examples=20, deadline=None)
@given(names=st.lists(NAMES, min_size=1, max_size=6, unique=True), ranks=st.lists(st.integers(0, 1), min_size=6))
def test_names_with_dots(tmp_path_factory, backbone, names, ranks) -> None:  # type: ignore[no-untyped-def]
    tasks = [
        tiny_task(backbone, name, seed=index, memory=1, adapter_rank=ranks[index]) for index, name in enumerate(names)
    ]
    path = tmp_path_factory.mktemp("names") / "all.safetensors"
    memtok.save_tasks(tasks, path)
    again = memtok.load_tasks(path, backbone)
    assert [task.name for task in again] == names
    assert [task.fingerprint for task in again] == [task.fingerprint for task in tasks]


CLASHES: list[tuple[str, ...]] = [
    ("pets", "pets.head"),
    ("a", "a.adapters.qkv"),
    ("x", "x.memory"),
    ("x.memory", "x"),
    ("t", "t.class_tokens", "t.head", "t.head.head"),
    ("tasks", "tasks.tasks", "tasks.tasks.memory"),
]


@pytest.mark.parametrize("names", CLASHES, ids=" ".join)
def test_concat_of_such_names_is_read_back(
    names: tuple[str, ...], backbone: memtok.Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = [tiny_task(backbone, name, seed=index, adapter_rank=index % 2) for index, name in enumerate(names)]
    files = []
    for task in tasks:
        files.append(str(tmp_path / f"{task.name}.safetensors"))
        task.save(files[-1])
    out = str(tmp_path / "out" / "all.safetensors")
    assert main(["concat", *files, "--out", out]) == 0
    expected = answers(backbone, tasks)
    found = answers(backbone, memtok.load_tasks(out, backbone))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert main(["inspect", out, "--json", str(tmp_path / "i.json")]) == 0
    (contents,) = json.loads((tmp_path / "i.json").read_text())["files"]
    for task, described in zip(tasks, contents["tasks"], strict=True):
        assert described["name"] == task.name
        shapes = {key: tuple(tensor["shape"]) for key, tensor in described["tensors"].items()}
        assert shapes == {key: tuple(tensor.shape) for key, tensor in task.tensors().items()}


CHANGES: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "a tensor of no task": lambda tensors: tensors.update({"tasks.z.memory": torch.zeros(1)}),
    "an unknown tensor": lambda tensors: tensors.update({"tasks.a.extra": torch.zeros(1)}),
    "a missing tensor": lambda tensors: tensors.pop("tasks.a.head.head.bias"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_tensors_of_no_task_are_refused(change: str, backbone: memtok.Backbone, tmp_path: Path) -> None:
    path = tmp_path / "all.safetensors"
    memtok.save_tasks([tiny_task(backbone, "a"), tiny_task(backbone, "a.head", seed=1)], path)
    with safe_open(path, framework="pt") as stream:
        tensors, metadata = {key: stream.get_tensor(key) for key in stream.keys()}, stream.metadata()  # noqa: SIM118
    CHANGES[change](tensors)
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(MemtokError):
        memtok.load_tasks(path, backbone)


@settings(max_examples=15, deadline=None)
@given(
    contents=st.lists(st.integers(0, 1), min_size=2, max_size=6),
    edges=st.lists(st.booleans(), min_size=15, max_size=15),
    fresh=st.lists(st.integers(0, 3), min_size=6, max_size=6),
    left_out=st.integers(0, 11),
    old=st.booleans(),
)
def test_any_graph_of_twins_answers_as_it_did_or_is_refused(  # type: ignore[no-untyped-def]
    tmp_path_factory, contents, edges, fresh, left_out, old
) -> None:
    """Tasks of few contents that extend each other; some are renamed after all were saved, one may be left out.

    Not of old files: they do not say how many tasks one sees, so that a renamed twin may stand for one left out.
    """
    backbone = tiny_backbone(embed_dim=16, depth=1)
    folder = tmp_path_factory.mktemp("graph")
    tasks: list[memtok.Task] = []
    for index, seed in enumerate(contents):
        extends = [other for number, other in enumerate(tasks) if edges[index * (index - 1) // 2 + number]]
        tasks.append(tiny_task(backbone, f"t{index}", seed=seed, memory=1, extends=extends))
    expected = list(answers(backbone, tasks).values())
    for index, task in enumerate(tasks):
        task.save(folder / f"{index}.safetensors")
    names = [task.name for task in tasks]
    for index, task in enumerate(tasks):  # a name of its own, or one that a saved file may still know another task by
        new = {1: f"t{len(contents) - 1 - index}", 2: f"new{index}"}.get(fresh[index], task.name)
        if new not in names and new not in [other.name for other in task.extends]:
            names[index] = new
            assert main(["rename", str(folder / f"{index}.safetensors"), new]) == 0
    if old:
        for path in folder.iterdir():
            lose_sees(path)
    given_files = [str(folder / f"{index}.safetensors") for index in range(len(tasks)) if old or index != left_out]
    out = folder / "all.safetensors"
    if main(["concat", *given_files, "--out", str(out)]) != 0:
        assert old or len(given_files) < len(tasks) or len(set(contents)) < len(contents)
        return
    found = answers(backbone, memtok.load_tasks(out, backbone))
    for index, name in enumerate(names):
        if name in found:
            torch.testing.assert_close(found[name], expected[index], atol=1e-5, rtol=1e-5)
