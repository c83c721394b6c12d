"""Bad tensors of the Open Inference Protocol."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest

from tests.serving.attack_tools import GOOD, error_of
from tests.serving.conftest import Client

BASE64 = base64.b64encode(GOOD).decode()
INPUT = {"name": "images", "shape": [1], "datatype": "BYTES", "data": [BASE64]}
ELEMENT = struct.pack("<I", len(GOOD)) + GOOD

TENSORS: dict[str, list[Any]] = {
    "shape": [[], [0], [-1], [2], [1, 1], [1.5], [[1]], None, "x", 1, {}],
    "datatype": ["FP32", "UINT8", "bytes", "", None, 1, "\ud800"],
    "name": ["other", "", None, 1, "\ud800", "images" * 1000],
    "data": [[], [BASE64] * 2, [1], [None], "x", {}, ["%"], [""], ["\ud800"], [BASE64[:-1]], ["data:,"]],
    "parameters": [1, [], "x", None],
}
SCORES: dict[str, Any] = {"name": "scores"}
REQUESTS: dict[str, list[Any]] = {
    "inputs": [None, [], [1], "x", [INPUT] * 2, [INPUT] * 1000, [{}]],
    "outputs": [1, {}, [None], [{}], [{"name": 1}], [SCORES] * 3, [{"name": "\ud800"}], [SCORES | {"parameters": 1}]],
    "parameters": [1, [], "x", None],
    "id": [1, [], {}, True],
}  # fmt: skip


def test_tensors(attacked: Client) -> None:
    bodies = [{"inputs": [INPUT | {field: value}]} for field, values in TENSORS.items() for value in values]
    bodies += [{"inputs": [INPUT]} | {field: value} for field, values in REQUESTS.items() for value in values]
    for one in bodies:
        error_of(attacked.post("/v2/models/pets/infer", content=json.dumps(one).encode()), 422)
    error_of(attacked.post("/v2/models/pets/infer", json={"inputs": [INPUT | {"shape": [2**70]}]}), 413)
    for path in ("none-such", "pets/versions/1", "%00", "..%2f"):
        error_of(attacked.post(f"/v2/models/{path}/infer", json={"inputs": [INPUT]}), 404)


@pytest.mark.parametrize("output", [True, False, "yes", 1])
def test_an_id_that_is_no_text(attacked: Client, output: object) -> None:
    """Half a surrogate pair comes back as it was sent."""
    asked = json.dumps({"id": "\ud800", "inputs": [INPUT], "parameters": {"binary_data_output": output}})
    response = attacked.post("/v2/models/pets/infer", content=asked.encode())
    assert response.status_code == 200
    end = int(response.headers.get("inference-header-content-length", len(response.content)))
    assert json.loads(response.content[:end])["id"] == "\ud800"
    assert (end < len(response.content)) is (output is True)


SIZES = (0, -1, len(ELEMENT) + 1, 10**30, 1.5, float("nan"), "x", None, [], True)
LENGTHS = ("-1", "0", "1", "x", "", "1e3", "0x10", "9" * 30, "9" * 5000)
BINARY: dict[str, tuple[bytes, Any, str | None]] = {
    **{f"size {str(size)[:9]}": (ELEMENT, size, None) for size in SIZES},
    "past its end": (struct.pack("<I", len(GOOD) + 1) + GOOD, ..., None),
    "4 GB": (b"\xff" * 4 + GOOD, ..., None),
    "cut": (ELEMENT[:-1], ..., None),
    "three bytes": (b"abc", ..., None),
    "empty": (b"", ..., None),
    "empty element": (b"\0" * 4, ..., None),
    "a million elements": (b"\0" * 4_000_000, ..., None),
    "one more": (ELEMENT * 2, ..., None),
    **{f"header {length[:9]}": (ELEMENT, ..., length) for length in LENGTHS},
}  # fmt: skip


@pytest.mark.parametrize("name", BINARY)
def test_binary_tensors(attacked: Client, name: str) -> None:
    binary, size, length = BINARY[name]
    described = {key: value for key, value in INPUT.items() if key != "data"}
    if size is not ...:
        described["parameters"] = {"binary_data_size": size}
    head = json.dumps({"inputs": [described]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)) if length is None else length}
    error_of(attacked.post("/v2/models/pets/infer", content=head + binary, headers=headers), 422)
