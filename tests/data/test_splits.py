"""Splits are stratified, follow from the seed alone, hold once written, and have a digest that says so."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memtok.data.splits import (
    SPLIT_FILE,
    check_fraction,
    check_seed,
    digest,
    draw_validation,
    shuffled,
    stratified_order,
    validation_count,
    written_split,
)
from memtok.errors import MemtokError

class_sizes = st.lists(st.integers(1, 40), min_size=1, max_size=6)
fractions = st.floats(0.01, 0.99)
seeds = st.integers(0, 2**70)

# What the first version drew. These never change: what one version trained on, the next must not validate on.
DRAWN = ["0/3.png", "0/4.png", "1/1.png", "1/2.png"]
SHUFFLED = [0, 6, 2, 1, 3, 7, 4, 5]
DIGEST = "sha256:2bf85e6ca35287242d123b0416029f1977042fab83b737bc25a8fc3fcad13e8d"


def named(sizes: list[int]) -> dict[str, int]:
    return {f"{label}/{number}.png": label for label, size in enumerate(sizes) for number in range(size)}


def draw(files: dict[str, int], fraction: float, seed: int, assigned: dict[str, str] | None = None) -> set[str]:
    return draw_validation(list(files), list(files.values()), fraction=fraction, seed=seed, assigned=assigned)


@given(class_sizes, fractions, seeds)
def test_every_class_is_in_both_parts_in_proportion(sizes: list[int], fraction: float, seed: int) -> None:
    files = named(sizes)
    counts = Counter(files[name] for name in draw(files, fraction, seed))
    for label, size in enumerate(sizes):
        held_out = counts[label]
        assert held_out == validation_count(size, fraction)
        if size == 1:
            assert held_out == 0
        else:
            assert 1 <= held_out <= size - 1
            assert abs(held_out - size * fraction) <= 1


@given(class_sizes, fractions, seeds, st.randoms())
def test_the_draw_does_not_depend_on_the_order_of_the_files(
    sizes: list[int], fraction: float, seed: int, order: random.Random
) -> None:
    files = named(sizes)
    mixed = list(files.items())
    order.shuffle(mixed)
    assert draw(dict(mixed), fraction, seed) == draw(files, fraction, seed)


@pytest.mark.twice
def test_the_draw_follows_from_the_seed_and_from_no_global_generator() -> None:
    files = named([50, 50])
    drawn = []
    for global_seed in (1, 2):
        random.seed(global_seed)
        np.random.seed(global_seed)
        torch.manual_seed(global_seed)
        drawn.append((draw(files, 0.2, 0), tuple(shuffled(20, 5)), random.random(), np.random.rand()))
    assert drawn[0][:2] == drawn[1][:2]
    random.seed(1)
    np.random.seed(1)
    assert drawn[0][2:] == (random.random(), np.random.rand())  # nor were they moved
    assert draw(files, 0.2, 1) != draw(files, 0.2, 0)


def test_the_draw_and_the_order_stay_what_they_are() -> None:
    assert sorted(draw(named([6, 6]), 0.34, 7)) == DRAWN
    assert shuffled(8, 3, 1).tolist() == SHUFFLED


@given(class_sizes, class_sizes, fractions, seeds)
def test_what_was_assigned_holds_and_the_rest_fills_up(
    sizes: list[int], more: list[int], fraction: float, seed: int
) -> None:
    before = named(sizes)
    held = draw(before, fraction, seed)
    assigned = {name: "validation" if name in held else "train" for name in before}
    grown = {**before, **{f"{label}/new{n}.png": label for label, size in enumerate(more) for n in range(size)}}
    after = draw(grown, fraction, seed, assigned)
    assert after & set(before) == held
    for label in set(grown.values()):
        names = [name for name, one in grown.items() if one == label]
        kept = sum(name in after for name in names)
        if len(names) > 1:
            assert 1 <= kept < len(names)
        assert kept >= min(validation_count(len(names), fraction), 1)


@given(class_sizes, seeds, st.integers(1, 240))
def test_every_beginning_of_the_order_is_stratified(sizes: list[int], seed: int, count: int) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    order = stratified_order(labels, seed)
    assert sorted(order.tolist()) == list(range(len(labels)))
    count = min(count, len(labels))
    taken = Counter(labels[order[:count]].tolist())
    if count >= len(sizes):
        assert len(taken) == len(sizes)
    if len(set(sizes)) == 1:  # classes of one size differ by one image at most
        assert max(taken.values()) - min(taken[label] for label in range(len(sizes))) <= 1
    # Webster: nobody has a second seat that another class had a better claim to.
    claims = [(taken[label] + 0.5) / size for label, size in enumerate(sizes)]
    assert all(
        (taken[label] - 0.5) / size <= min(claims) + 1e-9 for label, size in enumerate(sizes) if taken[label] > 1
    )


@given(st.integers(0, 200), seeds, seeds)
def test_shuffled_is_a_permutation(count: int, first: int, second: int) -> None:
    order = shuffled(count, first, second)
    assert sorted(order.tolist()) == list(range(count))
    assert np.array_equal(order, shuffled(count, first, second))


def test_the_digest_is_over_parts_and_names_in_any_order() -> None:
    first = digest({"train": ["a", "b"], "test": ["c"]})
    assert first == digest({"test": ["c"], "train": ["b", "a"]})
    assert first == DIGEST
    assert len({first, digest({"train": ["a"], "test": ["b", "c"]}), digest({"train": ["a", "b"]})}) == 3


@pytest.mark.parametrize("seed", [-1, 1.5, True, "1"])
def test_bad_seeds(seed: object) -> None:
    with pytest.raises(MemtokError) as error:
        check_seed(seed)  # type: ignore[arg-type]
    assert error.value.argument == "seed"


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_bad_fractions(fraction: float) -> None:
    with pytest.raises(MemtokError) as error:
        check_fraction(fraction)
    assert error.value.argument == "validation_fraction"


def split(
    root: Path,
    files: dict[str, int],
    *,
    seed: int | None = None,
    fraction: float | None = None,
    listed: list[str] | None = None,
) -> dict[str, str]:
    root.mkdir(exist_ok=True)
    found = written_split(
        root,
        root.parent / "cache",
        files,
        listed=files if listed is None else listed,
        seed=seed,
        fraction=fraction,
        default_fraction=0.25,
    )
    assert set(found.parts) == set(files)
    return dict(found.parts)


@pytest.mark.twice
def test_a_split_is_written_and_used_again(tmp_path: Path) -> None:
    files = named([8, 8])
    first = split(tmp_path / "root", files, seed=3)
    content = json.loads((tmp_path / "root" / SPLIT_FILE).read_text())
    assert (content["seed"], content["fraction"]) == (3, 0.25)
    assert len(content["validation"]) == 4
    os.utime(tmp_path / "root" / SPLIT_FILE, (1, 1))  # long ago, for two writes may fall into one tick of the clock
    assert split(tmp_path / "root", files) == first  # seed 3, not the default 0
    assert split(tmp_path / "root", files, seed=3, fraction=0.25) == first
    assert (tmp_path / "root" / SPLIT_FILE).stat().st_mtime == 1  # nothing new, nothing written
    assert not (tmp_path / "cache").exists()


def test_what_is_written_holds_against_the_draw(tmp_path: Path) -> None:
    files = named([4, 4])
    first = split(tmp_path / "root", files)
    path = tmp_path / "root" / SPLIT_FILE
    content = json.loads(path.read_text())
    content["train"], content["validation"] = content["validation"], content["train"]
    path.write_text(json.dumps(content))
    assert split(tmp_path / "root", files) == {
        name: "train" if part == "validation" else "validation" for name, part in first.items()
    }


def test_new_files_join_and_removed_ones_go(tmp_path: Path) -> None:
    first = split(tmp_path / "root", named([8, 8]))
    grown = {**named([8, 8]), **{f"0/new{number}.png": 0 for number in range(8)}}
    second = split(tmp_path / "root", grown)
    assert {name: second[name] for name in first} == first
    assert Counter(part for name, part in second.items() if grown[name] == 0) == {"train": 12, "validation": 4}
    third = split(tmp_path / "root", named([8, 4]))
    assert third == {name: first[name] for name in named([8, 4])}
    content = json.loads((tmp_path / "root" / SPLIT_FILE).read_text())
    assert sorted(content["train"] + content["validation"]) == sorted(named([8, 4]))


def test_a_file_that_is_unreadable_today_keeps_its_part(tmp_path: Path) -> None:
    files = named([8, 8])
    first = split(tmp_path / "root", files)
    name = next(name for name, part in first.items() if part == "validation")
    rest = {other: label for other, label in files.items() if other != name}
    assert split(tmp_path / "root", rest, listed=list(files)) == {other: first[other] for other in rest}
    assert split(tmp_path / "root", files) == first


@pytest.mark.parametrize(("seed", "fraction", "argument"), [(1, None, "seed"), (None, 0.5, "validation_fraction")])
def test_another_split_than_the_written_one_is_refused(
    tmp_path: Path, seed: int | None, fraction: float | None, argument: str
) -> None:
    files = named([8, 8])
    split(tmp_path / "root", files)
    with pytest.raises(MemtokError, match=SPLIT_FILE) as error:
        split(tmp_path / "root", files, seed=seed, fraction=fraction)
    assert error.value.argument == argument


def test_a_folder_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = named([8, 8])
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / SPLIT_FILE).mkdir()  # where the file should go; also stops root, who may write anywhere
    first = split(tmp_path / "root", files, seed=5)
    (written,) = (tmp_path / "cache").iterdir()
    assert json.loads(written.read_text())["seed"] == 5
    assert split(tmp_path / "root", files) == first
    assert [path.name for path in (tmp_path / "root").iterdir()] == [SPLIT_FILE]  # nothing half-written
    written.unlink()
    (tmp_path / "cache").rmdir()
    (tmp_path / "cache").write_text("in the way")
    assert split(tmp_path / "root", files, seed=5) == first
    assert "the split is not written down" in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        '{"format": "other", "version": 1}',
        '{"format": "memtok-split", "version": 2, "seed": 0, "fraction": 0.2, "train": [], "validation": []}',
        '{"format": "memtok-split", "version": 1, "seed": -1, "fraction": 0.2, "train": [], "validation": []}',
        '{"format": "memtok-split", "version": 1, "seed": 0, "fraction": 0.2, "train": ["a"], "validation": ["a"]}',
        '{"format": "memtok-split", "version": 1, "seed": 0, "fraction": 0.2, "train": [3], "validation": []}',
        '{"format": "memtok-split", "version": 1, "seed": 0, "fraction": "x", "train": [], "validation": []}',
    ],
)
def test_a_foreign_split_file_is_refused_and_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / SPLIT_FILE).write_text(content)
    with pytest.raises(MemtokError, match=SPLIT_FILE) as caught:
        split(tmp_path, named([4, 4]))
    assert "\n" not in str(caught.value)
    assert (tmp_path / SPLIT_FILE).read_text() == content


def test_names_that_are_not_utf8_survive(tmp_path: Path) -> None:
    files = {f"{label}/caf\udce9{number}.png": label for label in (0, 1) for number in range(4)}
    assert split(tmp_path / "root", files) == split(tmp_path / "root", files)
