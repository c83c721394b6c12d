"""/v1: answers to images in every form, of all tasks or some, as the library gives them; errors in one line."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import torch
from PIL import Image

import memtok
from tests.layers.small_models import small_model
from tests.serving.attack_tools import error_of
from tests.serving.conftest import Client, Gate, Serve, png
from tests.tiny import tiny_backbone, tiny_task


def library(model: memtok.MemoryViT, content: bytes, **more: Any) -> dict[str, list[dict[str, Any]]]:
    """What `memtok.predict` says of an image, in the server's form."""
    rows = memtok.predict(model, Image.open(io.BytesIO(content)), **more).rows
    return {row.task: [{"label": label, "score": score} for label, score in row.ranking] for row in rows}


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Equal labels in the same order, scores equal but for rounding."""
    assert list(found) == list(expected)
    for name, ranking in expected.items():
        assert [one["label"] for one in found[name]] == [one["label"] for one in ranking]
        assert [one["score"] for one in found[name]] == pytest.approx([one["score"] for one in ranking], abs=1e-5)


@pytest.fixture
def client(serve: Serve, model: memtok.MemoryViT) -> Client:
    return serve(model)


def test_no_request_waits_for_a_thread_of_the_framework(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """FastAPI runs a dependency that is a plain function in a thread: a switch of threads for every request."""

    def refuse(*_: object, **more: object) -> object:
        raise AssertionError("expected coroutines")

    monkeypatch.setattr("fastapi.dependencies.utils.run_in_threadpool", refuse)
    for path in ("/v1/predict", "/v1/tasks/pets/predict"):
        assert client.post(path, content=png(), headers={"Content-Type": "image/png"}).status_code == 200
    for path in ("/v1/tasks", "/v2/health/ready", "/v2/models/pets", "/metrics"):
        assert client.get(path).status_code == 200


def test_every_form_of_a_body_answers_as_the_library(client: Client, model: memtok.MemoryViT) -> None:
    image = png(1)
    expected = library(model, image, top=2)
    encoded = base64.b64encode(image).decode()
    for response in (
        client.post("/v1/predict?top=2", content=image, headers={"Content-Type": "image/png"}),
        client.post("/v1/predict?top=2", content=image, headers={"Content-Type": "application/octet-stream"}),
        client.post("/v1/predict?top=2", files={"photo": ("cat.png", image)}),
        client.post("/v1/predict", files={"photo": ("cat.png", image)}, data={"top": "2"}),
        client.post("/v1/predict", json={"images": [encoded], "top": 2}),
        client.post("/v1/predict", json={"images": [f"data:image/png;base64,{encoded}"], "top": 2}),
    ):
        assert response.status_code == 200, response.text
        [found] = response.json()["images"]
        same(found["tasks"], expected)


def test_several_images_each_in_its_place(client: Client, model: memtok.MemoryViT) -> None:
    images = [png(seed, format=kind) for seed, kind in enumerate(("PNG", "JPEG", "WEBP", "BMP", "GIF"))]
    response = client.post("/v1/predict?top=9", files=[("files", (f"{n}", one)) for n, one in enumerate(images)])
    found = response.json()["images"]
    assert [one["name"] for one in found] == ["0", "1", "2", "3", "4"]
    for one, content in zip(found, images, strict=True):
        same(one["tasks"], library(model, content, top=9))


@pytest.mark.parametrize("asked", [["digits"], ["breeds"], ["breeds", "digits"], ["digits", "pets", "breeds"]])
def test_a_subset_of_tasks(client: Client, model: memtok.MemoryViT, asked: list[str]) -> None:
    expected = library(model, png(2))
    for response in (
        client.post("/v1/predict", params={"tasks": asked}, content=png(2)),
        client.post("/v1/predict", json={"images": [base64.b64encode(png(2)).decode()], "tasks": asked}),
        client.post("/v1/predict", files={"image": ("a", png(2))}, data={"tasks": asked}),
    ):
        found = response.json()["images"][0]["tasks"]
        assert set(found) == set(asked)
        same(found, {name: expected[name] for name in found})


def test_base_and_embedding(client: Client, model: memtok.MemoryViT) -> None:
    found = client.post("/v1/predict?base=true&embedding=true&tasks=pets", content=png(3)).json()["images"][0]
    image = Image.open(io.BytesIO(png(3)))
    same(found["tasks"], {name: library(model, png(3), base=True)[name] for name in ("pets", "base")})
    with torch.no_grad():
        features = model(model.prepare(image)).features
    assert features is not None
    np.testing.assert_allclose(found["embedding"], features[0].numpy(), atol=1e-5)


def test_a_broken_image_harms_no_other(client: Client, model: memtok.MemoryViT) -> None:
    parts = [("f", ("good", png(1))), ("f", ("broken", png(1)[:200])), ("f", ("text", b"hello")), ("f", ("b", png(2)))]
    found = client.post("/v1/predict", files=parts).json()["images"]
    assert [sorted(one) for one in found] == [
        ["name", "tasks"],
        ["error", "name"],
        ["error", "name"],
        ["name", "tasks"],
    ]
    same(found[0]["tasks"], library(model, png(1)))
    same(found[3]["tasks"], library(model, png(2)))


def test_one_task_as_the_hub_asks(client: Client, model: memtok.MemoryViT) -> None:
    """The schema of Hugging Face's image classification."""
    expected = library(model, png(4), top=99)["digits"]
    found = client.post("/v1/tasks/digits/predict", content=png(4), headers={"Content-Type": "image/png"}).json()
    same({"digits": found}, {"digits": expected})
    encoded = base64.b64encode(png(4)).decode()
    asked = {"inputs": encoded, "parameters": {"top_k": 3}}
    same({"digits": client.post("/v1/tasks/digits/predict", json=asked).json()}, {"digits": expected[:3]})
    with torch.no_grad():
        logits = model(model.prepare(Image.open(io.BytesIO(png(4)))))["digits"][0]
    for function, values in (("none", logits), ("sigmoid", logits.sigmoid()), ("softmax", logits.softmax(0))):
        asked = {"inputs": encoded, "parameters": {"function_to_apply": function}}
        scores = {one["label"]: one["score"] for one in client.post("/v1/tasks/digits/predict", json=asked).json()}
        assert scores == pytest.approx({f"class {index}": float(value) for index, value in enumerate(values)}, abs=1e-5)


def test_attention_is_that_of_the_model(client: Client, model: memtok.MemoryViT) -> None:
    found = client.post("/v1/tasks/breeds/attention", content=png(5, (60, 40))).json()
    with torch.no_grad():
        out = model(model.prepare(Image.open(io.BytesIO(png(5, (60, 40))))), attention=True)
    weights = out.attention["breeds"].image[-1, 0].mean(dim=(0, 1))[model.backbone.prefix_tokens :].reshape(4, 4)
    np.testing.assert_allclose(found["weights"], weights.numpy(), atol=1e-6)
    # 60 x 40: the shorter side becomes 35, the longer 52, then 32 x 32 of the centre.
    assert model.preprocessing.resize == 35
    assert found["area"] == pytest.approx({"left": 2 / 35, "top": 10 / 52, "width": 32 / 35, "height": 32 / 52})
    assert found["token"] == "class token of the task"


def test_attention_of_a_task_without_class_token_is_that_of_the_backbone(
    client: Client, model: memtok.MemoryViT
) -> None:
    found = client.post("/v1/tasks/digits/attention", content=png(5)).json()
    with torch.no_grad():
        weights = model.backbone.attention(model.prepare(Image.open(io.BytesIO(png(5)))))[0].mean(dim=0)
    np.testing.assert_allclose(
        found["weights"], weights[model.backbone.prefix_tokens :].reshape(4, 4).numpy(), atol=1e-6
    )
    assert found["token"] == "class token of the backbone"


def test_attention_without_any_class_token(serve: Serve) -> None:
    backbone = memtok.load_backbone(small_model("no class token, mean"))
    tasks = [tiny_task(backbone, "own"), tiny_task(backbone, "none", regime="head", memory=0, readout=1)]
    client = serve(memtok.MemoryViT(backbone, tasks))
    assert client.post("/v1/tasks/own/attention", content=png(5)).json()["token"] == "class token of the task"
    error_of(client.post("/v1/tasks/none/attention", content=png(5)), 409)
    assert [task["attention"] for task in client.get("/v1/tasks").json()["tasks"]] == [True, False]


def test_what_is_said_of_tasks(client: Client, model: memtok.MemoryViT) -> None:
    found = client.get("/v1/tasks").json()
    assert found["backbone"]["fingerprint"] == model.backbone.fingerprint
    assert [task["name"] for task in found["tasks"]] == ["pets", "digits", "breeds"]
    assert (found["fixed"], found["keys"], found["admin"]) == (False, False, True)
    for task, expected in zip(found["tasks"], model.tasks, strict=True):
        assert task["classes"] == list(expected.classes)
        assert task["fingerprint"] == expected.fingerprint
        assert task["extends"] == [other.name for other in expected.extends]
        assert task["parameters"] == sum(value.numel() for value in expected.tensors().values())
        assert task["attention"] is True
        assert client.get(f"/v1/tasks/{task['name']}").json() == task


def test_any_name_of_a_task_can_stand_in_an_address(serve: Serve, backbone: memtok.Backbone) -> None:
    """Those of files on the command line may have a slash."""
    names = ("a/b", "predict", "x/predict", "ü ?#%", "../a")
    client = serve(memtok.MemoryViT(backbone, [tiny_task(backbone, name, seed=n) for n, name in enumerate(names)]))
    for name in names:
        part = quote(name, safe="")
        assert client.get(f"/v1/tasks/{part}").json()["name"] == name
        assert len(client.post(f"/v1/tasks/{part}/predict", content=png()).json()) == 3
        assert client.post(f"/v1/tasks/{part}/attention", content=png()).json()["task"] == name
        assert client.get(f"/v2/models/{part}").json()["name"] == name
        assert client.get(f"/v2/models/{part}/ready").json() == {"name": name, "ready": True}
        assert client.delete(f"/v1/tasks/{part}").status_code == 204


def test_no_task_at_all(serve: Serve, backbone: memtok.Backbone) -> None:
    client = serve(memtok.MemoryViT(backbone))
    assert client.get("/v1/tasks").json()["tasks"] == []
    assert client.post("/v1/predict", content=png()).json()["images"] == [{"name": "image", "tasks": {}}]
    assert list(client.post("/v1/predict?base=true", content=png()).json()["images"][0]["tasks"]) == ["base"]


@pytest.mark.parametrize(
    ("query", "content", "kind", "status"),
    [
        ("", b"", "image/png", 422),
        ("", b"not an image", "image/png", 422),
        ("", png(), "text/plain", 415),
        ("?top=0", png(), "image/png", 422),
        ("?top=many", png(), "image/png", 422),
        ("?unknown=1", png(), "image/png", 422),
        ("?timeout_s=0", png(), "image/png", 422),
        ("?timeout_s=nan", png(), "image/png", 422),
        ("?tasks=nothing", png(), "image/png", 404),
        ("", b"{", "application/json", 422),
        ("", b"[]", "application/json", 422),
        ("", b"{}", "application/json", 422),
        ("", b'{"images": []}', "application/json", 422),
        ("", b'{"images": ["%%%"]}', "application/json", 422),
        ("", b'{"images": [1]}', "application/json", 422),
        ("", b'{"images": ["aGk="], "other": 1}', "application/json", 422),
        ("", b'{"images": ["aGk="], "top": -1}', "application/json", 422),
        ("", b"[" * 100_000, "application/json", 422),
        ("", b"--x", "multipart/form-data", 422),
        (
            "",
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--x--',
            "multipart/form-data; boundary=x",
            422,
        ),
    ],
)
def test_bad_requests(client: Client, query: str, content: bytes, kind: str, status: int) -> None:
    error_of(client.post(f"/v1/predict{query}", content=content, headers={"Content-Type": kind}), status)
    assert client.post("/v1/predict", content=png()).status_code == 200


def test_unknown_paths_and_methods(client: Client) -> None:
    error_of(client.get("/v1/nothing"), 404)
    error_of(client.post("/v1/tasks"), 405)
    error_of(client.post("/v1/tasks/nothing/predict", content=png()), 404)
    error_of(client.delete("/v1/tasks/nothing"), 404)


def test_limits(serve: Serve, model: memtok.MemoryViT) -> None:
    client = serve(model, limits={"max_body": 20_000, "max_pixels": 2000, "max_images": 2})
    assert client.post("/v1/predict", content=png(0, (40, 50))).status_code == 200
    error_of(client.post("/v1/predict", content=png(0, (40, 51))), 413)
    error_of(client.post("/v1/predict", content=b"x" * 20_001), 413)
    error_of(client.post("/v1/predict", content=iter([b"x" * 15_000, b"x" * 15_000])), 413)  # without a length
    small = png(0, (4, 4))
    assert client.post("/v1/predict", files=[("f", ("a", small))] * 2).status_code == 200
    error_of(client.post("/v1/predict", files=[("f", ("a", small))] * 3), 413)


def test_rate(serve: Serve, model: memtok.MemoryViT) -> None:
    client = serve(model, limits={"rate": 0.001})
    assert client.get("/v1/tasks").status_code == 200
    response = client.get("/v1/tasks")
    error_of(response, 429)
    assert 900 < int(response.headers["retry-after"]) <= 1000


def test_timeout(serve: Serve) -> None:
    """A request whose time is over gives up its place; the model goes on with the others."""
    gate = Gate()
    client = serve(gate)
    error_of(client.post("/v1/predict?timeout_s=0.05", content=png()), 408)
    gate.open.set()
    assert client.post("/v1/predict", content=png()).status_code == 200


def test_a_failure_of_the_model_is_one_line(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()
    gate.open.set()
    gate.fails_on = lambda pixels: True
    client = serve(gate)
    line = error_of(client.post("/v1/predict", content=png()), 500)
    assert "it failed" not in line  # the log has it
    assert "it failed" in caplog.text


@pytest.mark.slow
def test_an_exported_file_answers_alike(serve: Serve, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from memtok.serving.onnx_model import ExportedModel

    backbone = tiny_backbone(depth=1)
    names = ("pets", "digits")
    model = memtok.MemoryViT(backbone, [tiny_task(backbone, name, regime="head", seed=len(name)) for name in names])
    memtok.export(model, tmp_path / "model.onnx", base=True, embedding=True, images=2)
    client = serve(ExportedModel(memtok.load_onnx(tmp_path / "model.onnx", threads=1)))
    found = client.post("/v1/predict?base=true&embedding=true", content=png(6)).json()["images"][0]
    same(found["tasks"], library(model, png(6), base=True))
    assert len(found["embedding"]) == model.backbone.dim
    listed = client.get("/v1/tasks").json()
    assert listed["fixed"] is True
    assert [task["changeable"] for task in listed["tasks"]] == [False] * 2
    error_of(client.put("/v1/tasks/new", content=b""), 409)
    error_of(client.delete("/v1/tasks/pets"), 409)


def test_metrics(client: Client) -> None:
    client.post("/v1/predict", files=[("f", ("a", png(1))), ("f", ("b", png(2)))])
    client.post("/v1/predict", content=b"broken")
    lines = client.get("/metrics").text.splitlines()
    values = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}
    assert values['memtok_requests_total{method="POST",route="/v1/predict",status="200"}'] == 1
    assert values['memtok_requests_total{method="POST",route="/v1/predict",status="422"}'] == 1
    assert values['memtok_request_seconds_count{method="POST",route="/v1/predict"}'] == 2
    assert values["memtok_batch_images_sum"] == 2
    assert values["memtok_queue_images"] == 0
    assert values["memtok_tasks"] == 3
    assert values['memtok_task_images_total{task="pets"}'] == 2


def test_docs_and_page_name_no_other_host(client: Client) -> None:
    schema = client.get("/openapi.json").json()
    assert {"/v1/predict", "/v1/tasks/{name}", "/v2/models/{name}/infer", "/metrics"} <= set(schema["paths"])
    for path in ("/docs", "/", "/docs-files/swagger-ui-bundle.js"):
        response = client.get(path)
        assert response.status_code == 200
    page = client.get("/docs").text
    assert "http://" not in page
    assert "https://" not in page
    assert "frame-ancestors 'none'" in client.get("/").headers["content-security-policy"]
    assert client.get("/").headers["x-content-type-options"] == "nosniff"


def test_hosts(serve: Serve, model: memtok.MemoryViT) -> None:
    """A page of another host that resolves to this machine gets nothing."""
    client = serve(model, hosts=["localhost", "127.0.0.1", "::1"])
    for host in ("localhost", "localhost:8000", "127.0.0.1:1", "[::1]:8000", "LOCALHOST"):
        assert client.get("/v1/tasks", headers={"Host": host}).status_code == 200
    for host in ("evil.example", "localhost.evil.example:80", "", "[::2]"):
        error_of(client.get("/v1/tasks", headers={"Host": host}), 400)


def test_answers_are_json(client: Client) -> None:
    content = client.post("/v1/predict", content=png()).content
    assert json.loads(content, parse_constant=lambda name: pytest.fail(name))
