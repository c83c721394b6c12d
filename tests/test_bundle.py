"""Task files: what goes in comes out, and everything else is refused by name."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

import memtok
from memtok.bundle import read_stored, write_stored
from memtok.errors import MemtokError
from memtok.header import read_header
from tests.tiny import tiny_backbone, tiny_images, tiny_task


@pytest.fixture(scope="module")
def backbone() -> memtok.Backbone:
    return tiny_backbone()


def assert_same(one: memtok.Task, other: memtok.Task) -> None:
    assert one.fingerprint == other.fingerprint
    assert (one.name, one.classes, one.record, one.regime) == (other.name, other.classes, other.record, other.regime)
    for (name, value), (_, again) in zip(one.tensors().items(), other.tensors().items(), strict=True):
        assert torch.equal(value, again), name


@settings(max_examples=25, deadline=None)
@given(
    name=st.text(st.characters(codec="utf-8", exclude_categories=("C",)), min_size=1, max_size=30).filter(
        lambda name: name.strip() and name.isprintable() and name != "base"
    ),
    memory=st.integers(0, 3),
    queries=st.integers(1, 3),
    rank=st.integers(0, 2),
    classes=st.lists(st.text(max_size=10), min_size=1, max_size=5, unique=True),
    seed=st.integers(0, 1000),
)
def test_round_trip(tmp_path_factory, name, memory, queries, rank, classes, seed) -> None:  # type: ignore[no-untyped-def]
    backbone = tiny_backbone()
    numbers = [str(number) for number in range(len(classes))]
    task = memtok.Task.create(
        backbone, name=name, classes=numbers, memory=memory, queries=queries, adapter_rank=rank, seed=seed
    )
    task.classes = tuple(classes)  # any texts, as in files of earlier versions
    task.record = {"seed": seed, "metrics": {"top1": 0.5}}
    path = tmp_path_factory.mktemp("round") / "task.safetensors"
    task.save(path)
    assert_same(memtok.load_task(path, backbone), task)


@pytest.mark.parametrize("regime", ["head", "head+class", "memory-shared", "memory-propagated", "memory-additive"])
def test_round_trip_of_every_regime(backbone: memtok.Backbone, tmp_path: Path, regime: str) -> None:
    task = tiny_task(backbone, regime=regime)
    task.save(tmp_path / "a.safetensors")
    again = memtok.load_task(tmp_path / "a.safetensors", backbone)
    assert_same(again, task)
    images = tiny_images()
    first = memtok.MemoryViT(backbone, [task])(images)["pets"]
    assert torch.equal(memtok.MemoryViT(backbone, [again])(images)["pets"], first)
    assert read_header(tmp_path / "a.safetensors")[0]["composable"] is task.composable


def test_the_layout_of_a_file(backbone: memtok.Backbone, tmp_path: Path) -> None:
    task = tiny_task(backbone, adapter_rank=1, memory=0)
    task.save(tmp_path / "one.safetensors")
    with safe_open(tmp_path / "one.safetensors", framework="pt") as stream:
        names = set(stream.keys())
        content = json.loads(stream.metadata()["memtok"])
    adapters = {f"adapters.{layer}.{part}" for layer in ("qkv", "proj", "mlp") for part in ("down", "up")}
    assert names == {"class_tokens", "memory", "head.weight", "head.bias"} | adapters
    assert content["format_version"] == 1
    assert content["backbone"]["fingerprint"] == backbone.fingerprint
    memtok.save_tasks([task, tiny_task(backbone, "b")], tmp_path / "two.safetensors")
    with safe_open(tmp_path / "two.safetensors", framework="pt") as stream:
        assert {"tasks.pets.memory", "tasks.b.class_tokens", "tasks.b.head.weight"} <= set(stream.keys())


def test_a_file_holds_no_backbone(backbone: memtok.Backbone, tmp_path: Path) -> None:
    task = memtok.Task.create(backbone, name="pets", classes=["a", "b"], memory=1)
    task.save(tmp_path / "a.safetensors")
    numbers = sum(parameter.numel() for parameter in task.parameters())
    assert (tmp_path / "a.safetensors").stat().st_size < 4 * numbers + 3000


def test_several_tasks_that_extend_each_other(backbone: memtok.Backbone, tmp_path: Path) -> None:
    a = tiny_task(backbone, "a")
    b = tiny_task(backbone, "a.b", seed=1, extends=[a])
    c = tiny_task(backbone, "c", seed=2, extends=[b, a])
    path = tmp_path / "all.safetensors"
    memtok.save_tasks([c, a, b], path)  # any order
    tasks = memtok.load_tasks(path, backbone)
    assert [task.name for task in tasks] == ["c", "a", "a.b"]
    assert tasks[0].extends == (tasks[2], tasks[1])
    for one, other in zip([c, a, b], tasks, strict=True):
        assert_same(one, other)
    images = tiny_images()
    first, second = memtok.MemoryViT(backbone, [a, b, c])(images), memtok.MemoryViT(backbone, tasks)(images)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_a_file_extends_is_found_by_fingerprint(backbone: memtok.Backbone, tmp_path: Path) -> None:
    a, like = tiny_task(backbone, "a"), tiny_task(backbone, "a", seed=5)
    b = tiny_task(backbone, "b", extends=[a])
    b.save(tmp_path / "b.safetensors")
    other = tiny_task(backbone, "zzz", seed=9)
    assert memtok.load_task(tmp_path / "b.safetensors", backbone, extends=[other, a]).extends == (a,)
    for extends in ([], [like]):
        with pytest.raises(MemtokError, match=r"expected 'a' \(sha256:.*which 'b' in .*extends, found no such task"):
            memtok.load_task(tmp_path / "b.safetensors", backbone, extends=extends)
    with pytest.raises(MemtokError, match=r"expected 'a' \(sha256:.*which 'b' extends, found no such task"):
        memtok.save_tasks([b], tmp_path / "c.safetensors")
    assert not (tmp_path / "c.safetensors").exists()


def test_another_backbone(backbone: memtok.Backbone, tmp_path: Path) -> None:
    tiny_task(backbone).save(tmp_path / "a.safetensors")
    with pytest.raises(MemtokError, match=r"expected the backbone .* on which 'pets' in .* was trained, found"):
        memtok.load_task(tmp_path / "a.safetensors", tiny_backbone(seed=3))


def test_load_task_wants_one(backbone: memtok.Backbone, tmp_path: Path) -> None:
    memtok.save_tasks([tiny_task(backbone, "a"), tiny_task(backbone, "b")], tmp_path / "a.safetensors")
    with pytest.raises(MemtokError, match=r"found 2 \('a', 'b'\); use memtok.load_tasks"):
        memtok.load_task(tmp_path / "a.safetensors", backbone)
    with pytest.raises(MemtokError, match="found 'a' twice"):
        memtok.save_tasks([tiny_task(backbone, "a"), tiny_task(backbone, "a", seed=1)], tmp_path / "b.safetensors")
    with pytest.raises(MemtokError, match="expected at least one task"):
        memtok.save_tasks([], tmp_path / "b.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors"]


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('unpickled')",)


FOREIGN: dict[str, Callable[[Path], object]] = {
    "expected the file .*, found none there": lambda path: None,
    "found the folder": lambda path: path.mkdir(),
    "found something else or a truncated one": lambda path: path.write_bytes(b""),
    "found something else or a truncated one ": lambda path: path.write_bytes(b"hello, world, this is text"),
    "found something else or a truncated one  ": lambda path: path.write_bytes((2**62).to_bytes(8, "little") + b"{}"),
    "found a pickle or PyTorch checkpoint": lambda path: path.write_bytes(pickle.dumps(Bomb())),
    "found a pickle or PyTorch checkpoint ": lambda path: torch.save({"a": torch.zeros(2)}, path),
    "found a safetensors file without its header": lambda path: save_file({"a": torch.zeros(2)}, path),
    "found a damaged one": lambda path: path.write_bytes((9).to_bytes(8, "little") + b"{broken!}"),
}


@pytest.mark.parametrize("message", FOREIGN)
def test_foreign_files(backbone: memtok.Backbone, tmp_path: Path, message: str) -> None:
    path = tmp_path / "a.safetensors"
    FOREIGN[message](path)
    for read in (lambda: memtok.load_task(path, backbone), lambda: read_header(path)):
        with pytest.raises(MemtokError, match=message.rstrip()) as caught:
            read()
        assert "\n" not in str(caught.value)


def test_truncated_at_every_place(backbone: memtok.Backbone, tmp_path: Path) -> None:
    tiny_task(backbone).save(tmp_path / "a.safetensors")
    whole = (tmp_path / "a.safetensors").read_bytes()
    short = tmp_path / "b.safetensors"
    for length in [*range(0, 64, 9), *range(64, len(whole), 97), len(whole) - 1]:
        short.write_bytes(whole[:length])
        with pytest.raises(MemtokError):
            memtok.load_task(short, backbone)
    short.write_bytes(whole + b"more")
    with pytest.raises(MemtokError, match=r"expected .* bytes of numbers"):
        memtok.load_task(short, backbone)


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], object]) -> None:
    """Applies a change to header and tensors of a task file, and leaves its digest out, as in files of version 0.1."""
    with safe_open(path, framework="pt") as stream:
        tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 - not a mapping
        content = json.loads(stream.metadata()["memtok"])
    for header in content.get("tasks", [content]):
        header.pop("digest")
    change(content, tensors)
    save_file(tensors, path, metadata={"memtok": json.dumps(content)})


CHANGES: dict[str, Callable[[dict[str, Any], dict[str, torch.Tensor]], object]] = {
    "expected a task file of format version 1, found 99": lambda h, t: h.update(format_version=99),
    "expected a task file's header, found a damaged one": lambda h, t: h.pop("format_version"),
    "expected a valid field 'classes'": lambda h, t: h.pop("classes"),
    "expected a valid field 'extends'": lambda h, t: h.update(extends=["a"]),
    "expected the tensor memory in task 'pets', found none": lambda h, t: t.pop("memory"),
    "expected the tensor head.bias in task 'pets', found none": lambda h, t: t.pop("head.bias"),
    "expected no tensor extra in task 'pets'": lambda h, t: t.update(extra=torch.zeros(2)),
    r"expected memory of task 'pets' in shape \(2, 5, 32\), found \(3, 5, 32\)": lambda h, t: t.update(
        memory=torch.zeros(3, 5, 32)
    ),
    "expected finite numbers in memory": lambda h, t: t["memory"].view(-1)[3].fill_(float("nan")),
    "expected finite numbers in head.weight": lambda h, t: t.update({"head.weight": torch.full((3, 32), float("inf"))}),
    "expected head.bias of task 'pets' in shape": lambda h, t: h.update(classes=["a", "b"]),
    "to match its fingerprint": lambda h, t: t["memory"].view(-1)[3].add_(1.0),
    "expected regime memory": lambda h, t: h.update(regime="unheard"),
    "expected placement": lambda h, t: h.update(placement="above"),
    "expected class tokens that fit regime 'head'": lambda h, t: h.update(regime="head"),
}


@pytest.mark.parametrize("message", CHANGES)
def test_changed_files(backbone: memtok.Backbone, tmp_path: Path, message: str) -> None:
    path = tmp_path / "a.safetensors"
    tiny_task(backbone).save(path)
    rewrite(path, CHANGES[message])
    with pytest.raises(MemtokError, match=message) as caught:
        memtok.load_task(path, backbone)
    assert "\n" not in str(caught.value)


def test_a_cycle_in_a_file(backbone: memtok.Backbone, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    memtok.save_tasks([tiny_task(backbone, "a"), tiny_task(backbone, "b", seed=1)], path)

    def tie(content: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        a, b = content["tasks"]
        a["extends"] = [{"name": "b", "fingerprint": b["fingerprint"]}]
        b["extends"] = [{"name": "a", "fingerprint": a["fingerprint"]}]

    rewrite(path, tie)
    with pytest.raises(MemtokError, match="without a cycle"):
        memtok.load_tasks(path, backbone)


def test_broken_numbers_are_not_written_and_the_old_file_stays(backbone: memtok.Backbone, tmp_path: Path) -> None:
    task = tiny_task(backbone)
    path = tmp_path / "a.safetensors"
    task.save(path)
    before = path.read_bytes()
    with torch.no_grad():
        task.memory.view(-1)[0] = float("nan")
    with pytest.raises(MemtokError, match="expected finite numbers in memory of task 'pets'"):
        task.save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_save_that_fails_half_way_leaves_nothing(
    backbone: memtok.Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("memtok.writing.save_file", fail)
    with pytest.raises(MemtokError, match=r"expected to write .*found: disk full; make room"):
        tiny_task(backbone).save(tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_line(backbone: memtok.Backbone, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MemtokError, match="expected a folder that can be written"):
        tiny_task(backbone).save(tmp_path / "file" / "a.safetensors")


def test_stored_tasks_can_be_put_together_without_a_backbone(backbone: memtok.Backbone, tmp_path: Path) -> None:
    a = tiny_task(backbone, "a")
    b = tiny_task(backbone, "b", seed=1, extends=[a])
    a.save(tmp_path / "a.safetensors")
    b.save(tmp_path / "b.safetensors")
    stored = [*read_stored(tmp_path / "b.safetensors"), *read_stored(tmp_path / "a.safetensors")]
    write_stored(stored, tmp_path / "all.safetensors")
    assert [item.fingerprint() for item in stored] == [b.fingerprint, a.fingerprint]
    again = memtok.load_tasks(tmp_path / "all.safetensors", backbone)
    assert [task.name for task in again] == ["b", "a"]
    assert_same(again[0], b)


def test_a_header_whose_length_looks_like_a_pickle_is_read(backbone: memtok.Backbone, tmp_path: Path) -> None:
    """The file begins with the length of its header, and 0x280, 0x380, 0x480 and 0x580 begin as pickles do."""
    task = tiny_task(backbone)
    lengths = set()
    for padding in range(0, 640, 8):
        task.record = {"padding": "x" * padding}
        task.save(tmp_path / "a.safetensors")
        lengths.add(int.from_bytes((tmp_path / "a.safetensors").read_bytes()[:8], "little") & 0xFFFF)
        assert memtok.load_task(tmp_path / "a.safetensors", backbone).fingerprint == task.fingerprint
    assert lengths & {0x480, 0x580}


@pytest.mark.parametrize(
    "change",
    [
        lambda h, t: h["backbone"].update(fingerprint=None),
        lambda h, t: h.update(extends=[{"name": "a", "fingerprint": [1]}]),
        lambda h, t: h.update(format_version=True),
        lambda h, t: h.update(format_version=1.0),
        lambda h, t: t.update(memory=t["memory"].double()),
        lambda h, t: t.update(class_tokens=torch.zeros(1, 1, 32)),
    ],
)
def test_more_changed_files(
    backbone: memtok.Backbone, tmp_path: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], object]
) -> None:
    path = tmp_path / "a.safetensors"
    tiny_task(backbone).save(path)
    rewrite(path, change)
    with pytest.raises(MemtokError, match=r"^expected ") as caught:
        memtok.load_task(path, backbone)
    assert "\n" not in str(caught.value)


def test_metadata_that_is_no_object(backbone: memtok.Backbone, tmp_path: Path) -> None:
    for text in ("[]", "[1]", "3", "[" * 100_000):
        save_file({"class_tokens": torch.zeros(1)}, tmp_path / "a.safetensors", metadata={"memtok": text})
        with pytest.raises(MemtokError, match="found a damaged one"):
            memtok.load_task(tmp_path / "a.safetensors", backbone)
    body = b'{"__metadata__":[1,2]}'
    (tmp_path / "b.safetensors").write_bytes(len(body).to_bytes(8, "little") + body)
    with pytest.raises(MemtokError, match="found a damaged one"):
        memtok.load_task(tmp_path / "b.safetensors", backbone)


def test_a_record_that_is_no_json_is_not_written(backbone: memtok.Backbone, tmp_path: Path) -> None:
    task = tiny_task(backbone)
    task.record = {"when": object()}
    with pytest.raises(MemtokError, match=r"expected a task\.record of JSON values"):
        task.save(tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


# The digest of the header


def flipped(path: Path, old: bytes, bit: int, place: int = 0) -> bytes:
    """The bytes of a file with one bit changed in the first occurrence of `old`."""
    content = bytearray(path.read_bytes())
    content[bytes(content).index(old) + place] ^= 1 << bit
    return bytes(content)


def test_one_changed_bit_in_a_name_is_found(backbone: memtok.Backbone, tmp_path: Path) -> None:
    task = memtok.Task.create(backbone, name="pets", classes=["dog", "cat", "Ägypten"], seed=0)
    task.save(tmp_path / "a.safetensors")
    memtok.save_tasks([task, tiny_task(backbone, "b")], tmp_path / "two.safetensors")
    changed = tmp_path / "changed.safetensors"
    for path in (tmp_path / "a.safetensors", tmp_path / "two.safetensors"):
        for name in ("dog", "cat", "pets", "gypten", "classes", "before-norm"):
            for bit in (0, 1, 2, 4, 5):
                for place in (0, len(name) - 1):
                    changed.write_bytes(flipped(path, name.encode(), bit, place))
                    for read in (lambda: memtok.load_tasks(changed, backbone), lambda: read_header(changed)):
                        with pytest.raises(MemtokError) as caught:
                            read()
                        assert "\n" not in str(caught.value)


def test_no_changed_bit_of_a_header_gives_other_labels(backbone: memtok.Backbone, tmp_path: Path) -> None:
    """Any bit of the header: the file is refused, or says what it said."""
    task = memtok.Task.create(backbone, name="pets", classes=["dog", "cat"], memory=0, seed=0)
    task.save(tmp_path / "a.safetensors")
    (header,) = read_header(tmp_path / "a.safetensors")
    whole = (tmp_path / "a.safetensors").read_bytes()
    changed = tmp_path / "changed.safetensors"
    for place in range(8, 8 + int.from_bytes(whole[:8], "little"), 3):
        bit = place % 8
        changed.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        try:
            (found,) = read_header(changed)
        except MemtokError:
            continue
        assert {key: found[key] for key in header} == header, (place, bit)


def rewrite_text(path: Path, change: Callable[[str], str]) -> None:
    """Applies a change to the JSON of the header as text."""
    with safe_open(path, framework="pt") as stream:
        tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 - not a mapping
        text = stream.metadata()["memtok"]
    assert change(text) != text
    save_file(tensors, path, metadata={"memtok": change(text)})


TEXTS: dict[str, Callable[[str], str]] = {
    "reversed classes": lambda text: text.replace('["dog", "cat"]', '["cat", "dog"]'),
    "a second list of classes": lambda text: text[:-1] + ', "classes": ["cat", "dog"]}',
    "the same list twice": lambda text: text[:-1] + ', "classes": ["dog", "cat"]}',
    "a second key deep inside": lambda text: text.replace('"mean":', '"std": [1, 1, 1], "mean":'),
    "a second version": lambda text: text[:-1] + ', "format_version": 1}',
    "another record": lambda text: text.replace('"seed": 3', '"seed": 4'),
    "another field": lambda text: text[:-1] + ', "more": 1}',
    "another source": lambda text: text.replace("object:", "subject:"),
    "no text as digest": lambda text: text.replace('"digest": "', '"digest": 1, "was": "'),
}


@pytest.mark.parametrize("change", TEXTS)
def test_a_changed_header_is_refused(change: str, backbone: memtok.Backbone, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    task = memtok.Task.create(backbone, name="pets", classes=["dog", "cat"], seed=0)
    task.record = {"seed": 3}
    task.save(path)
    rewrite_text(path, TEXTS[change])
    for read in (lambda: memtok.load_task(path, backbone), lambda: read_header(path)):
        with pytest.raises(MemtokError) as caught:
            read()
        assert "\n" not in str(caught.value)


def test_a_second_key_in_the_header_of_the_container_is_refused(backbone: memtok.Backbone, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tiny_task(backbone).save(path)
    whole = path.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    body = whole[8:end].rstrip()[:-1] + b',"__metadata__":' + json.dumps({"memtok": "{}"}).encode() + b"}"
    path.write_bytes(len(body).to_bytes(8, "little") + body + whole[end:])
    with pytest.raises(MemtokError):
        read_header(path)


def test_files_without_a_digest_are_read(backbone: memtok.Backbone, tmp_path: Path) -> None:
    task = tiny_task(backbone)
    task.save(tmp_path / "a.safetensors")
    rewrite(tmp_path / "a.safetensors", lambda h, t: h)
    assert_same(memtok.load_task(tmp_path / "a.safetensors", backbone), task)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=20, deadline=None)
@given(record=st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), JSON, max_size=4))
def test_any_record_is_read_back(tmp_path_factory, backbone, record) -> None:  # type: ignore[no-untyped-def]
    task = memtok.Task.create(backbone, name="pets", classes=["a"], memory=0, seed=0)
    task.record = record
    path = tmp_path_factory.mktemp("record") / "a.safetensors"
    task.save(path)
    assert json.dumps(memtok.load_task(path, backbone).record) == json.dumps(record)  # a NaN differs from itself


def test_a_record_may_hold_names_that_are_no_utf8(backbone: memtok.Backbone, tmp_path: Path) -> None:
    task = tiny_task(backbone)
    task.record = {"data": {"spec": "folder:/photos/\udcff"}}
    task.save(tmp_path / "a.safetensors")
    assert memtok.load_task(tmp_path / "a.safetensors", backbone).record == task.record


def test_a_record_whose_keys_are_one_in_json_is_not_written(backbone: memtok.Backbone, tmp_path: Path) -> None:
    task = tiny_task(backbone)
    task.record = {1: "a", "1": "b"}  # type: ignore[dict-item]
    with pytest.raises(MemtokError):
        task.save(tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []
