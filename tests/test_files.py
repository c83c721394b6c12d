"""Where results are written: regular files are replaced whole, links stay, FIFOs and devices are written into."""

from __future__ import annotations

import csv
import io
import os
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import memtok
from memtok.errors import MemtokError
from memtok.files import atomic_write, csv_text, write_csv, write_text
from tests.tiny import tiny_backbone, tiny_task


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


def drain(path: Path, write: Callable[[], object]) -> bytes:
    """What a reader of the FIFO gets while `write` runs."""
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(path.read_bytes()), daemon=True)
    reader.start()
    write()
    reader.join()
    return got[0]


def test_a_fifo_is_written_into(fifo: Path) -> None:
    assert drain(fifo, lambda: write_text(fifo, "a\n" * 100_000)) == b"a\n" * 100_000
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    assert [path.name for path in fifo.parent.iterdir()] == ["fifo"]


def test_a_task_goes_through_a_fifo_whole(fifo: Path, tmp_path: Path) -> None:
    backbone = tiny_backbone()
    task = tiny_task(backbone)
    content = drain(fifo, lambda: task.save(fifo))
    (tmp_path / "task.safetensors").write_bytes(content)
    assert memtok.load_task(tmp_path / "task.safetensors", backbone).fingerprint == task.fingerprint


def test_a_link_to_a_fifo_is_written_through(fifo: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(fifo)
    assert drain(fifo, lambda: write_text(link, "text")) == b"text"
    assert link.is_symlink()


def test_a_character_device_is_written_into(tmp_path: Path) -> None:
    """A null device of our own, for a fault would take away the machine's."""
    device = tmp_path / "null"
    try:
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        device.write_bytes(b"")
    except OSError:
        pytest.skip("devices cannot be made here")
    write_text(device, "text")
    assert stat.S_ISCHR(device.stat().st_mode)


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target, link, dangling = tmp_path / "elsewhere" / "target", tmp_path / "link", tmp_path / "dangling"
    target.write_text("old")
    link.symlink_to(Path("elsewhere", "target"))
    dangling.symlink_to(Path("elsewhere", "new"))
    for path in (link, dangling):
        write_text(path, "new")
        assert path.is_symlink()
        assert path.resolve().read_text() == "new"
        assert not path.resolve().is_symlink()
    assert target.read_text() == "new"
    assert sorted(path.name for path in target.parent.iterdir()) == ["new", "target"]


def test_what_is_no_file_is_refused_before_the_content_is_made(tmp_path: Path) -> None:
    loop, folder, place = tmp_path / "loop", tmp_path / "folder", tmp_path / "socket"
    loop.symlink_to(loop)
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(place))
        for path in (loop, folder, place):
            with pytest.raises(MemtokError), atomic_write(path):
                raise AssertionError("not reached")
    assert loop.is_symlink()
    assert stat.S_ISSOCK(place.stat().st_mode)
    assert len(list(tmp_path.iterdir())) == 3


def test_permissions_are_those_of_the_file_or_of_the_umask(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("old")
    old.chmod(0o604)
    umask = os.umask(0o027)
    try:
        write_text(old, "content")
        write_text(new, "content")
        tiny_task(tiny_backbone()).save(tmp_path / "task")
    finally:
        os.umask(umask)
    assert stat.S_IMODE(old.stat().st_mode) == 0o604
    assert stat.S_IMODE(new.stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "task").stat().st_mode) == 0o640


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


ODD = ["plain", "carriage\rreturn", "line\nend", "both\r\n", ' "quoted", ', "", "é", os.fsdecode(b"r\xff.png")]


def test_csv_comes_back_as_it_was(tmp_path: Path) -> None:
    rows = [ODD, ODD[::-1]]
    text = csv_text(rows)
    assert list(csv.reader(io.StringIO(text, newline=""))) == rows
    write_csv(tmp_path / "a.csv", text)
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
        assert list(csv.reader(stream)) == rows
    assert b"r\xff.png" in (tmp_path / "a.csv").read_bytes()
    assert csv_text([["a", 1], ["b", 0.5]]) == "a,1\nb,0.5\n"


def test_csv_takes_half_of_a_surrogate_pair(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", "a\ud800b\n")
    assert (tmp_path / "a.csv").read_bytes() == b"a\\ud800b\n"
