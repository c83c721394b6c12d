"""`memtok export`: a file that answers as `memtok predict` does, or one line and none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import memtok
from memtok.cli.export import USAGE
from tests.cli.conftest import Run

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

FAST = ("--backbone", "tiny.safetensors", "--images", "4")


def test_the_file_answers_as_predict_does(workspace: Path, run: Run) -> None:
    words = ("head.safetensors", *FAST)
    parity = ("--parity", "folder:photos", "--base", "--json", "export.json")
    found = run("export", *words, *parity, "--out", "model.onnx")
    assert found.code == 0, found.err
    assert "compared with PyTorch on 3 images of folder:photos; allowed is a relative difference of 0.0001" in found.out
    assert "wrote model.onnx: float32 weights" in found.out
    result = json.loads(Path("export.json").read_text())
    assert (result["file"], result["format"], result["bytes"]) == (
        "model.onnx", "onnx", Path("model.onnx").stat().st_size,
    )  # fmt: skip
    assert list(result["parity"]["outputs"]) == ["head", "base"]
    assert all(output["agreement"] == 1 for output in result["parity"]["outputs"].values())
    assert result["metadata"]["backbone"]["source"] == "tiny.safetensors"
    assert str(workspace).encode() not in Path("model.onnx").read_bytes()
    asked = run("predict", *words[:-2], "--images", "photos", "--base", "--device", "cpu", "--json", "predict.json")
    assert asked.code == 0, asked.err
    expected = json.loads(Path("predict.json").read_text())
    answers = memtok.load_onnx("model.onnx").predict("photos", base=True, top=1).to_json()
    assert [image["path"] for image in answers["images"]] == [image["path"] for image in expected["images"]]
    for one, other in zip(answers["images"], expected["images"], strict=True):
        assert one["answers"] == other["answers"]
        for name in ("head", "base"):
            assert one["tasks"][name][0]["probability"] == pytest.approx(
                other["tasks"][name][0]["probability"], abs=1e-5
            )


@pytest.mark.slow
def test_beyond_the_bound_there_is_one_line_and_no_file(workspace: Path, run: Run) -> None:
    (workspace / "old").mkdir()
    Path("old/model.onnx").write_text("as it was")
    words = ("head.safetensors", *FAST, "--weights", "float16", "--tolerance", "1e-7")
    found = run("export", *words, "--out", "old/model.onnx")
    assert (found.code, found.out) == (1, "")
    line = found.err.splitlines()[-1]
    assert line.startswith("memtok export: error: expected answers within 1e-07 of PyTorch's")
    assert "take --weights float32, a larger --tolerance, or other images" in line
    assert [(one.name, one.read_text()) for one in (workspace / "old").iterdir()] == [("model.onnx", "as it was")]


def test_a_program_of_torch(workspace: Path, run: Run) -> None:
    found = run("export", *FAST, "--embedding", "--format", "torch", "--out", "model.pt2")
    assert found.code == 0, found.err
    assert [line.split()[0] for line in found.out.splitlines()[1:3]] == ["base", "embedding"]
    assert Path("model.pt2").stat().st_size > 0


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("pets.safetensors", *FAST), 2, "expected --out, found none"),
        (("--out", "model.onnx"), 2, "expected --backbone, found none"),
        (("pets.safetensors", *FAST, "--out", "model.pt2"), 2, "expected --out as FILE.onnx with --format onnx"),
        (
            ("pets.safetensors", *FAST, "--out", "m.pt2", "--format", "torch", "--weights", "int8"),
            2,
            "--weights float32",
        ),
        (("pets.safetensors", *FAST, "--out", "model.onnx", "--weights", "int4"), 2, "float32, float16, int8"),
        (
            ("pets.safetensors", *FAST, "--out", "model.onnx", "--tolerance", "-1"),
            2,
            "expected --tolerance as a finite",
        ),
        (("pets.safetensors", *FAST, "--out", "model.onnx", "--parity", "nothing"), 2, "nothing"),
        (("strange.safetensors", *FAST, "--out", "model.onnx"), 1, "strange"),
        (("missing.safetensors", *FAST, "--out", "model.onnx"), 1, "missing.safetensors"),
    ],
)
def test_errors(words: tuple[str, ...], code: int, message: str, workspace: Path, run: Run) -> None:
    found = run("export", *words)
    assert (found.code, found.out) == (code, "")
    assert message in found.error
    assert not Path("model.onnx").exists()
    assert "--out" in USAGE
