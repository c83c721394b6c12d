"""Old checkpoints. The fixtures in shared/ were written by the reproduction's own code, with the logits that it gives;
the state dicts of old_states.py stand in where that folder is missing, and for every way in which a file can be bad."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import memtok
from memtok.checkpoint import save_checkpoint
from memtok.errors import MemtokError
from memtok.legacy import legacy_backbone
from tests.old_states import State, old_answers, old_mask, old_state
from tests.tiny import tiny_backbone, tiny_images, tiny_vit

ATTENTION = "vit.encoder.layer.{}.attention.attention."


@pytest.fixture
def legacy(shared: Path) -> Path:
    return shared / "fixtures" / "legacy"


@pytest.fixture
def backbone(legacy: Path) -> memtok.Backbone:
    return memtok.load_backbone(legacy / "base")


def test_alone_concatenated_and_extended_answer_as_the_reproduction(legacy: Path, backbone: memtok.Backbone) -> None:
    expected = load_file(legacy / "expected.safetensors")
    images = expected["images"]
    [a] = memtok.read_legacy(legacy / "A_model.pt", backbone)
    [b] = memtok.read_legacy(legacy / "B_model.pt", backbone)
    first, second = memtok.read_legacy(legacy / "extension_model.pt", backbone)
    assert (a.name, b.name, first.name, second.name) == ("A", "B", "extension-1", "extension-2")
    assert second.extends == (first,)
    assert a.placement == "after-norm"
    with torch.no_grad():
        alone = memtok.MemoryViT(backbone, [a])(images)
        both = memtok.MemoryViT(backbone, [a]).concat(memtok.MemoryViT(backbone, [b]))(images)
        extended = memtok.MemoryViT(backbone, [first, second])(images)
        pairs = [
            (alone["A"], "A"),
            (memtok.MemoryViT(backbone, [b])(images)["B"], "B"),
            (alone.base, "base"),
            (both["A"], "concat_A"),
            (both["B"], "concat_B"),
            (both.base, "concat_base"),
            (extended["extension-1"], "ext_1"),
            (extended["extension-2"], "ext_2"),
            (extended.base, "ext_base"),
        ]
    for found, name in pairs:
        torch.testing.assert_close(found, expected[name], atol=1e-5, rtol=1e-5)


def test_the_stand_in_answers_as_the_reproduction(legacy: Path) -> None:
    """What the tests below compare with is itself compared with the reproduction's own numbers."""
    expected = load_file(legacy / "expected.safetensors")
    for name, keys in {"A": ["base", "A"], "extension": ["ext_base", "ext_1", "ext_2"]}.items():
        state = torch.load(legacy / f"{name}_model.pt", weights_only=True)
        for found, key in zip(old_answers(state, expected["images"], heads=4, epsilon=1e-12), keys, strict=True):
            torch.testing.assert_close(found, expected[key], atol=1e-5, rtol=1e-5)
        cells = [4, 2][: len(keys) - 1]
        assert torch.equal(state[ATTENTION.format(0) + "attention_mask"], old_mask(16, cells, name == "extension"))


def test_they_carry_the_preprocessing_of_the_reproduction(legacy: Path, backbone: memtok.Backbone) -> None:
    [task] = memtok.read_legacy(legacy / "A_model.pt", backbone, classes=[list("abcde")])
    assert task.classes == ("a", "b", "c", "d", "e")
    assert task.preprocessing.mean == (0.0, 0.0, 0.0)
    assert task.preprocessing.std == (1.0, 1.0, 1.0)
    own = memtok.Task.create(backbone, name="own", classes=["x", "y"])
    with pytest.raises(MemtokError, match="mean"):
        memtok.MemoryViT(backbone, [task, own])


def test_a_task_file_of_an_imported_task_is_small(legacy: Path, backbone: memtok.Backbone, tmp_path: Path) -> None:
    tasks = memtok.read_legacy(legacy / "extension_model.pt", backbone)
    memtok.save_tasks(tasks, tmp_path / "all.safetensors")
    assert (tmp_path / "all.safetensors").stat().st_size < 12_000 < (legacy / "extension_model.pt").stat().st_size / 20
    again = memtok.load_tasks(tmp_path / "all.safetensors", backbone)
    assert [task.fingerprint for task in again] == [task.fingerprint for task in tasks]


def test_another_architecture_is_refused(legacy: Path) -> None:
    with pytest.raises(MemtokError, match="width 48") as error:
        memtok.read_legacy(legacy / "A_model.pt", tiny_backbone())
    assert error.value.argument == "backbone"


# --- state dicts made here


def write(state: object, folder: Path, name: str = "x_model.pt") -> Path:
    torch.save(state, folder / name)
    return folder / name


@pytest.mark.parametrize("extension", [False, True], ids=["concatenated", "extended"])
@pytest.mark.parametrize("tasks", [[(2, 3)], [(2, 3), (0, 2), (3, 4)]], ids=["one", "three"])
def test_answers_of_tasks_read_from_the_mask(
    tasks: list[tuple[int, int]], extension: bool, tmp_path: Path, print_seed: Callable[[int | None], int]
) -> None:
    seed = print_seed(3)
    vit, backbone, images = tiny_vit(), tiny_backbone(), tiny_images(seed=seed)
    state = old_state(vit, tasks, extension=extension, seed=seed)
    read = memtok.read_legacy(write(state, tmp_path, "old_model.pt"), backbone)
    assert [task.name for task in read] == (["old"] if len(tasks) == 1 else ["old-1", "old-2", "old-3"])
    assert [task.cells for task in read] == [cells for cells, _ in tasks]
    for index, task in enumerate(read):
        assert task.extends == tuple(read[:index] if extension else [])
    how = "alone" if len(tasks) == 1 else "extended" if extension else "concatenated"
    assert {task.record["arrangement"] for task in read} == {how}
    assert {task.record["imported"] for task in read} == {"old_model.pt"}
    with torch.no_grad():
        answers = memtok.MemoryViT(backbone, read)(images)
    expected = old_answers(state, images, heads=2, epsilon=1e-6)
    torch.testing.assert_close(answers.base, expected[0], atol=1e-4, rtol=1e-5)
    for task, logits in zip(read, expected[1:], strict=True):
        torch.testing.assert_close(answers[task.name], logits, atol=1e-4, rtol=1e-5)


def test_half_precision_and_class_names(tmp_path: Path) -> None:
    state = OrderedDict((key, value.half()) for key, value in old_state(tiny_vit(), [(1, 2), (1, 3)]).items())
    backbone = legacy_backbone(write(state, tmp_path), tiny_backbone())
    first, second = memtok.read_legacy(tmp_path / "x_model.pt", backbone, classes=[["a", "b"], ["c", "d", "e"]])
    assert (first.classes, second.classes) == (("a", "b"), ("c", "d", "e"))
    assert first.memory.dtype == torch.float32
    for classes in ([["a", "b"]], [["a", "b"], ["c", "d"]]):
        with pytest.raises(MemtokError) as error:
            memtok.read_legacy(tmp_path / "x_model.pt", backbone, classes=classes)
        assert error.value.argument == "classes"


def test_the_backbone_inside(tmp_path: Path) -> None:
    """One whose class token was trained as well: refused beside the original, and read by itself."""
    vit = tiny_vit()
    with torch.no_grad():
        vit.cls_token += 0.25
    state = old_state(vit)
    path = write(state, tmp_path)
    with pytest.raises(MemtokError, match=r"numbers of cls_token, by up to 0\.25.*--base-out") as caught:
        memtok.read_legacy(path, tiny_backbone())
    assert "\n" not in str(caught.value)
    base = legacy_backbone(path, tiny_backbone())
    assert base.fingerprint == memtok.load_backbone(vit).fingerprint
    assert (base.preprocessing.mean, base.preprocessing.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    save_checkpoint(base.vit, base.preprocessing, tmp_path / "base.safetensors")
    again = memtok.load_backbone(tmp_path / "base.safetensors")
    assert again.fingerprint == base.fingerprint
    images = tiny_images()
    [task] = memtok.read_legacy(path, again)
    with torch.no_grad():
        answers = memtok.MemoryViT(again, [task])(images)
    expected = old_answers(state, images, heads=2, epsilon=1e-6)
    torch.testing.assert_close(answers.base, expected[0], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(answers["x"], expected[1], atol=1e-4, rtol=1e-5)


def test_a_folder_and_names_in_it(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    for seed, name in enumerate(("b_model.pt", "a_model.pt")):
        write(old_state(tiny_vit(), seed=seed), tmp_path, name)
    assert [task.name for task in memtok.read_legacy(tmp_path, backbone)] == ["a", "b"]
    assert [task.name for task in memtok.read_legacy(tmp_path, backbone, file="b_model.pt")] == ["b"]
    for source, name in (
        (tmp_path, "c_model.pt"),
        (tmp_path, "../a_model.pt"),
        (tmp_path / "a_model.pt", "a_model.pt"),
    ):
        with pytest.raises(MemtokError) as error:
            memtok.read_legacy(source, backbone, file=name)
        assert error.value.argument == "file"
        assert name in str(error.value)
    with pytest.raises(MemtokError) as error:
        legacy_backbone(tmp_path, backbone)
    assert error.value.argument == "file"
    (tmp_path / "empty").mkdir()
    with pytest.raises(MemtokError) as error:
        memtok.read_legacy(tmp_path / "empty", backbone)
    assert error.value.argument == "source"


# --- files that are something else


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return exec, ("raise SystemExit('unpickled')",)


def test_other_files_are_refused_and_nothing_is_executed(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    path = tmp_path / "x_model.pt"
    with pytest.raises(MemtokError) as error:
        memtok.read_legacy(path, backbone)
    assert error.value.argument == "source"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(MemtokError, match="executes nothing"):
        memtok.read_legacy(path, backbone)
    torch.save({"a": Bomb()}, path)
    with pytest.raises(MemtokError, match="executes nothing") as caught:
        memtok.read_legacy(path, backbone)
    assert "\n" not in str(caught.value)
    torch.save(OrderedDict(weight=torch.zeros(2)), path)
    with pytest.raises(MemtokError, match="cls_tokens"):
        memtok.read_legacy(path, backbone)
    torch.save([torch.zeros(2)], path)
    with pytest.raises(MemtokError, match="list"):
        memtok.read_legacy(path, backbone)
    torch.save(old_state(tiny_vit()) | {"epoch": 3}, path)
    with pytest.raises(MemtokError, match="tensors only in"):
        memtok.read_legacy(path, backbone)
    path.write_bytes(b"")
    with pytest.raises(MemtokError, match="executes nothing"):
        memtok.read_legacy(path, backbone)
    write(old_state(tiny_vit()), tmp_path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(MemtokError, match="executes nothing"):
        memtok.read_legacy(path, backbone)


def without(key: str) -> Callable[[State], None]:
    return lambda state: state.__delitem__(key)


def put(key: str, value: torch.Tensor) -> Callable[[State], None]:
    return lambda state: state.update({key: value})


def open_in_mask(row: int, *columns: int, layers: int = 2) -> Callable[[State], None]:
    """Lets a row see columns of the mask of two tasks of 2 cells each: 17 and 18 are their tokens, 19 to 22 cells."""

    def change(state: State) -> None:
        for layer in range(layers):
            state[ATTENTION.format(layer) + "attention_mask"][0, row, list(columns)] = 0.0

    return change


FAULTS = {
    "lacks a class token": (without("vit.embeddings.cls_tokens.1"), r"cls_tokens\.1 in .* not whole"),
    "lacks a head": (without("classifiers.2.bias"), r"classifiers\.2\.bias in .* not whole"),
    "lacks memory": (without(ATTENTION.format(1) + "memory_tokens.0"), r"layer\.1.*memory_tokens\.0 .* not whole"),
    "lacks a mask": (without(ATTENTION.format(1) + "attention_mask"), r"attention_mask in .* not whole"),
    "lacks positions": (without("vit.embeddings.position_embeddings"), r"position_embeddings in .* not whole"),
    "lacks a layer's tensor": (
        without("vit.encoder.layer.1.output.dense.bias"),
        r"expected the tensor encoder\.layer\.1\.output\.dense\.bias, found none.*damaged, get the file again",
    ),
    "memory too many": (
        put(ATTENTION.format(0) + "memory_tokens.2", torch.zeros(1, 2, 32)),
        r"cls_tokens\.3|classifiers\.3",
    ),
    "old class token": (
        put("vit.embeddings.cls_token", torch.zeros(1, 1, 32)),
        r"found vit\.embeddings\.cls_token bes",
    ),
    "unknown tensor": (put("vit.more.weight", torch.zeros(3)), r"more\.weight"),
    "class token of another width": (put("vit.embeddings.cls_tokens.2", torch.zeros(1, 1, 31)), r"shape \(1, 1, 32\)"),
    "memory of another width": (put(ATTENTION.format(1) + "memory_tokens.1", torch.zeros(1, 2, 31)), r"\(1, 2, 32\)"),
    "memory of other size in a layer": (
        put(ATTENTION.format(1) + "memory_tokens.1", torch.zeros(1, 3, 32)),
        r"2, 32\)",
    ),
    "flat memory": (put(ATTENTION.format(0) + "memory_tokens.1", torch.zeros(32)), r"found \(32,\)"),
    "head of another width": (put("classifiers.1.weight", torch.zeros(3, 31)), r"shape \(3, 32\), found \(3, 31\)"),
    "scalar head": (put("classifiers.1.bias", torch.tensor(0.0)), r"classifiers\.1\.weight of .* shape \(1, 32\)"),
    "whole numbers": (put("classifiers.1.bias", torch.zeros(3, dtype=torch.int64)), r"in floating point"),
    "float8": (put("classifiers.1.bias", torch.zeros(3).to(torch.float8_e5m2)), r"bias of .* in floating point, found"),
    "sparse": (put("classifiers.1.bias", torch.zeros(3).to_sparse()), r"numbers of classifiers\.1\.bias .* lacks them"),
    "meta": (
        put("classifiers.1.bias", torch.zeros(3, device="meta")),
        r"numbers of classifiers\.1\.bias .* lacks them",
    ),
    "one number repeated": (put("classifiers.1.bias", torch.zeros(1).expand(1 << 40)), r"\.1\.bias .* lacks them"),
    "three million tasks": (put("vit.embeddings.cls_tokens.3000000", torch.zeros(1)), r"layers below \d+ .*\.3000000"),
    "three million layers": (put("vit.encoder.layer.3000000.x", torch.zeros(1)), r"layers below \d+ .*\.3000000\.x"),
    "an index of 5,000 digits": (put(f"classifiers.{'9' * 5000}.bias", torch.zeros(1)), r"below \d+ .*9999; it is dam"),
    "more memory than tensors": (
        lambda state: state.update({"classifiers.39.bias": torch.zeros(1), "vit.encoder.layer.30.x": torch.zeros(1)}),
        r"expected memory of 39 tasks in 31 layers of .*, found \d+ tensors only",
    ),
    "not finite": (put("vit.embeddings.cls_tokens.1", torch.full((1, 1, 32), torch.nan)), r"expected finite numbers"),
    "flat positions": (put("vit.embeddings.position_embeddings", torch.zeros(17)), r"3 dimensions, found 1"),
    "mask of another size": (put(ATTENTION.format(0) + "attention_mask", torch.zeros(1, 4, 4)), r"one attention mask"),
    "patches see a task": (open_in_mask(0, 17), r"concatenated or extended tasks"),
    "the first sees the second": (open_in_mask(17, 18, 21, 22), r"concatenated or extended tasks"),
    "sees a class token without its memory": (open_in_mask(18, 17), r"concatenated or extended tasks"),
    "masks that differ": (open_in_mask(18, 17, layers=1), r"found another in layer 1"),
}


@pytest.mark.parametrize(("change", "message"), FAULTS.values(), ids=FAULTS)
def test_a_state_dict_that_is_not_whole(change: Callable[[State], None], message: str, tmp_path: Path) -> None:
    state = old_state(tiny_vit(), [(2, 3), (2, 2)])
    change(state)
    with pytest.raises(MemtokError, match=message) as caught:
        memtok.read_legacy(write(state, tmp_path), tiny_backbone())
    assert "\n" not in str(caught.value)


def test_extensions_that_are_not_passed_on(tmp_path: Path) -> None:
    """The second extends the first and the third the second only; here a task sees all that those it extends see."""
    state = old_state(tiny_vit(), [(0, 2), (0, 2), (0, 2)], extension=True)
    for layer in range(2):
        state[ATTENTION.format(layer) + "attention_mask"][0, 19, 17] = -torch.inf
    with pytest.raises(MemtokError, match="concatenated or extended tasks"):
        memtok.read_legacy(write(state, tmp_path), tiny_backbone())


def test_only_the_base(tmp_path: Path) -> None:
    with pytest.raises(MemtokError, match="expected at least one added task"):
        memtok.read_legacy(write(old_state(tiny_vit(), []), tmp_path), tiny_backbone())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 3}, r"\(layers 3\) .* layers 2"),
        ({"patch_size": 16}, r"\(patch \(16, 16\)\) .* patch \(8, 8\)"),
        ({"mlp_ratio": 2.0}, r"\(MLP width 64\) .* MLP width 128"),
        ({"img_size": 64}, r"pos_embed of shape \(1, 17, 32\) there and \(1, 65, 32\) here"),
        ({"reg_tokens": 1}, "registers 0 there and 1 here"),
        ({"act_layer": "relu"}, "activation gelu there and relu here"),
    ],
)
def test_backbones_of_another_kind(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(MemtokError, match=message):
        memtok.read_legacy(write(old_state(tiny_vit()), tmp_path), tiny_backbone(**changes))
