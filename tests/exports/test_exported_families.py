"""Exported files answer as PyTorch does, for every family of backbones and for tasks of every kind of part."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import memtok
from tests.checkpoint import test_stems
from tests.exports.comparing import assert_alike
from tests.layers.small_models import MODELS, small_model
from tests.tiny import VARIANTS, tiny_task

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

STEMS = tuple(test_stems.NAMES)  # convolutional ones
DEEP = ("vit", "beit, bias per layer", "rotary, mixed")  # positions differ by layer in the last two
OTHERWISE = ("rotary, no class token", "no class token, attention pooling", "beit, shared bias")

pytestmark = pytest.mark.slow


def backbone_of(name: str) -> memtok.Backbone:
    """One layer, where two add nothing: exporting takes long, by the number of operations."""
    if name in STEMS:
        return memtok.load_backbone(test_stems.stemmed(name))
    return memtok.load_backbone(small_model(name, depth=2 if name in DEEP else 1))


def every_part(backbone: memtok.Backbone) -> list[memtok.Task]:
    """Tasks with each kind of part, alone and beside others.

    A random side stream of 3 numbers would magnify rounding: each layer normalises them.
    """
    first = tiny_task(backbone, "two class tokens", memory=2, queries=2, seed=1)
    return [
        first,
        tiny_task(backbone, "extension", memory=1, extends=[first], readout=1, readout_rank=2, classes=7, seed=2),
        tiny_task(backbone, "no cells", memory=0, adapter_rank=1, side=8, seed=3),
        tiny_task(backbone, "readout", regime="readout", readout=2, seed=4),
        tiny_task(backbone, "side", regime="side", side=8, seed=5),
        tiny_task(backbone, "head", regime="head", seed=6),
    ]


@pytest.mark.parametrize("name", [*sorted(MODELS), *STEMS])
def test_every_family_with_every_part(name: str, tmp_path: Path) -> None:
    backbone = backbone_of(name)
    tasks = every_part(backbone)
    model = memtok.MemoryViT(backbone, tasks)
    result = memtok.export(model, tmp_path / "model.onnx", base=True, embedding=True, images=4)
    opened = memtok.load_onnx(tmp_path / "model.onnx")
    assert_alike(model, opened, batches=(1, 3))
    about = opened.description
    assert about == result.description
    assert about.outputs == (*(task.name for task in tasks), "base", "embedding")
    assert [(task.name, task.classes, task.fingerprint) for task in about.tasks] == [
        (task.name, tuple(task.classes), task.fingerprint) for task in tasks
    ]
    assert [task.extends for task in about.tasks] == [
        (), (("two class tokens", tasks[0].fingerprint),), (), (), (), (),
    ]  # fmt: skip
    assert about.base == ("0", "1", "2", "3", "4")
    assert about.embedding == backbone.dim
    assert about.preprocessing == model.preprocessing
    assert (about.backbone, about.fingerprint) == (backbone.source, backbone.fingerprint)


@pytest.mark.parametrize(("weights", "tolerance"), [("float16", 5e-3), ("int8", 0.15)])
@pytest.mark.parametrize("name", OTHERWISE)
def test_smaller_weights_of_other_families(name: str, weights: str, tolerance: float, tmp_path: Path) -> None:
    backbone = backbone_of(name)
    memory = tiny_task(backbone, "memory", memory=2, queries=2, seed=1)
    model = memtok.MemoryViT(backbone, [memory, tiny_task(backbone, "both", regime="readout", readout=1, side=8)])
    memtok.export(model, tmp_path / "model.onnx", weights=weights, embedding=True, images=4)
    opened = memtok.load_onnx(tmp_path / "model.onnx")
    assert opened.description.weights == weights
    assert opened.description.outputs == ("memory", "both", "embedding")
    assert_alike(model, opened, tolerance, batches=(1, 3))
    graph = onnx.load(tmp_path / "model.onnx").graph
    kinds = {one.data_type for one in graph.initializer if np.prod(one.dims) >= 1024}
    products = Counter(node.op_type for node in graph.node)
    if weights == "float16":
        assert kinds == {onnx.TensorProto.FLOAT16}
    else:
        assert products["MatMulInteger"] >= 4  # of the layer: queries, keys and values; of attention; two of the MLP


@pytest.mark.parametrize("regime", VARIANTS)
@pytest.mark.parametrize("name", ["eva02", "no class token, attention pooling"])
def test_tasks_that_do_not_compose(name: str, regime: str, tmp_path: Path) -> None:
    backbone = backbone_of(name)
    memory = 0 if regime == "head+class" else 2
    model = memtok.MemoryViT(backbone, [tiny_task(backbone, regime=regime, memory=memory)])
    memtok.export(model, tmp_path / "model.onnx", base=True, embedding=True, images=4)
    assert_alike(model, memtok.load_onnx(tmp_path / "model.onnx"), batches=(1, 3))
