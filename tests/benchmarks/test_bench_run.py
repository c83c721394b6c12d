"""A whole run with a tiny model: what is reported, written and printed, and which arguments are refused."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from memtok.cli import main
from memtok.errors import MemtokError
from memtok_benchmarks import machine, memory, peers, runner, sizes
from memtok_benchmarks.lines import Entry, Line
from memtok_benchmarks.report import Report, cells
from memtok_benchmarks.rows import ROWS
from memtok_benchmarks.sizes import Sizes, quick_sizes

QUICK = quick_sizes(threads=1)
MEASURED = ("training", "inference", "sweep", "files", "many")


@pytest.fixture(scope="module")
def report() -> Report:
    """A run of most rows, without the packages of others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peers, "installed", lambda name: False)
        return runner.run(MEASURED, QUICK)


def timings(value: Any) -> list[dict[str, Any]]:
    """Every timing in a JSON value, at any depth."""
    if isinstance(value, dict):
        return [value] if "seconds" in value and "median" in value else timings(list(value.values()))
    return [timing for one in value for timing in timings(one)] if isinstance(value, list) else []


def test_rows_have_the_names_that_the_command_offers() -> None:
    assert tuple(ROWS) == sizes.ROWS


def test_every_line_has_a_number_and_every_time_five_rounds(report: Report) -> None:
    value = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert [row["row"] for row in value["rows"]] == list(MEASURED)
    lines = [line for row in value["rows"] for line in row["lines"]]
    assert len(lines) == 1 + 2 + 1 + 1 + 7
    assert all(math.isfinite(line["memtok"]["value"]) and line["memtok"]["value"] > 0 for line in lines)
    found = timings(value["rows"])
    assert len(found) == 6 + 2 * 3 + 1 + 4 + 7  # own contenders of the four rows; separate models in one
    assert all(len(timing["seconds"]) == 5 and timing["minimum"] <= timing["median"] for timing in found)
    assert value["format_version"] == 1
    assert value["sizes"]["batch"] == QUICK.batch


def test_ratios_are_those_of_the_times_beside_them(report: Report) -> None:
    value = report.to_json()
    training, inference, sweep = (row for row in value["rows"][:3])
    medians = {name: timing["median"] for name, timing in training["data"]["timings"].items()}
    assert training["lines"][0]["memtok"]["value"] == pytest.approx(medians["memtok"] / medians["trunk"])
    last = inference["data"]["3"]
    medians = {name: timing["median"] for name, timing in last["timings"].items()}
    over_floor = medians["memtok"] / medians["trunk"] / (20 / 17)  # 17 tokens, 3 tasks
    assert inference["lines"][1]["memtok"]["value"] == pytest.approx(over_floor)
    medians = {name: timing["median"] for name, timing in sweep["data"]["timings"].items()}
    assert sweep["lines"][0]["memtok"]["value"] == pytest.approx(medians["memtok"] / (3 * medians["reproduction"]))


def test_peers_that_make_a_pass_per_task_are_measured_once_and_multiplied(report: Report) -> None:
    inference = report.to_json()["rows"][1]
    first, second = ({peer["label"]: peer for peer in line["peers"]} for line in inference["lines"])
    assert first["separate models"]["note"] == ""
    assert second["separate models"]["note"] == "2 measured, times 1.5"
    expected = first["separate models"]["value"] * 1.5 * (19 / 17) / (20 / 17)
    assert second["separate models"]["value"] == pytest.approx(expected)
    assert first["PEFT LoRA r=8"] == {
        "label": "PEFT LoRA r=8",
        "value": None,
        "note": "not installed: peft, transformers",
    }


def test_no_name_of_host_user_or_folder_is_told(report: Report) -> None:
    import getpass
    import platform

    text = json.dumps(report.to_json()["machine"])
    assert not any(name in text for name in (platform.node(), str(Path.home()), f'"{getpass.getuser()}"'))
    assert {"processor", "cores", "threads", "memory_gb", "torch", "timm", "peers", "blas", "matrix_gflops"} <= set(
        report.machine
    )
    assert machine.processor()


def test_markdown_has_a_table_row_per_line(report: Report) -> None:
    text = report.to_markdown()
    assert "| what | memtok | peers | must | aim | reached |" in text
    for line in report.lines():
        assert f"| {' | '.join(cells(line))} |" in text
    assert "not installed" in text


@pytest.mark.parametrize(
    ("value", "must", "aim", "least", "reached"),
    [
        (1.0, 1.15, 1.05, False, "aim"),
        (1.1, 1.15, 1.05, False, "must"),
        (1.2, 1.15, 1.05, False, "no"),
        (0.3, 0.36, None, False, "must"),
        (0.9, 0.85, None, True, "must"),
        (0.8, 0.85, None, True, "no"),
        (1.0, None, None, False, ""),
        (None, 1.15, 1.05, False, ""),
    ],
)
def test_reached(value: float | None, must: float | None, aim: float | None, least: bool, reached: str) -> None:
    line = Line(what="x", memtok=Entry(label="memtok", value=value), must=must, aim=aim, least=least)
    assert line.reached == reached


def test_bounds_below_one_are_shown_as_shares() -> None:
    line = Line(what="sweep", memtok=Entry(label="memtok", value=0.05), must=1 / 15, aim=1 / 22, digits=3)
    assert cells(line) == ("sweep", "0.050", "-", "≤ 1 / 15", "≤ 1 / 22", "must")


def test_a_run_leaves_torch_as_it_was(report: Report) -> None:
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    runner.run(["files"], QUICK)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads


@pytest.mark.slow
def test_growth_and_throughput_have_tables_and_a_picture(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peers, "installed", lambda name: False)
        report = runner.run(["throughput", "growth"], QUICK)
    written = report.save(tmp_path)
    assert [path.name for path in written] == ["results.json", "results.md", "growth.png"]
    assert written[2].read_bytes().startswith(b"\x89PNG")
    points = json.loads(written[0].read_text(encoding="utf-8"))["rows"][1]["data"]["points"]
    assert [(point["axis"], point["value"]) for point in points][:4] == [
        ("tasks", 1), ("tasks", 3), ("cells", 0), ("cells", 2),
    ]  # fmt: skip
    assert "## Growth with depth" in written[1].read_text(encoding="utf-8")


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own() -> None:
    """A backbone of some megabytes shows, and so does the copy that training everything needs."""
    larger = quick_sizes(threads=1, model="vit_tiny_patch16_224", batch=1)
    trunk, reproduction = memory.measure("trunk", larger), memory.measure("reproduction", larger)
    weights = 5_717_416 * 4
    assert trunk.tensors > weights
    assert reproduction.tensors > trunk.tensors + 2 * 5_000_000 * 4  # the copy and its gradients
    assert trunk.process is not None
    assert 0.8 * weights < trunk.process < 12 * weights
    assert reproduction.bytes > trunk.bytes


def test_a_process_that_fails_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(MemtokError, match="trunk"):
        memory.measure("trunk", QUICK)


def test_command_writes_json_and_prints_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, also = tmp_path / "results", tmp_path / "bench.json"
    words = ["bench", "--quick", "--threads", "1", "--rows", "files", "many", "--out", str(out), "--json", str(also)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "task file, 1 cell, 4 classes, MB" in printed
    assert "selecting 1 of 6 tasks" in printed
    value = json.loads(also.read_text(encoding="utf-8"))
    assert value == json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert str(tmp_path) not in also.read_text(encoding="utf-8") + (out / "results.md").read_text(encoding="utf-8")


def test_command_shows_where_the_time_goes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--quick", "--threads", "1", "--profile", "training"]) == 0
    assert "aten::" in capsys.readouterr().out  # which operators come first follows from the clock


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--rows", "speed"], 2, "expected --rows as one of training, memory, inference"),
        (["--rows", "files", "files"], 2, "expected each row once, found files, files"),
        (["--rounds", "4"], 2, "expected --rounds as a whole number of 5 or more, found '4'"),
        (["--batch-size", "0"], 2, "expected --batch-size as a whole number of 1 or more"),
        (["--profile", "training", "--rows", "files"], 2, "expected --profile alone"),
        (["--profile", "files", "--quick"], 1, "expected a row with a step to profile"),
        (["--rows", "files", "--model", "resnet18"], 1, "expected a timm VisionTransformer, found ResNet"),
        (["--device", "tpu", "--rows", "files"], 2, "expected --device as one of auto, cpu, cuda"),
    ],
)
def test_wrong_arguments(words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words]) == code
    error = capsys.readouterr().err.strip().splitlines()
    assert message in error[-1]
    assert error[-1].startswith("memtok bench: error: ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_an_error() -> None:
    with pytest.raises(MemtokError) as error:
        runner.run(["files"], Sizes(device="cuda"))
    assert error.value.argument == "device"
    with pytest.raises(MemtokError, match="speed") as error:
        runner.run(["speed"], QUICK)
    assert error.value.argument == "rows"
