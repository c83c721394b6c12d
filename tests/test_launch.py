"""Variables of a launcher in the environment: complete, absent, or left over."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest
import torch

import memtok
from memtok.data import open_data
from memtok.errors import MemtokError
from memtok.launch import check_launch, is_first_process
from memtok.training import device
from tests.tiny import tiny_backbone

TORCHRUN = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"MASTER_ADDR": "host", "MASTER_PORT": "29500"},
        {"RANK": "0"},
        {"WORLD_SIZE": "1"},
        {"RANK": "0", "WORLD_SIZE": "1"},
        TORCHRUN,
        TORCHRUN | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"},
        {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "WORLD_SIZE": "2"},
    ],
)
def test_environments_that_are_right(environment: dict[str, str]) -> None:
    check_launch(environment)


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"RANK": "1"}, "RANK=1 without LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 without RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK=0 without RANK"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "RANK=0, WORLD_SIZE=2 without LOCAL_RANK"),
        ({name: value for name, value in TORCHRUN.items() if name != "MASTER_ADDR"}, "without MASTER_ADDR"),
        (TORCHRUN | {"RANK": "2"}, "RANK=2, LOCAL_RANK=1, WORLD_SIZE=2"),
        (TORCHRUN | {"RANK": "one"}, "RANK=one"),
        ({"RANK": ""}, "RANK="),
    ],
)
def test_what_is_left_over_is_named(environment: dict[str, str], named: str) -> None:
    with pytest.raises(MemtokError, match="unset RANK") as caught:
        check_launch(environment)
    assert named in str(caught.value)
    assert "torchrun" in str(caught.value)


def test_the_first_process_speaks() -> None:
    assert is_first_process({})
    assert is_first_process(TORCHRUN | {"RANK": "0"})
    assert not is_first_process(TORCHRUN)
    assert not is_first_process({"PMI_RANK": "1"})


def test_the_library_refuses_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    backbone = tiny_backbone()
    data = open_data("digits").only(["0", "1"])
    task = memtok.Task.create(backbone, name="pets", classes=data.classes, memory=1)
    with pytest.raises(MemtokError, match="WORLD_SIZE=2"):
        memtok.train(task, data, steps=1, batch_size=4, device="cpu")


class Met:
    """What accelerate says of two processes on GPUs."""

    num_processes, process_index = 2, 1
    device = torch.device("cuda", 1)

    def __init__(self, **settings: Any) -> None:
        self.settings = settings


def launched(monkeypatch: pytest.MonkeyPatch, state: Any) -> None:
    """As in the second of two processes, whose meeting is `state`."""
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(device, "PartialState", state)


def test_launched_processes_keep_their_device(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, Met)
    found = device.processes_for("auto", "float32")
    assert (found.num_processes, found.process_index, found.is_main_process) == (2, 1, False)
    assert found.device == Met.device
    with pytest.raises(MemtokError) as caught:
        device.processes_for("cpu", "float32")
    assert caught.value.argument == "device"


@pytest.mark.parametrize(("asked", "flag", "expected"), [("cpu", "", "cpu"), ("auto", "True", "cpu")])
def test_one_process_needs_no_meeting(monkeypatch: pytest.MonkeyPatch, asked: str, flag: str, expected: str) -> None:
    def meet(**settings: Any) -> None:
        raise AssertionError("expected no meeting of one process")

    monkeypatch.setattr(device, "PartialState", meet)
    monkeypatch.setenv("ACCELERATE_USE_CPU", flag)
    found = device.processes_for(asked, "bf16")
    assert (found.num_processes, found.is_main_process, found.device.type) == (1, True, expected)


def test_processes_of_mpi_meet_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    monkeypatch.setattr(device, "PartialState", Met)
    monkeypatch.setattr(Met, "device", torch.device("cpu"))
    found = device.processes_for("cpu", "float32")
    assert found.num_processes == 2
    assert isinstance(found.state, Met)
    assert found.state.settings["cpu"]


def test_waiting_for_the_others_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes meet inside `PartialState`; here it goes on when the line is there."""
    announced, records = threading.Event(), list[logging.LogRecord]()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)
            announced.set()

    def meet(**settings: Any) -> None:
        assert settings["cpu"]
        announced.wait()
        raise device.DistError("Timed out\nmore")

    handler = Handler()
    logging.getLogger("memtok").addHandler(handler)
    launched(monkeypatch, meet)
    monkeypatch.setattr(device, "PATIENCE", 0.0)
    try:
        with pytest.raises(MemtokError, match=r"2 processes .*Timed out") as caught:
            device.processes_for("cpu", "float32")
    finally:
        logging.getLogger("memtok").removeHandler(handler)
    assert "\n" not in str(caught.value)
    assert len(records) == 1
    assert "2 processes" in records[0].getMessage()
    assert "127.0.0.1:29500" in records[0].getMessage()
