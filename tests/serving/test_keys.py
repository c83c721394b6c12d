"""Tenants: each key sees and changes its own tasks, and learns nothing of others."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

import memtok
from memtok.errors import MemtokError
from memtok.serving import keys as module
from memtok.serving.keys import KeyRing, new_key, read_keys, remove_key
from tests.serving.attack_tools import error_of
from tests.serving.conftest import Client, Serve, png, task_bytes
from tests.tiny import tiny_task

LIGHT = {"n": 2, "r": 1, "p": 1}
"""A cost of scrypt for tests."""


@pytest.fixture(autouse=True)
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COST", LIGHT)
    monkeypatch.setattr(module, "LOOK", 0.0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def head(key: str) -> dict[str, str]:
    """The header of a key."""
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def tenants(serve: Serve, backbone: memtok.Backbone, file: Path) -> tuple[Client, dict[str, str]]:
    """A server with the tasks of two tenants and one for all, and the keys."""
    made = {
        "acme": new_key(file, "acme", see=["shared"], change=["acme-*"]),
        "blue": new_key(file, "blue", see=["shared"], change=["blue-*"]),
        "admin": new_key(file, "admin", admin=True),
    }
    tasks = [tiny_task(backbone, name, seed=n) for n, name in enumerate(("acme-cats", "blue-dogs", "shared"))]
    return serve(memtok.MemoryViT(backbone, tasks), keys=file), made


def test_the_file_has_no_key(file: Path) -> None:
    text = new_key(file, "acme", see=["a"], rate=5)
    secret = text.split("_", 2)[2]
    assert secret not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    [stored] = read_keys(file).values()
    assert (stored.key.name, stored.key.see, stored.key.rate, stored.key.admin) == ("acme", ("a",), 5, False)
    assert stored.fits(secret)
    assert not stored.fits(secret[:-1])


def test_a_tenant_fills_its_own_places_only(serve: Serve, backbone: memtok.Backbone, file: Path) -> None:
    keys = {
        "acme": new_key(file, "acme", change=["acme-*"], max_tasks=2),
        "blue": new_key(file, "blue", change=["blue-*"]),
    }
    client = serve(memtok.MemoryViT(backbone, [tiny_task(backbone, "acme-cats")]), keys=file)

    def put(who: str, name: str, seed: int) -> int:
        content = task_bytes(tiny_task(backbone, name, seed=seed), file.parent)
        return client.put(f"/v1/tasks/{name}", content=content, headers=head(keys[who])).status_code

    assert put("acme", "acme-dogs", 1) == 201
    assert put("acme", "acme-birds", 2) == 409
    assert put("acme", "acme-dogs", 3) == 200  # replaced
    assert [put("blue", f"blue-{number}", number) for number in range(3)] == [201] * 3
    assert client.delete("/v1/tasks/acme-cats", headers=head(keys["acme"])).status_code == 204
    assert put("acme", "acme-birds", 2) == 201


@pytest.mark.parametrize("found", [0, -1, True, 1.5, "2"])
def test_a_number_of_tasks_that_cannot_be(file: Path, found: object) -> None:
    new_key(file, "acme", change=["acme-*"], max_tasks=2)
    content = json.loads(file.read_text())
    content["keys"][0]["max_tasks"] = found
    file.write_text(json.dumps(content))
    with pytest.raises(MemtokError):
        read_keys(file)


def test_a_key_file_of_before_numbers_of_tasks(file: Path) -> None:
    new_key(file, "acme", change=["acme-*"])
    content = json.loads(file.read_text())
    del content["keys"][0]["max_tasks"]
    file.write_text(json.dumps(content))
    [stored] = read_keys(file).values()
    assert stored.key.max_tasks is None


def test_only_a_right_key_gets_in(tenants: tuple[Client, dict[str, str]]) -> None:
    client, keys = tenants
    right = keys["acme"]
    wrong = right[:-1] + ("a" if right[-1] != "a" else "b")
    unknown = "memtok_000000000000_" + right.split("_", 2)[2]
    lines = set()
    for bad in (wrong, unknown, right + "x", right[:-1], "", "memtok__", "x" * 10_000, "memtok_ü_ü"):
        response = client.get("/v1/tasks", headers={b"Authorization": f"Bearer {bad}".encode()})
        lines.add(error_of(response, 401))
        assert response.headers["www-authenticate"] == "Bearer"
    assert len(lines) == 2  # with a key and without
    for scheme in ("Basic", "bearer x", ""):
        error_of(client.get("/v1/tasks", headers={"Authorization": f"{scheme} {right}"}), 401)
    assert client.get("/v1/tasks", headers={"Authorization": f"bearer {right}"}).status_code == 200
    for method, path in (
        ("POST", "/v1/predict"),
        ("POST", "/v1/tasks/shared/predict"),
        ("POST", "/v1/tasks/shared/attention"),
        ("GET", "/v1/tasks"),
        ("GET", "/v1/tasks/shared"),
        ("PUT", "/v1/tasks/shared"),
        ("DELETE", "/v1/tasks/shared"),
        ("GET", "/v2/models/shared"),
        ("GET", "/v2/models/shared/ready"),
        ("POST", "/v2/models/shared/infer"),
        ("GET", "/metrics"),
    ):
        error_of(client.request(method, path), 401)
    for path in ("/", "/docs", "/openapi.json", "/v2", "/v2/health/live", "/v2/health/ready"):
        assert client.get(path).status_code == 200


def test_a_key_learns_nothing_of_others(tenants: tuple[Client, dict[str, str]], tmp_path: Path) -> None:
    client, keys = tenants
    acme = head(keys["acme"])
    found = client.get("/v1/tasks", headers=acme).json()
    assert [(task["name"], task["changeable"]) for task in found["tasks"]] == [("acme-cats", True), ("shared", False)]
    assert (found["keys"], found["admin"]) == (True, False)
    answer = client.post("/v1/predict", content=png(), headers=acme).json()["images"][0]["tasks"]
    assert list(answer) == ["acme-cats", "shared"]
    # A task of others answers, word for word, as one that does not exist.
    for method, path in (
        ("POST", "/v1/tasks/{}/predict"),
        ("POST", "/v1/tasks/{}/attention"),
        ("POST", "/v1/predict?tasks={}"),
        ("GET", "/v1/tasks/{}"),
        ("DELETE", "/v1/tasks/{}"),
        ("GET", "/v2/models/{}"),
        ("GET", "/v2/models/{}/ready"),
        ("POST", "/v2/models/{}/infer"),
    ):
        theirs, nobodys = (
            client.request(method, path.format(name), content=png(), headers=acme)
            for name in ("blue-dogs", "blue-cats")
        )
        assert theirs.status_code == nobodys.status_code == 404
        assert theirs.text.replace("blue-dogs", "blue-cats") == nobodys.text
        assert dict(theirs.headers) == dict(nobodys.headers)
    for name in ("blue-dogs", "blue-cats", "shared"):
        error_of(client.put(f"/v1/tasks/{name}", content=b"", headers=acme), 403)
    error_of(client.delete("/v1/tasks/shared", headers=acme), 403)
    error_of(client.get("/metrics", headers=acme), 403)
    assert "blue-dogs" not in client.get("/openapi.json").text
    admin = client.get("/v1/tasks", headers=head(keys["admin"])).json()
    assert [task["name"] for task in admin["tasks"]] == ["acme-cats", "blue-dogs", "shared"]
    assert client.get("/metrics", headers=head(keys["admin"])).status_code == 200


def test_a_key_changes_its_own(
    tenants: tuple[Client, dict[str, str]], backbone: memtok.Backbone, tmp_path: Path
) -> None:
    client, keys = tenants
    acme, blue = head(keys["acme"]), head(keys["blue"])
    content = task_bytes(tiny_task(backbone, "any", seed=9), tmp_path)
    assert client.put("/v1/tasks/acme-new", content=content, headers=acme).status_code == 201
    assert client.post("/v1/tasks/acme-new/predict", content=png(), headers=acme).status_code == 200
    error_of(client.post("/v1/tasks/acme-new/predict", content=png(), headers=blue), 404)
    assert client.delete("/v1/tasks/acme-new", headers=acme).status_code == 204
    # What a key cannot see it cannot extend, and the error does not tell whether it is there.
    hidden = tiny_task(backbone, "blue-dogs", seed=1)
    extension = task_bytes(tiny_task(backbone, "ext", extends=[hidden]), tmp_path)
    line = error_of(client.put("/v1/tasks/acme-ext", content=extension, headers=acme), 422)
    nobodys = task_bytes(tiny_task(backbone, "ext", extends=[tiny_task(backbone, "blue-dogs", seed=55)]), tmp_path)
    other = error_of(client.put("/v1/tasks/acme-ext", content=nobodys, headers=acme), 422)
    assert line.split("(")[0] == other.split("(")[0]
    assert client.put("/v1/tasks/blue-ext", content=extension, headers=blue).status_code == 201
    # Others' tasks that extend it are not named either.
    shown = client.get("/v1/tasks/blue-ext", headers=blue).json()
    assert shown["extends"] == ["blue-dogs"]
    line = error_of(client.delete("/v1/tasks/blue-dogs", headers=blue), 409)
    assert "blue-ext" not in line


def test_rates_are_per_key(serve: Serve, model: memtok.MemoryViT, file: Path) -> None:
    slow, fast = new_key(file, "slow", see=["*"], rate=0.001), new_key(file, "fast", see=["*"], rate=1000)
    client = serve(model, keys=file, limits={"rate": 0.001})
    assert client.get("/v1/tasks", headers=head(slow)).status_code == 200
    error_of(client.get("/v1/tasks", headers=head(slow)), 429)
    for _ in range(5):
        assert client.get("/v1/tasks", headers=head(fast)).status_code == 200


def test_guessing_is_slowed_down(
    serve: Serve, model: memtok.MemoryViT, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond some checks a second unknown keys are not even looked at; a key that was right before is."""
    monkeypatch.setattr(module, "CHECKS", 0.001)
    right = new_key(file, "acme", see=["*"])
    client = serve(model, keys=file)
    assert client.get("/v1/tasks", headers=head(right)).status_code == 200
    assert client.get("/v1/tasks", headers=head("memtok_a_b")).status_code == 429
    assert client.get("/v1/tasks", headers=head(right)).status_code == 200


def test_a_running_server_notices(serve: Serve, model: memtok.MemoryViT, file: Path) -> None:
    acme = new_key(file, "acme", see=["*"])
    client = serve(model, keys=file)
    assert client.get("/v1/tasks", headers=head(acme)).status_code == 200
    blue = new_key(file, "blue", see=["*"])
    assert client.get("/v1/tasks", headers=head(blue)).status_code == 200
    good = file.read_text()
    file.write_text("damaged")
    assert client.get("/v1/tasks", headers=head(blue)).status_code == 200
    file.write_text(good)
    remove_key(file, "acme")
    error_of(client.get("/v1/tasks", headers=head(acme)), 401)
    assert client.get("/v1/tasks", headers=head(blue)).status_code == 200


def test_bad_files_and_names(file: Path) -> None:
    with pytest.raises(MemtokError):
        KeyRing(file)
    new_key(file, "acme", admin=True)
    content = file.read_bytes()
    for problem in (
        lambda: new_key(file, "acme", admin=True),
        lambda: new_key(file, "nothing"),
        lambda: remove_key(file, "other"),
    ):
        with pytest.raises(MemtokError):
            problem()
    assert file.read_bytes() == content
    entry = json.loads(content)["keys"][0]
    for change in (
        {"id": 1},
        {"admin": "yes"},
        {"see": "a"},
        {"rate": -1},
        {"rate": True},
        {"hash": "%"},
        {"scrypt": {"n": 3, "r": 1, "p": 1}},
        {"scrypt": {}},
    ):
        file.write_text(json.dumps({"version": 1, "keys": [entry | change]}))
        with pytest.raises(MemtokError) as caught:
            read_keys(file)
        assert "\n" not in str(caught.value)
    for text in ("", "[]", "{}", '{"version": 2, "keys": []}', '{"version": 1, "keys": [1]}', '{"version": 1}'):
        file.write_text(text)
        with pytest.raises(MemtokError):
            read_keys(file)
