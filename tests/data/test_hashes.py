"""Hashes of files: read once, and again when size or times of a file are others."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from memtok.data import file_cache, hashes
from memtok.data.hashes import MISSING, file_hashes
from tests.clocks import with_the_old_time

NAMES = ["a", "b", "c"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "files").mkdir()
    for name in NAMES:
        (tmp_path / "files" / name).write_bytes(name.encode() * 100)
    return tmp_path / "files"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read."""
    found: list[str] = []
    original = hashes.hash_of

    def hash_of(path: Path) -> str:
        found.append(path.name)
        return original(path)

    monkeypatch.setattr(hashes, "hash_of", hash_of)
    monkeypatch.setattr(file_cache, "FRESH_SECONDS", -60.0)  # as if the files were old
    return found


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.mark.twice
def test_only_what_changed_is_read_again(folder: Path, tmp_path: Path, read: list[str]) -> None:
    memory = tmp_path / "memory" / "hashes.json"
    expected = [sha256(name.encode() * 100) for name in NAMES]
    assert file_hashes(folder, NAMES, memory) == expected
    assert sorted(read) == NAMES
    read.clear()
    assert file_hashes(folder, NAMES[:1], memory) == expected[:1]
    assert file_hashes(folder, NAMES[::-1], memory) == expected[::-1]
    assert read == []
    status = (folder / "b").stat()
    (folder / "b").write_bytes(b"x" * 100)
    with_the_old_time(folder / "b", status)
    assert file_hashes(folder, NAMES, memory) == [expected[0], sha256(b"x" * 100), expected[2]]
    assert read == ["b"]


def test_files_that_are_new_may_change_unseen_and_are_read_again(
    folder: Path, tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_cache, "FRESH_SECONDS", 3600.0)
    for _ in range(2):
        file_hashes(folder, NAMES, tmp_path / "hashes.json")
    assert sorted(read) == sorted(2 * NAMES)


def test_a_damaged_memory_is_done_without(folder: Path, tmp_path: Path, read: list[str]) -> None:
    memory = tmp_path / "hashes.json"
    expected = file_hashes(folder, NAMES, memory)
    memory.write_text(memory.read_text().replace(expected[1], expected[0]))
    assert file_hashes(folder, NAMES, memory) == expected


@pytest.mark.parametrize("content", ["", "[]", '{"version": 1, "files": {"a": [1]}}', '{"version": 9, "files": {}}'])
def test_a_memory_that_is_none_is_done_without(folder: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "hashes.json").write_text(content)
    expected = [sha256(name.encode() * 100) for name in NAMES]
    assert file_hashes(folder, NAMES, tmp_path / "hashes.json") == expected
    assert file_hashes(folder, NAMES, tmp_path / "files" / "a" / "no folder") == expected
    assert file_hashes(folder, NAMES, None) == expected


def test_what_is_no_file_is_not_read(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    assert file_hashes(folder, ["a", "pipe", "gone"], None)[1:] == [MISSING, MISSING]
