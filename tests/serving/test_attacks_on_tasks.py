"""Bad task files, and keys that are none or those of other tenants."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import memtok
from memtok.header import digest_of
from memtok.serving import keys as keys_module
from tests.serving.attack_tools import GOOD, error_of, made_app, task_file, tenants
from tests.serving.conftest import Client
from tests.tiny import tiny_backbone, tiny_task

File = tuple[dict[str, Any], bytes]
"""The header of a safetensors file, and its numbers."""


@pytest.fixture(scope="module")
def backbone() -> memtok.Backbone:
    return tiny_backbone(depth=1)


@pytest.fixture(scope="module")
def good(backbone: memtok.Backbone, tmp_path_factory: pytest.TempPathFactory) -> File:
    content = task_file(tiny_task(backbone, "new", memory=1, seed=5), tmp_path_factory.mktemp("good"))
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def changing(backbone: memtok.Backbone, store: Path) -> Iterator[Client]:
    """A server that stores what is uploaded."""
    with Client(made_app(backbone=backbone, store=store), raise_server_exceptions=False) as client:
        yield client


def joined(header: object, numbers: bytes) -> bytes:
    """A safetensors file. header: its JSON, as a value or as bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + numbers


def tensor(file: File, **changes: object) -> bytes:
    """The file with another description of its first tensor."""
    return joined(file[0] | {"class_tokens": file[0]["class_tokens"] | changes}, file[1])


def told(file: File, **changes: object) -> bytes:
    """The file with other fields in the header of its task, and a digest that fits."""
    fields = json.loads(file[0]["__metadata__"]["memtok"]) | changes
    version = fields.pop("format_version")
    fields["digest"] = digest_of(fields)
    return metadata(file, json.dumps({"format_version": version, **fields}))


def metadata(file: File, text: object) -> bytes:
    """The file with another text in the place of the task's header."""
    return joined(file[0] | {"__metadata__": {"memtok": text}}, file[1])


def nested(levels: int) -> dict[str, Any]:
    """Objects in each other, one more than `levels`."""
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"a": value}
    return value


Damage = Callable[[File], bytes]

OFFSETS = (
    [0, 10**12],
    [-8, 120],
    [128, 0],
    [4, 132],
    [0, 64],
    [0],
    None,
    "x",
    [0.5, 128],
    [2**63, 2**63 + 128],
    [True, 128],
)
SHAPES = ([2**62, 2**62], [-1, -32], [0], None, [1.5], [10**30], "1", [1, 64], [32])
LENGTHS_OF_HEADERS = (0, 1, 2**32, 2**63, 2**64 - 1)
HEADERS: dict[str, list[Any]] = {
    "classes": [
        ["\ud800", "b", "c"],
        ["a"] * 3,
        [],
        ["a"] * 1000,
        [1, 2, 3],
        "abc",
        ["a" * 501, "b", "c"],
        nested(800),
    ],
    "record": [[], "x", {"a": "x" * 100_000}, nested(100), nested(400), nested(800)],
    "regime": ["none-such", "\ud800", 1, "full"],
    "extends": [[{"name": "a", "fingerprint": "x"}], [1], [{}], {"a": 1}, nested(800)],
    "preprocessing": [{}, [], {"a": float("nan")}, nested(800)],
    "backbone": [{}, {"fingerprint": "x", "source": "\ud800\n"}, [], nested(800)],
    "fingerprint": ["sha256:0", "", None, "\ud800"],
    "composable": [False, 1, None],
    "name": [1, None, [], nested(800)],
    "format_version": [True, 0, 2, 10**30, "1", None, nested(800)],
    "tasks": [[], [1], {"a": 1}, None, nested(800)],
    "sees": ["x", 10**10],
}
FILES: dict[str, Damage] = {
    "nothing": lambda file: b"",
    "cut numbers": lambda file: joined(*file)[:-1],
    "cut header": lambda file: joined(*file)[:100],
    "cut length": lambda file: joined(*file)[:7],
    "longer": lambda file: joined(*file) + b"x",
    "no JSON": lambda file: joined(b"{nope}", file[1]),
    "no object": lambda file: joined([], file[1]),
    "no UTF-8": lambda file: joined(b'{"\xff": 1}', file[1]),
    "deep": lambda file: joined(b'{"a":' * 100_000, file[1]),
    "no tensors": lambda file: joined({}, b""),
    "a tensor twice": lambda file: joined(b'{"a": {}, "a": {}}', b""),
    "one more tensor": lambda file: joined(file[0] | {"../x": file[0]["class_tokens"]}, file[1]),
    "not a number": lambda file: joined(file[0], struct.pack("<f", float("nan")) * (len(file[1]) // 4)),
    "infinity": lambda file: joined(file[0], struct.pack("<f", float("inf")) * (len(file[1]) // 4)),
    "other numbers": lambda file: joined(file[0], struct.pack("<f", 1e38) * (len(file[1]) // 4)),
    "a pickle": lambda file: pickle.dumps(nested(3), 4),
    "an archive": lambda file: b"PK\3\4" + b"\0" * 100,
    "no task": lambda file: joined({key: value for key, value in file[0].items() if key != "__metadata__"}, file[1]),
    "a number as header": lambda file: metadata(file, 1),
    "a damaged header": lambda file: metadata(file, "{"),
    "a deep header": lambda file: metadata(file, "[" * 100_000),
    "another digest": lambda file: metadata(file, file[0]["__metadata__"]["memtok"].replace('"class 0"', '"class 9"')),
}  # fmt: skip


@pytest.mark.parametrize("name", [*FILES, "lengths", "offsets", "shapes", "types", *HEADERS])
def test_task_files(changing: Client, good: File, store: Path, name: str) -> None:
    if name in FILES:
        contents = [FILES[name](good)]
    elif name in HEADERS:
        contents = [told(good, **{name: value}) for value in HEADERS[name]]
    elif name == "lengths":
        contents = [struct.pack("<Q", length) + joined(*good)[8:] for length in LENGTHS_OF_HEADERS]
    else:
        field, values = {
            "offsets": ("data_offsets", OFFSETS),
            "shapes": ("shape", SHAPES),
            "types": ("dtype", ("I32", "F16", "none-such", 7, None)),
        }[name]
        contents = [tensor(good, **{field: value}) for value in values]
    before = changing.get("/v1/tasks").content, changing.post("/v1/predict", content=GOOD).content
    for content in contents:
        line = error_of(changing.put("/v1/tasks/new", content=content), 422)
        assert "/tmp" not in line
        assert str(store) not in line
    assert (changing.get("/v1/tasks").content, changing.post("/v1/predict", content=GOOD).content) == before
    assert list(store.iterdir()) == []


def test_odd_task_files(changing: Client, good: File, store: Path) -> None:
    """What does no harm is taken, told as it is, and removed without a trace."""
    odd = (
        {"name": "../../x"},
        {"record": nested(99)},
        {"record": {"a": float("nan"), "\ud800": 10**4000}},
        {"more": [1]},
    )
    for changes in odd:
        added = changing.put("/v1/tasks/new", content=told(good, **changes))
        assert added.status_code == 201, added.text
        assert added.json()["name"] == "new"
        assert len(list(store.iterdir())) == 1
        for response in (changing.get("/v1/tasks"), changing.post("/v1/predict", content=GOOD)):
            assert response.status_code == 200
            json.loads(response.content, parse_constant=lambda name: pytest.fail(name))
        assert changing.delete("/v1/tasks/new").status_code == 204
        assert list(store.iterdir()) == []


BAD_NAMES = (
    "%2e%2e",
    "%2e%2e%2fx",
    "%2e",
    "a%00b",
    "a/b",
    "a%2fb",
    "a%5cb",
    "C%3a%5cx",
    "a" * 101,
    "a" * 5000,
    "%c3%a9" * 101,
)
BAD_NAMES += (
    "%f0%9d%9f%98" * 51,
    "a%e2%81%84b",
    "a%e2%88%95b",
    "%e2%80%aex",
    "a%e2%80%8bb",
    "%ff%fe",
    "a%7f",
    "a%3bb",
    "~",
    "-x",
)
ODD_NAMES = (
    "CON",
    "nul.txt",
    "COM1",
    "a.",
    "a ",
    "Base",
    "%d0%b0cme",
    "%ef%bc%a3%ef%bc%af%ef%bc%ae",
    "%f0%9d%9f%98" * 50,
)


def test_names_of_uploads(changing: Client, good: File, store: Path) -> None:
    content = joined(*good)
    for name in BAD_NAMES:
        error_of(changing.put(f"/v1/tasks/{name}", content=content), 422)
    assert error_of(changing.put("/v1/tasks/a%0d%0aX: y", content=content), 404)
    assert list(store.iterdir()) == []
    for name in ODD_NAMES:  # each is a file of its own in the folder, on every system
        assert changing.put(f"/v1/tasks/{name}", content=content).status_code == 201
    files = [path.name for path in store.rglob("*")]
    assert len(files) == len(ODD_NAMES)
    assert all(name.endswith(".safetensors") and len(name.encode()) < 250 for name in files)
    assert sorted(path.name for path in store.parent.iterdir() if path.name.endswith(".safetensors")) == []
    for name in ODD_NAMES:
        assert changing.delete(f"/v1/tasks/{name}").status_code == 204
    assert list(store.iterdir()) == []


@pytest.fixture
def shared(backbone: memtok.Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Client, Any]]:
    """A server with tasks of two tenants, and their headers."""
    monkeypatch.setattr(keys_module, "COST", {"n": 2, "r": 1, "p": 1})
    monkeypatch.setattr(keys_module, "CHECKS", 1e9)
    headers = tenants(tmp_path / "keys.json")
    tasks = [tiny_task(backbone, name, seed=seed) for seed, name in enumerate(("acme-one", "beta-one"))]
    with Client(made_app(tasks, keys=tmp_path / "keys.json"), raise_server_exceptions=False) as client:
        yield client, headers


def test_keys_that_are_none(shared: tuple[Client, Any]) -> None:
    client, headers = shared
    right = headers["acme"]["Authorization"].encode()
    key = right.removeprefix(b"Bearer ")
    bad = (
        b"",
        b"Bearer",
        b"Bearer ",
        b"Basic " + key,
        b"Bearer" + key,
        b"Digest " + right,
        key,
        right + b"\0",
        right + b" x",
    )
    bad += (
        right * 2,
        right + b", " + right,
        right.swapcase(),
        b"Bearer " + b"a" * 65_536,
        b"Bearer memtok_" + b"_" * 9000,
    )
    bad += (
        b"Bearer \xff\xfe",
        b"Bearer memtok_\xc3\xa9_\xed\xa0\x80",
        b"Bearer memtok_000000000000_" + key[-43:],
        b"Bearer *",
    )
    lines = set()
    for value in bad:
        response = client.post("/v1/predict", content=GOOD, headers={b"Authorization": value})
        lines.add(error_of(response, 401))
        assert response.headers["www-authenticate"] == "Bearer"
    assert len(lines) == 2  # without a key, and with a wrong one
    twice = [(b"Authorization", b"Bearer wrong"), (b"Authorization", right)]
    assert client.get("/v1/tasks", headers=twice[::-1]).json()["admin"] is False
    error_of(client.get("/v1/tasks", headers=twice), 401)  # the first one counts
    assert client.get("/v1/tasks", headers={b"Authorization": right}).status_code == 200


ROUTES = (
    ("POST", "/v1/predict?tasks={}"),
    ("POST", "/v1/predict?tasks=acme-one&tasks={}"),
    ("POST", "/v1/tasks/{}/predict"),
    ("POST", "/v1/tasks/{}/predict?top_k=0x"),
    ("POST", "/v1/tasks/{}/attention"),
    ("GET", "/v1/tasks/{}"),
    ("PUT", "/v1/tasks/{}"),
    ("DELETE", "/v1/tasks/{}"),
    ("GET", "/v2/models/{}"),
    ("GET", "/v2/models/{}/ready"),
    ("POST", "/v2/models/{}/infer"),
    ("HEAD", "/v1/tasks/{}"),
    ("GET", "/v1/tasks/{}/"),
    ("GET", "/v1/tasks/x/../{}"),
    ("GET", "/v1/tasks/{}%20"),
)


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_task_of_others_answers_as_none(shared: tuple[Client, Any], good: File, method: str, path: str) -> None:
    client, headers = shared
    for content in (GOOD, b"", b"{", b'{"inputs": []}', joined(*good)):
        theirs, nobodys = (
            client.request(method, path.format(name), content=content, headers=headers["acme"])
            for name in ("beta-one", "beta-two")
        )
        assert 400 <= theirs.status_code < 500
        assert theirs.status_code == nobodys.status_code
        assert theirs.content.replace(b"beta-one", b"beta-two") == nobodys.content
        assert dict(theirs.headers) == dict(nobodys.headers)
    assert client.get("/v1/tasks/beta-one", headers=headers["beta"]).status_code == 200
