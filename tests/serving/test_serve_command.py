"""`memtok serve`: its options, its keys, and a server that starts without any configuration."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import memtok
from memtok.cli import main
from memtok.serving import running
from tests.serving.conftest import over_a_socket, png
from tests.serving.test_v1 import library, same


@pytest.fixture
def files(model: memtok.MemoryViT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a backbone and task files, as the working folder."""
    from memtok.checkpoint import save_checkpoint
    from tests.tiny import tiny_vit

    monkeypatch.chdir(tmp_path)
    save_checkpoint(tiny_vit(), model.preprocessing, tmp_path / "tiny.safetensors")
    memtok.save_tasks(list(model.tasks), tmp_path / "all.safetensors")
    return tmp_path


@pytest.fixture
def stop_at_once(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The servers that were started; each stops as soon as it answers."""
    started: list[Any] = []
    real = running.run

    def run(app: Any, listening: socket.socket, announce: Any, **more: Any) -> None:
        started.append(app)
        announce()

    monkeypatch.setattr(running, "run", run)
    assert real is not run
    return started


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], 2),
        (["--port", "65536", "all.safetensors"], 2),
        (["--host", "0.0.0.0", "all.safetensors", "--backbone", "tiny.safetensors"], 2),
        (["--keys", "k.json", "--no-keys", "all.safetensors"], 2),
        (["--keys", "k.json", "all.safetensors", "--backbone", "tiny.safetensors"], 1),
        (["--new-key", "acme"], 2),
        (["--new-key", "acme", "--remove-key", "acme", "--keys", "k.json"], 2),
        (["--new-key", "acme", "--keys", "k.json"], 1),
        (["--key-admin", "all.safetensors"], 2),
        (["--remove-key", "acme", "--keys", "k.json"], 1),
        (["--onnx", "m.onnx", "all.safetensors"], 2),
        (["--onnx", "m.onnx", "--task-dir", "d"], 2),
        (["--onnx", "m.onnx"], 1),
        (["--max-queue", "3", "all.safetensors"], 2),
        (["--max-batch", "0", "all.safetensors"], 2),
        (["missing.safetensors", "--port", "0"], 1),
        (["--host", "300.1.1.1", "--no-keys", "all.safetensors"], 1),
    ],
)
def test_bad_options(
    files: Path, stop_at_once: list[Any], capsys: pytest.CaptureFixture[str], words: list[str], code: int
) -> None:
    assert main(["serve", *words]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert stop_at_once == []
    assert not (files / "k.json").exists()


def test_it_starts_without_configuration(
    files: Path, stop_at_once: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "all.safetensors", "--backbone", "tiny.safetensors", "--port", "0"]) == 0
    assert "http://127.0.0.1:" in capsys.readouterr().out
    assert len(stop_at_once) == 1
    assert list(stop_at_once[0].state.service.catalogue.model.tasks) == ["pets", "digits", "breeds"]


def test_keys_and_a_folder(files: Path, stop_at_once: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    making, quota = ["serve", "--keys", "keys.json", "--new-key"], ["--key-tasks", "7"]
    assert main([*making, "acme", "--key-sees", "pets", "--key-changes", "acme-*", "x", "--key-rate", "3", *quota]) == 0
    out, _ = capsys.readouterr()
    assert out.startswith("memtok_")
    assert len(out.splitlines()) == 1
    assert main([*making, "root", "--key-admin"]) == 0
    keys = {entry["name"]: entry for entry in json.loads((files / "keys.json").read_text())["keys"]}
    assert {name: keys["acme"][name] for name in ("see", "change", "admin", "rate", "max_tasks")} == {
        "see": ["pets"],
        "change": ["acme-*", "x"],
        "admin": False,
        "rate": 3,
        "max_tasks": 7,
    }
    started = ["serve", "--backbone", "tiny.safetensors", "--task-dir", "uploads", "--keys", "keys.json", "--port", "0"]
    assert main([*started, "--host", "0.0.0.0"]) == 0
    assert (files / "uploads").is_dir()
    assert main(["serve", "--keys", "keys.json", "--remove-key", "acme"]) == 0
    assert [entry["name"] for entry in json.loads((files / "keys.json").read_text())["keys"]] == ["root"]


@pytest.fixture
def address(model: memtok.MemoryViT) -> Iterator[str]:
    with over_a_socket(model) as address:
        yield address


def test_the_client_of_hugging_face(address: str, model: memtok.MemoryViT, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # it would refuse this machine too
    client = hub.InferenceClient(model=f"{address}/v1/tasks/digits/predict")
    expected = library(model, png(8), top=99)["digits"]
    for more in ({}, {"top_k": 3}):
        found = client.image_classification(png(8), **more)
        labels = [{"label": one.label, "score": one.score} for one in found]
        same({"digits": labels}, {"digits": expected[: more.get("top_k", 99)]})


def test_over_a_socket(address: str, model: memtok.MemoryViT) -> None:
    with httpx.Client(base_url=address) as client:
        found = client.post("/v1/predict", content=png(1)).json()["images"][0]["tasks"]
        assert found
        same(found, library(model, png(1)))


@pytest.mark.parametrize(("host", "loopback"), [("127.0.0.1", True), ("::1", True), ("localhost", True)])
def test_loopback(host: str, loopback: bool) -> None:
    assert running.is_loopback(host) is loopback
    assert not running.is_loopback("0.0.0.0")
    assert not running.is_loopback("::")
    assert not running.is_loopback("example.org")


def test_a_port_that_is_taken() -> None:
    with running.listen("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(memtok.MemtokError):
            running.listen("127.0.0.1", port)
