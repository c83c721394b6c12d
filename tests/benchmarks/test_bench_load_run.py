"""A whole load test with the small backbone: real servers, about a second of load each; nothing depends on a clock."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from memtok_benchmarks.load import __main__ as load_command
from memtok_benchmarks.load import material, rates, steady
from memtok_benchmarks.load.own_pass import own_pass
from memtok_benchmarks.load.report import POINT_COLUMNS
from memtok_benchmarks.load.servers import NoServerError, serving
from memtok_benchmarks.load.settings import Settings

TASKS, OTHERS = 3, 4
WORDS = [
    "--backbone", "small", "--tasks", str(TASKS), "--classes", str(OTHERS), "--cells", "1", "--seconds", "1",
    "--servers", "memtok", "models", "--rates", "0.5", "1.3", "--steady-tasks", str(TASKS), "--images", "5",
    "--side", "40", "--changes-seconds", "2", "--changes-share", "0.5", "--soak-seconds", "1", "--passes", "2",
]  # fmt: skip

pytestmark = pytest.mark.slow


class OneSecond:
    """An own pass of one second: the offered load is 16 images per second, however fast the machine is."""

    def seconds(self, images: int, names: object, passes: int) -> list[float]:
        return [1.0] * passes


@contextmanager
def one_second(made: material.Material, count: int) -> Iterator[OneSecond]:
    yield OneSecond()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of all parts wrote."""
    out = tmp_path_factory.mktemp("load")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rates, "own_pass", one_second)
        patch.setattr(steady, "own_pass", one_second)
        patch.setattr("memtok_benchmarks.machine.MATRIX", {"cpu": 64})
        assert load_command.main([*WORDS, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "load.json").read_text(encoding="utf-8"))
    return value


def test_every_request_is_answered(found: dict[str, Any]) -> None:
    runs = {(run["server"], run["question"]): run for run in found["runs"]}
    assert set(runs) == {("memtok", "all"), ("memtok", "one"), ("models", "one")}
    for run in runs.values():
        assert [point["share"] for point in run["points"]] == [0.5, 1.3]
        assert run["own_pass"] == [1.0] * 4
        for point, sent in zip(run["points"], (8, 21), strict=True):
            figures = point["figures"]
            assert 0 < figures["requests"] <= sent  # without those of the warm-up
            assert figures["answered"] == figures["requests"]
            assert figures["failed"] == figures["refused"] == figures["timed_out"] == 0
            assert 0 < figures["p50"] <= figures["p95"] <= figures["p99"] <= figures["most"]
            assert figures["late"] >= 0
            assert point["client"] >= 0
            assert point["work"]["cores"] > 0


def test_the_servers_own_metrics_are_read(found: dict[str, Any]) -> None:
    work = {run["server"]: run["points"][1]["work"] for run in found["runs"]}
    assert 1 <= work["memtok"]["batch"] <= 16
    assert work["memtok"]["busy"] > 0
    assert work["models"]["batch"] is work["models"]["busy"] is None


def test_tasks_come_and_go_and_no_answer_changes(found: dict[str, Any]) -> None:
    changes, soak = found["steady"]
    assert [changes["part"], soak["part"]] == ["changes", "soak"]
    for one, sent in ((changes, 16), (soak, 8)):
        assert one["figures"]["answered"] == one["figures"]["requests"] > 0
        assert one["answers"]["asked"] == sent
        assert one["answers"]["failed"] == one["answers"]["missing"] == one["answers"]["changed"] == 0
        assert one["answers"]["compared"] == sent // 2 * (TASKS + 1)  # all tasks and one task in turns
        assert 0 <= one["answers"]["largest"] <= steady.TOLERANCE
        assert all(size > 1_000_000 for size in one["memory"]["samples"])
        assert one["memory"]["first"] > 1_000_000
    done = changes["changes"]
    assert done["failed"] == 0
    assert done["added"] > 0
    assert done["added"] + done["replaced"] + done["removed"] == len(done["seconds"])
    assert soak["changes"]["seconds"] == []


def test_what_is_written(folder: Path, found: dict[str, Any]) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["load.csv", "load.json", "load.md", "load.png"]
    assert (folder / "load.png").read_bytes().startswith(b"\x89PNG")
    with (folder / "load.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == POINT_COLUMNS
    assert len(rows) == 6
    assert all(float(row["p50_s"]) <= float(row["p99_s"]) <= float(row["max_s"]) for row in rows)
    text = (folder / "load.md").read_text(encoding="utf-8")
    assert len([line for line in text.splitlines() if line.startswith("| answers per second at most")]) == 2
    assert "| failed requests in 1 s at 0.5 of the own pass, of 8 | 0 |" in text
    assert "K separate models" in text
    assert found["settings"]["backbone"] == "small"
    assert all(str(folder) not in text for text in (text, json.dumps(found)))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> material.Material:
    settings = Settings(backbone="small", tasks=(2,), steady_tasks=2, images=1, side=40, cells=1)
    return material.make(settings, tmp_path_factory.mktemp("material"))


def test_the_own_pass_is_timed_in_a_process_of_its_own(made: material.Material) -> None:
    with own_pass(made, 2) as own:
        for names in (None, ["task-1"]):
            seconds = own.seconds(3, names, passes=4)
            assert len(seconds) == 4
            assert min(seconds) > 0


def test_a_server_that_does_not_start_says_why(made: material.Material) -> None:
    with pytest.raises(NoServerError, match=r"does not start: .*tasks-9\.safetensors"), serving(made, "memtok", 9):
        pass
