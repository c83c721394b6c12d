"""Where `--json` and `--csv` write: standard output, FIFOs, devices, links; and what stands in them."""

from __future__ import annotations

import csv
import io
import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.cli.conftest import Run

MEMTOK = [sys.executable, "-m", "memtok"]
BACKBONE = ("--backbone", "tiny.safetensors")
PREDICT = ("predict", "pets.safetensors", *BACKBONE, "--images", "photos/class 0")


def test_a_dash_is_standard_output_and_nothing_else_is(workspace: Path, run: Run) -> None:
    found = run("inspect", "pets.safetensors", "--json", "-")
    assert found.code == 0
    assert [file["path"] for file in json.loads(found.out)["files"]] == ["pets.safetensors"]
    assert "pets" in found.err  # the table went there
    assert not Path("-").exists()

    found = run(*PREDICT, "--csv", "-", "--json", "predictions.json")
    assert found.code == 0
    rows = list(csv.DictReader(io.StringIO(found.out, newline="")))
    stored = json.loads(Path("predictions.json").read_text())
    assert [row["image"] for row in rows] == [image["path"] for image in stored["images"]]


def test_a_failed_check_still_gives_its_result(workspace: Path, run: Run) -> None:
    found = run("verify", "pets.safetensors", *BACKBONE, "--json", "-")
    assert json.loads(found.out).keys()
    found = run("inspect", "gone.safetensors", "--json", "-")
    assert (found.code, found.out) == (1, "")
    found = run(*PREDICT, "--csv", "-", "--json", "-")
    assert (found.code, found.out) == (2, "")
    assert "standard output" in found.error


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/1"])
def test_standard_output_into_a_file(original: Path, tmp_path: Path, name: str) -> None:
    """A file that the shell has opened is not cut or replaced, whatever name standard output is called by."""
    place = tmp_path / "out"
    with place.open("wb") as sink:
        sink.write(b'"before"\n')
        sink.flush()
        done = subprocess.run(
            [*MEMTOK, "inspect", "pets.safetensors", "--json", name],
            cwd=original,
            stdout=sink,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        sink.write(b'"after"\n')
    before, result = place.read_text().split("\n", 1)
    assert before == '"before"'
    value, end = json.JSONDecoder().raw_decode(result)
    assert value.keys() == {"files"}
    assert result[end:].strip() == '"after"'


def test_results_go_into_a_fifo_and_a_device(workspace: Path, run: Run) -> None:
    os.mkfifo("fifo")
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append(Path("fifo").read_text()), daemon=True)
    reader.start()
    assert run("inspect", "pets.safetensors", "--json", "fifo").code == 0
    reader.join()
    assert json.loads(got[0]).keys() == {"files"}
    assert stat.S_ISFIFO(os.stat("fifo").st_mode)
    try:
        os.mknod("null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        Path("null").write_bytes(b"")
    except OSError:
        pytest.skip("devices cannot be made here")
    assert run(*PREDICT, "--json", "null", "--csv", "null").code == 0  # both may go there
    assert stat.S_ISCHR(os.stat("null").st_mode)


def test_results_go_through_a_link(workspace: Path, run: Run) -> None:
    Path("elsewhere").mkdir()
    Path("link.json").symlink_to(Path("elsewhere", "result.json"))
    for _ in range(2):
        assert run("inspect", "pets.safetensors", "--json", "link.json").code == 0
        assert Path("link.json").is_symlink()
        assert json.loads(Path("elsewhere/result.json").read_text()).keys() == {"files"}
    Path("task.safetensors").symlink_to(Path("elsewhere", "task.safetensors"))
    words = ("--data", "folder:photos", "--steps", "2", "--batch-size", "4", "--device", "cpu", "--memory", "1")
    assert run("train", *BACKBONE, *words, "--out", "task.safetensors").code == 0
    assert Path("task.safetensors").is_symlink()
    assert Path("elsewhere/task.safetensors").is_file()


def test_a_task_file_in_the_place_of_a_fifo_is_refused(workspace: Path, run: Run) -> None:
    os.mkfifo("task.safetensors")
    found = run("train", *BACKBONE, "--data", "folder:photos", "--steps", "1", "--out", "task.safetensors")
    assert found.code == 2
    assert "expected a regular file" in found.error
    assert stat.S_ISFIFO(os.stat("task.safetensors").st_mode)
    assert not Path("task.run").exists()
