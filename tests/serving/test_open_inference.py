"""The Open Inference Protocol: health, metadata, and inference with tensors in JSON and in binary."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import numpy as np
import pytest

import memtok
from tests.serving.attack_tools import error_of
from tests.serving.conftest import Client, Serve, png
from tests.serving.test_v1 import library


@pytest.fixture
def client(serve: Serve, model: memtok.MemoryViT) -> Client:
    return serve(model)


def tensor(images: list[bytes], **changes: Any) -> dict[str, Any]:
    """The input, in JSON."""
    data = [base64.b64encode(one).decode() for one in images]
    return {"name": "images", "shape": [len(images)], "datatype": "BYTES", "data": data, **changes}


def test_health_and_metadata(client: Client) -> None:
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2").json()["name"] == "memtok"
    assert client.get("/v2/models/pets/ready").json() == {"name": "pets", "ready": True}
    found = client.get("/v2/models/digits").json()
    assert found["inputs"] == [{"name": "images", "datatype": "BYTES", "shape": [-1]}]
    assert found["outputs"][0] == {"name": "scores", "datatype": "FP32", "shape": [-1, 7]}
    error_of(client.get("/v2/models/nothing"), 404)


def check(model: memtok.MemoryViT, images: list[bytes], scores: list[list[float]], labels: list[str]) -> None:
    """Scores in the order of the classes and labels, as the library has them."""
    for content, row, label in zip(images, scores, labels, strict=True):
        expected = library(model, content, top=99)["digits"]
        by_label = {one["label"]: one["score"] for one in expected}
        assert row == pytest.approx([by_label[name] for name in model.tasks[1].classes], abs=1e-5)
        assert label == expected[0]["label"]


def test_json(client: Client, model: memtok.MemoryViT) -> None:
    images = [png(1), png(2, (30, 70), "JPEG")]
    response = client.post("/v2/models/digits/infer", json={"id": "7", "inputs": [tensor(images)]})
    found = response.json()
    assert (found["model_name"], found["id"]) == ("digits", "7")
    scores, labels = found["outputs"]
    assert (scores["name"], scores["datatype"], scores["shape"]) == ("scores", "FP32", [2, 7])
    assert (labels["name"], labels["datatype"], labels["shape"]) == ("labels", "BYTES", [2])
    check(model, images, np.reshape(scores["data"], (2, 7)).tolist(), labels["data"])
    only = {"inputs": [tensor(images)], "outputs": [{"name": "labels"}]}
    assert [one["name"] for one in client.post("/v2/models/digits/infer", json=only).json()["outputs"]] == ["labels"]


def test_binary(client: Client, model: memtok.MemoryViT) -> None:
    """As Triton's clients send it by default."""
    images = [png(3), png(4)]
    binary = b"".join(struct.pack("<I", len(one)) + one for one in images)
    described = tensor(images, parameters={"binary_data_size": len(binary)})
    del described["data"]
    head = json.dumps({"inputs": [described], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    response = client.post("/v2/models/digits/infer", content=head + binary, headers=headers)
    length = int(response.headers["inference-header-content-length"])
    found, rest = json.loads(response.content[:length]), response.content[length:]
    sizes = [one["parameters"]["binary_data_size"] for one in found["outputs"]]
    assert sum(sizes) == len(rest)
    scores = np.frombuffer(rest[: sizes[0]], "<f4").reshape(found["outputs"][0]["shape"])
    texts, place = [], sizes[0]
    while place < len(rest):
        (size,) = struct.unpack_from("<I", rest, place)
        texts.append(rest[place + 4 : place + 4 + size].decode())
        place += 4 + size
    check(model, images, scores.tolist(), texts)


@pytest.mark.parametrize(
    "inputs",
    [
        [],
        [tensor([png()]), tensor([png()])],
        [tensor([png()], name="other")],
        [tensor([png()], datatype="FP32")],
        [tensor([png()], shape=[2])],
        [tensor([png()], shape=[1, 1])],
        [tensor([png()], shape=[0], data=[])],
        [tensor([png()], data=["%"])],
        [tensor([png()], data=None)],
        [tensor([png(), b"broken"])],
    ],
)
def test_bad_tensors(client: Client, inputs: list[Any]) -> None:
    error_of(client.post("/v2/models/digits/infer", json={"inputs": inputs}), 422)


def test_bad_binary(client: Client) -> None:
    described = tensor([png()])
    del described["data"]
    head = json.dumps({"inputs": [described]}).encode()
    for length, binary in ((len(head), b"\1"), (len(head), b"\xff\xff\xff\xffabc"), (len(head) + 99, b""), (3, b"")):
        headers = {"Inference-Header-Content-Length": str(length)}
        error_of(client.post("/v2/models/digits/infer", content=head + binary, headers=headers), 422)
    error_of(
        client.post("/v2/models/digits/infer", content=head, headers={"Inference-Header-Content-Length": "-1"}), 422
    )
    wish = {"inputs": [tensor([png()])], "outputs": [{"name": "other"}]}
    error_of(client.post("/v2/models/digits/infer", json=wish), 422)
