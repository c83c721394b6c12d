"""`memtok.export` and `memtok.load_onnx`: files that answer as PyTorch does, with names and preprocessing, or none."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import memtok
from memtok.exports.opened import OnnxModel
from memtok.exports.writing import ExportResult
from tests.exports.comparing import assert_alike
from tests.layers.small_models import small_model
from tests.tiny import tiny_backbone, tiny_images, tiny_task

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

# Names that the exporter gives to values of its own, and one that no identifier could be.
NAMES = ("linear", "val_1", "Hunde & Katzen: ä", "side")


def shallow() -> memtok.Backbone:
    """One layer: exporting takes long, by the number of its operations."""
    return tiny_backbone(depth=1, reg_tokens=1)


def model_of(backbone: memtok.Backbone) -> memtok.MemoryViT:
    """Every kind of part, several class tokens, extension, no cells, and a head alone."""
    first = tiny_task(backbone, NAMES[0], memory=2, queries=2, seed=1)
    return memtok.MemoryViT(
        backbone,
        [
            first,
            tiny_task(backbone, NAMES[1], memory=1, extends=[first], readout=1, readout_rank=2, seed=2, classes=7),
            tiny_task(backbone, NAMES[2], regime="head", readout=2, seed=3),
            tiny_task(backbone, NAMES[3], memory=0, adapter_rank=1, side=3, seed=4),
        ],
    )


@pytest.fixture(scope="module")
def model() -> memtok.MemoryViT:
    return model_of(shallow())


@pytest.fixture(scope="module")
def written(model: memtok.MemoryViT, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExportResult]:
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    return path, memtok.export(model, path, base=True, embedding=True)


@pytest.fixture(scope="module")
def opened(written: tuple[Path, ExportResult]) -> OnnxModel:
    return memtok.load_onnx(written[0])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs in several modes and shapes, one of them no image."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for number, shape in enumerate([(40, 52, 3), (33, 90), (64, 48, 4), (20, 20, 3), (50, 50, 3)]):
        Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{number}.png")
    deep = generator.integers(0, 65536, (44, 36), dtype=np.uint16)
    Image.fromarray(deep).save(folder / "deep.png")
    (folder / "z-broken.png").write_bytes(b"no image")
    return folder


def test_the_file_answers_as_the_model_does(model: memtok.MemoryViT, opened: OnnxModel) -> None:
    assert list(opened(tiny_images(2).numpy())) == [*NAMES, "base", "embedding"]
    assert_alike(model, opened)


def test_the_graph_has_the_names_that_people_know(written: tuple[Path, ExportResult]) -> None:
    content = onnx.load(written[0])
    onnx.checker.check_model(content, full_check=True)

    def shape(value: Any) -> list[str | int]:
        return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]

    assert {value.name: shape(value) for value in content.graph.input} == {"images": ["batch", 3, 32, 32]}
    assert {value.name: shape(value) for value in content.graph.output} == {
        "linear": ["batch", 3],
        "val_1": ["batch", 7],
        NAMES[2]: ["batch", 3],
        "side": ["batch", 3],
        "base": ["batch", 5],
        "embedding": ["batch", 32],
    }
    names = [output for node in content.graph.node for output in node.output]
    names += [constant.name for constant in content.graph.initializer]
    assert Counter(names).most_common(1)[0][1] == 1


def test_memory_is_folded_and_no_weight_is_stored_twice(
    model: memtok.MemoryViT, written: tuple[Path, ExportResult]
) -> None:
    """What memory becomes needs no product with its cells at run time: its keys and values are constants."""
    constants = {
        constant.name: onnx.numpy_helper.to_array(constant) for constant in onnx.load(written[0]).graph.initializer
    }
    own = sum(parameter.nbytes for parameter in model.backbone.parameters())
    assert sum(values.nbytes for values in constants.values()) < own + 20_000
    cells = model.tasks[0].memory[0].detach().numpy()  # (m, D)
    assert not any(values.shape[-2:] == cells.shape and np.array_equal(values, cells) for values in constants.values())


def test_the_metadata_says_what_the_file_is(
    model: memtok.MemoryViT, written: tuple[Path, ExportResult], opened: OnnxModel
) -> None:
    path, result = written
    (entry,) = onnx.load(path).metadata_props
    assert entry.key == "memtok"
    first, second, third, fourth = model.tasks
    assert json.loads(entry.value) == {
        "format": 1,
        "memtok": memtok.__version__,
        "weights": "float32",
        "scores": "logits",
        "input": {"name": "images", "shape": ["batch", 3, 32, 32], "dtype": "float32"},
        "preprocessing": model.preprocessing.to_dict(),
        "backbone": {"source": model.backbone.source, "fingerprint": model.backbone.fingerprint},
        "tasks": [
            {"name": "linear", "classes": list(first.classes), "fingerprint": first.fingerprint, "extends": []},
            {
                "name": "val_1",
                "classes": list(second.classes),
                "fingerprint": second.fingerprint,
                "extends": [{"name": "linear", "fingerprint": first.fingerprint}],
            },
            {"name": NAMES[2], "classes": list(third.classes), "fingerprint": third.fingerprint, "extends": []},
            {"name": "side", "classes": list(fourth.classes), "fingerprint": fourth.fingerprint, "extends": []},
        ],
        "base": {"classes": ["0", "1", "2", "3", "4"]},
        "embedding": {"dim": 32},
    }
    assert opened.description == result.description
    assert opened.names == NAMES
    assert opened.preprocessing == model.preprocessing
    assert opened.classes["val_1"] == tuple(f"class {number}" for number in range(7))


def test_the_file_tells_nothing_of_the_machine(written: tuple[Path, ExportResult], root: Path) -> None:
    content = written[0].read_bytes()
    for place in (root, Path(torch.__file__).parent, Path.home()):
        assert str(place).encode() not in content


def test_the_result_has_the_comparison_on_digits(written: tuple[Path, ExportResult]) -> None:
    path, result = written
    assert (result.path, result.format, result.bytes) == (str(path), "onnx", path.stat().st_size)
    assert result.parity.images == 64
    assert list(result.parity.outputs) == [*NAMES, "base", "embedding"]
    for name, found in result.parity.outputs.items():
        assert found.agreement == (None if name == "embedding" else 1.0)
        assert 0 < found.difference <= 1e-5 * found.largest
    stored = json.loads(json.dumps(result.to_json()))
    assert stored["parity"]["outputs"]["linear"]["agreement"] == 1.0
    assert stored["metadata"]["tasks"][0]["name"] == "linear"


def test_images_are_prepared_bit_by_bit_as_by_the_model(
    model: memtok.MemoryViT, opened: OnnxModel, pictures: Path
) -> None:
    paths = [path for path in sorted(pictures.iterdir()) if path.name != "z-broken.png"]
    expected = model.prepare(paths)
    assert np.array_equal(opened.prepare(paths), expected.numpy())
    images = [Image.open(path) for path in paths]
    assert np.array_equal(opened.prepare(images), expected.numpy())


def test_predictions_are_those_of_the_model(model: memtok.MemoryViT, opened: OnnxModel, pictures: Path) -> None:
    expected = memtok.predict(model, pictures, top=2, base=True)
    found = opened.predict(pictures, top=2, base=True, batch_size=2)
    assert found.left_out == expected.left_out
    assert [Path(path).name for path in found.skipped] == ["z-broken.png"]
    assert [(row.path, row.task) for row in found.rows] == [(row.path, row.task) for row in expected.rows]
    for one, other in zip(found.rows, expected.rows, strict=True):
        assert [name for name, _ in one.ranking] == [name for name, _ in other.ranking]
        assert [share for _, share in one.ranking] == pytest.approx([share for _, share in other.ranking], abs=1e-5)
        assert all(type(share) is float for _, share in one.ranking)
    one = opened.predict(Image.open(pictures / "0.png"), top=99).rows
    assert [(row.path, row.task, len(row.ranking)) for row in one] == [
        ("images[0]", name, count) for name, count in zip(NAMES, (3, 7, 3, 3), strict=True)
    ]


def test_it_answers_without_torch(written: tuple[Path, ExportResult], opened: OnnxModel, pictures: Path) -> None:
    code = (
        "import sys, memtok\n"
        f"rows = memtok.load_onnx({str(written[0])!r}).predict({str(pictures)!r}, top=1).rows\n"
        "print([(row.task, row.answer) for row in rows])\n"
        "print(sorted({'torch', 'torchvision', 'timm', 'onnx', 'safetensors'} & set(sys.modules)))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    answers, loaded = done.stdout.splitlines()
    assert answers == str([(row.task, row.answer) for row in opened.predict(pictures, top=1).rows])
    assert loaded == "[]"


def test_wrong_input_is_refused(opened: OnnxModel, pictures: Path, tmp_path: Path) -> None:
    images = tiny_images(2).numpy()
    for wrong in (images[0], images[:, :, :16], images.astype(np.float64), "images"):
        with pytest.raises(
            memtok.MemtokError, match=r"expected prepared images as a float32 array \(batch, 3, 32, 32\)"
        ):
            opened(wrong)  # type: ignore[arg-type]
    with pytest.raises(memtok.MemtokError, match="expected images as paths or PIL images, found int"):
        opened.predict([3])  # type: ignore[list-item]
    with pytest.raises(memtok.MemtokError, match="found nothing"):
        opened.predict(tmp_path / "missing.png")
    with pytest.raises(memtok.MemtokError, match="expected a readable image"):
        opened.predict(pictures, on_bad_image="fail")
    for wrong in ({"top": 0}, {"batch_size": 0}, {"on_bad_image": "stop"}):
        with pytest.raises(memtok.MemtokError, match=f"expected {next(iter(wrong))}"):
            opened.predict(pictures, **wrong)  # type: ignore[arg-type]


def test_other_files_are_refused(written: tuple[Path, ExportResult], tmp_path: Path) -> None:
    with pytest.raises(memtok.MemtokError, match=r"expected an ONNX file at .*, found none"):
        memtok.load_onnx(tmp_path / "missing.onnx")
    (tmp_path / "broken.onnx").write_bytes(written[0].read_bytes()[:1000])
    with pytest.raises(memtok.MemtokError, match="expected an ONNX file that onnxruntime can read") as caught:
        memtok.load_onnx(tmp_path / "broken.onnx")
    assert "\n" not in str(caught.value)
    with pytest.raises(memtok.MemtokError, match=r"expected providers among .*CPUExecutionProvider.*'NoSuch'"):
        memtok.load_onnx(written[0], providers=["NoSuch"])
    content = onnx.load(written[0])
    (entry,) = content.metadata_props
    text = entry.value
    for wrong, message in (
        (text.replace('"format": 1', '"format": 2'), "expected metadata of version 1 .*, found version 2"),
        (text.replace('"scores": "logits"', '"scores": "odds"'), "'odds' is none of logits, probabilities"),
        (text.replace('"name": "linear", "cl', '"name": "other", "cl'), r"expected the outputs \['other', 'val_1'"),
        ("[]", "expected the metadata that memtok writes"),
        ("{", "expected the metadata that memtok writes"),
    ):
        entry.value = wrong
        onnx.save(content, tmp_path / "other.onnx")
        with pytest.raises(memtok.MemtokError, match=message):
            memtok.load_onnx(tmp_path / "other.onnx")
    del content.metadata_props[:]
    onnx.save(content, tmp_path / "strange.onnx")
    with pytest.raises(memtok.MemtokError, match="without metadata of memtok"):
        memtok.load_onnx(tmp_path / "strange.onnx")


def test_probabilities_in_a_program_of_torch(tmp_path: Path) -> None:
    backbone = shallow()
    model = memtok.MemoryViT(backbone, [tiny_task(backbone, "pets", regime="head")])
    result = memtok.export(model, tmp_path / "model.pt2", format="torch", probabilities=True, images=4)
    assert result.parity.outputs["pets"].largest == 1.0
    extra = {"memtok.json": ""}
    program = torch.export.load(io.BytesIO((tmp_path / "model.pt2").read_bytes()), extra_files=extra)
    assert json.loads(extra["memtok.json"])["scores"] == "probabilities"
    for count in (1, 3):
        found = program.module()(tiny_images(count))
        assert list(found) == ["pets"]
        torch.testing.assert_close(found["pets"], model(tiny_images(count))["pets"].softmax(dim=1))


@pytest.mark.slow
def test_float16_weights_of_all_that_is_large(tmp_path: Path) -> None:
    backbone = shallow()
    model = memtok.MemoryViT(backbone, [tiny_task(backbone, "pets", regime="head")])
    path = tmp_path / "model.onnx"
    memtok.export(model, path, weights="float16", images=4)
    opened = memtok.load_onnx(path)
    assert opened.description.weights == "float16"
    assert_alike(model, opened, tolerance=5e-3)
    kinds = {
        constant.name: constant.data_type
        for constant in onnx.load(path).graph.initializer
        if np.prod(constant.dims) >= 1024
    }
    assert kinds
    assert set(kinds.values()) == {onnx.TensorProto.FLOAT16}


@pytest.mark.slow
def test_int8_weights_of_the_trunk_alone(tmp_path: Path) -> None:
    backbone = tiny_backbone(depth=1, embed_dim=96, num_heads=4)  # so large that the exporter folds none of its weights
    model = memtok.MemoryViT(
        backbone, [tiny_task(backbone, "pets", memory=2, adapter_rank=1), tiny_task(backbone, "head", regime="head")]
    )
    memtok.export(model, tmp_path / "model.onnx", weights="int8", images=8)
    opened = memtok.load_onnx(tmp_path / "model.onnx")
    assert list(opened(tiny_images(1).numpy())) == ["pets", "head"]
    assert_alike(model, opened, tolerance=0.1)
    content = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(content)
    constants = {constant.name: constant for constant in content.graph.initializer}
    products = [node for node in content.graph.node if node.op_type == "MatMulInteger"]
    shapes = sorted(tuple(constants[node.input[1]].dims) for node in products)
    assert shapes == [(96, 96), (96, 288), (96, 384), (384, 96)]  # of the trunk's one layer: no head, no class token
    large = [
        tuple(one.dims)
        for one in constants.values()
        if one.data_type == onnx.TensorProto.FLOAT and np.prod(one.dims) >= 1024
    ]
    assert large == [(1, 17, 96), (96, 3, 8, 8)]  # positions, patch embedding; the class tokens read the int8 weights


def test_what_cannot_be_exported_is_refused_before_the_work(
    model: memtok.MemoryViT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, path = model.backbone, tmp_path / "model.onnx"
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (backbone, {}, "expected a model to export, found Backbone"),
        (memtok.MemoryViT(backbone), {}, "expected an output to export, found a model without tasks"),
        (memtok.MemoryViT(backbone, [tiny_task(backbone, "images", regime="head")]), {}, "other names than 'images'"),
        (
            memtok.MemoryViT(backbone, [tiny_task(backbone, "embedding", regime="head")]),
            {"embedding": True},
            "'embedding'",
        ),
        (model, {"format": "tflite"}, "expected format onnx, torch, found 'tflite'"),
        (model, {"weights": "int4"}, "expected weights float32, float16, int8, found 'int4'"),
        (model, {"format": "torch", "weights": "int8"}, "expected weights='float32' with format='torch'"),
        (model, {"images": 0}, "expected images"),
        (model, {"tolerance": float("nan")}, "expected tolerance as a number of 0 or more, found nan"),
        (model, {"parity": "no-such-data"}, "no-such-data"),
    ]
    for given, arguments, message in cases:
        with pytest.raises(memtok.MemtokError, match=message):
            memtok.export(given, path, **arguments)
    half = memtok.load_backbone(small_model("vit", depth=1, num_classes=0), dtype=torch.bfloat16)
    task = tiny_task(half, "pets", regime="head")
    with pytest.raises(memtok.MemtokError, match=r"expected a model in torch.float32 on the CPU"):
        memtok.export(memtok.MemoryViT(half, [task]), path)
    monkeypatch.setattr("memtok.exports.writing.PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(memtok.MemtokError, match=r"found no no_such_package; pip install 'memtok\[onnx\]'"):
        memtok.export(model, path)
    assert list(tmp_path.iterdir()) == []


def test_a_model_beyond_one_file_is_refused() -> None:
    from memtok.exports import graph  # it needs onnx

    with pytest.raises(memtok.MemtokError, match=r"at most 2.00 GiB for one ONNX file, found 3.00 GiB of float32"):
        graph.check_size(3 * 2**30, of="float32")
    graph.check_size(2**31 - 1, of="float32")


def test_answers_that_are_no_numbers_are_no_parity(written: tuple[Path, ExportResult]) -> None:
    parity = written[1].parity
    broken = replace(
        parity, outputs={"a": parity.outputs["linear"], "b": replace(parity.outputs["linear"], difference=float("nan"))}
    )
    with pytest.raises(memtok.MemtokError, match="found nan in 'b'") as caught:
        broken.check()
    assert caught.value.argument == "tolerance"


@pytest.mark.slow
def test_a_task_that_does_not_compose_has_the_pass_that_it_changes_in_int8(tmp_path: Path) -> None:
    backbone = shallow()
    model = memtok.MemoryViT(backbone, [tiny_task(backbone, "pets", regime="memory-shared", memory=2)])
    memtok.export(model, tmp_path / "model.onnx", weights="int8", images=4)
    assert_alike(model, memtok.load_onnx(tmp_path / "model.onnx"), tolerance=0.1)
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node)
    assert kinds["MatMulInteger"] == 5  # four of the layer, and keys and values of its memory
