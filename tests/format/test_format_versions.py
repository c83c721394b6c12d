"""Files of every format version are read for ever, and answer as they did when they were written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import memtok

VERSIONS = sorted(path for path in Path(__file__).parent.glob("v*") if path.is_dir())


@pytest.mark.parametrize("folder", VERSIONS, ids=lambda folder: folder.name)
def test_a_stored_version_is_read_and_answers_as_it_did(folder: Path) -> None:
    answers = load_file(folder / "answers.safetensors")
    images = answers.pop("images")
    backbone = memtok.load_backbone(folder / "backbone.safetensors")
    found: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for path in sorted(folder.glob("*.safetensors")):
            if path.name in ("answers.safetensors", "backbone.safetensors"):
                continue
            out = memtok.MemoryViT(backbone, memtok.load_tasks(path, backbone))(images)
            assert out.base is not None
            found["base"] = out.base
            found |= {f"tasks.{name}": out[name] for name in out}
    assert found.keys() == answers.keys()
    for name, expected in answers.items():
        torch.testing.assert_close(found[name], expected, atol=1e-5, rtol=1e-5)


def test_the_first_version_is_there() -> None:
    assert [folder.name for folder in VERSIONS][:1] == ["v1"]
    [lone] = memtok.load_tasks(
        VERSIONS[0] / "lone.safetensors", memtok.load_backbone(VERSIONS[0] / "backbone.safetensors")
    )
    assert (lone.queries, lone.cells, lone.adapter_rank) == (2, 3, 1)
    assert lone.record["metrics"] == {"top1": 0.5}


def test_digests_and_twins_are_there() -> None:
    folder = next(folder for folder in VERSIONS if folder.name == "v1-digest")
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as stream:
            content = json.loads((stream.metadata() or {}).get("memtok", "null"))
        if content is not None:
            assert all(header["digest"].startswith("sha256:") for header in content.get("tasks", [content])), path
    backbone = memtok.load_backbone(folder / "backbone.safetensors")
    assert backbone.classes == ("a", "b", "c", "d", "e")
    both, other, twin = memtok.load_tasks(folder / "twins.safetensors", backbone)
    assert both.extends == (twin, other)
    assert (twin.name, other.name) == ("twin", "twin.head")
    assert twin.fingerprint == other.fingerprint
