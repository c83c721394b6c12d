"""Tasks that come and go while a server runs: checked, stored, and never seen by a request in flight."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import memtok
from memtok.serving.models import Answers, Pixels
from memtok.serving.task_folder import TaskFolder, joined
from memtok.serving.torch_model import TorchModel
from tests.serving.attack_tools import error_of
from tests.serving.conftest import Client, Serve, png, task_bytes
from tests.serving.test_v1 import library, same
from tests.tiny import tiny_backbone, tiny_task


def names(client: Client) -> list[str]:
    """The served tasks."""
    return [task["name"] for task in client.get("/v1/tasks").json()["tasks"]]


def answer(client: Client, seed: int = 1) -> dict[str, Any]:
    """The answers of all tasks to an image."""
    found: dict[str, Any] = client.post("/v1/predict", content=png(seed)).json()["images"][0]["tasks"]
    return found


def restarted(backbone: memtok.Backbone, given: memtok.MemoryViT, store: Path) -> memtok.MemoryViT:
    """The model that a server has after a restart."""
    return memtok.MemoryViT(backbone, joined(given.tasks, TaskFolder(store).read(), backbone))


def test_add_replace_remove(serve: Serve, model: memtok.MemoryViT, tmp_path: Path) -> None:
    backbone = model.backbone
    store = tmp_path / "store"
    client = serve(model, store=store)
    before = answer(client)
    new = tiny_task(backbone, "anything", memory=3, seed=9)
    added = client.put("/v1/tasks/birds", content=task_bytes(new, tmp_path))
    assert added.status_code == 201
    assert added.json()["stored"] is True
    assert added.json()["fingerprint"] == new.fingerprint  # the name is not part of the content
    assert names(client) == ["pets", "digits", "breeds", "birds"]
    after = answer(client)
    same({name: after[name] for name in before}, before)
    new.name = "birds"
    grown = model.add(new)
    same(after, library(grown, png(1)))

    other = tiny_task(backbone, "digits", regime="head", classes=2, seed=10)
    replaced = client.put("/v1/tasks/digits", content=task_bytes(other, tmp_path))
    assert replaced.status_code == 200
    assert names(client) == ["pets", "digits", "breeds", "birds"]
    same(
        answer(client)["digits"] and {"digits": answer(client)["digits"]},
        library(memtok.MemoryViT(backbone, [other]), png(1)),
    )

    again = serve(restarted(backbone, model, store), store=store)
    assert sorted(names(again)) == ["birds", "breeds", "digits", "pets"]
    here, there = answer(client), answer(again)
    same({name: there[name] for name in here}, here)

    assert client.delete("/v1/tasks/birds").status_code == 204
    assert client.delete("/v1/tasks/birds").status_code == 404
    assert client.delete("/v1/tasks/digits").status_code == 204
    assert names(client) == ["pets", "breeds"]
    # What was given when the server started is there again, in its first form.
    last = restarted(backbone, model, store)
    assert sorted(last.names) == ["breeds", "digits", "pets"]
    assert dict(zip(last.names, last.tasks, strict=True))["digits"].fingerprint == model.tasks[1].fingerprint


def test_an_uploaded_extension(serve: Serve, model: memtok.MemoryViT, tmp_path: Path) -> None:
    store = tmp_path / "store"
    client = serve(model, store=store)
    pets = model.tasks[0]
    new = tiny_task(model.backbone, "poodles", memory=1, extends=[pets], seed=9)
    assert client.put("/v1/tasks/poodles", content=task_bytes(new, tmp_path)).json()["extends"] == ["pets"]
    same(answer(client), library(model.add(new), png(1)))
    error_of(client.delete("/v1/tasks/pets"), 409)
    error_of(client.put("/v1/tasks/pets", content=task_bytes(tiny_task(model.backbone, "x"), tmp_path)), 409)
    assert "poodles" in restarted(model.backbone, model, store).names
    alone = memtok.MemoryViT(model.backbone)
    assert restarted(model.backbone, alone, store).names == ()  # what it extends is missing: left out, and named
    assert list(store.iterdir()) != []
    foreign = tiny_task(model.backbone, "foreign", extends=[tiny_task(model.backbone, "unknown", seed=77)])
    error_of(client.put("/v1/tasks/foreign", content=task_bytes(foreign, tmp_path)), 422)


def test_what_is_refused_leaves_everything(serve: Serve, model: memtok.MemoryViT, tmp_path: Path) -> None:
    store = tmp_path / "store"
    client = serve(model, store=store)
    before = client.get("/v1/tasks").json()
    good = task_bytes(tiny_task(model.backbone, "new", seed=4), tmp_path)
    stranger = task_bytes(tiny_task(tiny_backbone(5), "new"), tmp_path)
    two = [tiny_task(model.backbone, "one"), tiny_task(model.backbone, "two", seed=8)]
    memtok.save_tasks(two, tmp_path / "two.safetensors")
    alone = task_bytes(tiny_task(model.backbone, "alone", regime="memory-shared"), tmp_path)
    resized = memtok.load_backbone(model.backbone.vit, image_size=64)
    for content in (
        b"",
        b"anything",
        good[:-10],
        stranger,
        (tmp_path / "two.safetensors").read_bytes(),
        alone,
        task_bytes(tiny_task(resized, "new"), tmp_path),
    ):
        line = error_of(client.put("/v1/tasks/new", content=content), 422)
        assert str(tmp_path) not in line
        assert "/tmp" not in line
    for name in (
        "base",
        ".hidden",
        "a" * 101,
        "ü" * 101,
        "a\\b",
        "a:b",
        " a",
        "a%09b",
        "..%2Fa",
        "a%2Fb",
        "%2Fetc%2Fpasswd",
    ):
        error_of(client.put(f"/v1/tasks/{name}", content=good), 422)
    error_of(client.put("/v1/tasks/a%0Ab", content=good), 404)  # no name has a line end
    assert client.get("/v1/tasks").json() == before
    assert list(store.iterdir()) == []


def test_without_a_folder_it_is_not_stored(serve: Serve, model: memtok.MemoryViT, tmp_path: Path) -> None:
    client = serve(model)
    added = client.put("/v1/tasks/new", content=task_bytes(tiny_task(model.backbone, "new", seed=4), tmp_path))
    assert added.status_code == 201
    assert added.json()["stored"] is False


def test_there_may_be_no_more_tasks(serve: Serve, model: memtok.MemoryViT, tmp_path: Path) -> None:
    client = serve(model, limits={"max_tasks": 3})
    content = task_bytes(tiny_task(model.backbone, "new", seed=4), tmp_path)
    error_of(client.put("/v1/tasks/new", content=content), 409)
    assert client.put("/v1/tasks/digits", content=content).status_code == 200


def test_the_first_task_of_an_empty_server(serve: Serve, backbone: memtok.Backbone, tmp_path: Path) -> None:
    client = serve(memtok.MemoryViT(backbone))
    task = tiny_task(backbone, "first")
    assert client.put("/v1/tasks/first", content=task_bytes(task, tmp_path)).status_code == 201
    same(answer(client), library(memtok.MemoryViT(backbone, [task]), png(1)))
    assert client.delete("/v1/tasks/first").status_code == 204
    assert names(client) == []


def test_a_damaged_file_in_the_folder_is_left_out(model: memtok.MemoryViT, tmp_path: Path) -> None:
    folder = TaskFolder(tmp_path)
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    (tmp_path / "other.txt").write_text("not a task")
    tiny_task(model.backbone, "good").save(tmp_path / "any name.safetensors")
    assert [stored.name for stored in folder.read()] == ["good"]
    folder.remove("good")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.safetensors", "other.txt"]


def test_a_request_in_flight_is_answered_by_the_tasks_that_it_came_to(
    serve: Serve, model: memtok.MemoryViT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds while its task is replaced, and while it is removed."""
    gate, begun, real = threading.Event(), threading.Event(), TorchModel.answer

    def slow(self: TorchModel, pixels: Pixels, asked: Any, **more: Any) -> Answers:
        if threading.current_thread().name.startswith("memtok-model"):
            begun.set()
            assert gate.wait(60)
        return real(self, pixels, asked, **more)

    client = serve(model)
    expected = library(model, png(3))
    monkeypatch.setattr(TorchModel, "answer", slow)
    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(client.post, "/v1/predict", content=png(3)) for _ in range(3)]
        assert begun.wait(60)
        content = task_bytes(tiny_task(model.backbone, "digits", regime="head", classes=2, seed=10), tmp_path)
        assert client.put("/v1/tasks/digits", content=content).status_code == 200
        assert client.delete("/v1/tasks/breeds").status_code == 204
        assert names(client) == ["pets", "digits"]
        gate.set()
        for job in jobs[:1]:
            same(job.result().json()["images"][0]["tasks"], expected)
        assert [job.result().status_code for job in jobs] == [200] * 3
    assert list(answer(client)) == ["pets", "digits"]


def test_a_selected_model_answers_alike(model: memtok.MemoryViT) -> None:
    """A batch that asks for few of many tasks runs those alone: equal but for rounding."""
    served = TorchModel(model)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
    everything = served.answer(pixels, list(model.names))
    for name in model.names:
        part = served.answer(pixels, [name])
        assert list(part.probabilities) == [name]
        np.testing.assert_allclose(part.probabilities[name], everything.probabilities[name], atol=1e-6)
