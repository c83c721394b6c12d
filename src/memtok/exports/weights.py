"""Smaller weights of an ONNX model: float16 as they are stored, or int8 in the products of the trunk."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

SMALL = 1024
"""Constants of fewer numbers (biases, norms, shapes) stay float32: together they weigh nothing."""

PREPARED = ("onnx.quant.pre_process", "onnxruntime.quant")
"""The entry by which onnxruntime knows that shapes are inferred and constants folded, which torch's exporter did."""


def as_float16(model: onnx.ModelProto) -> None:
    """Stores the large float32 constants as float16, each with a cast before its use, in place.

    What is computed stays float32. A constant with a number that float16 cannot hold stays as it is.
    """
    casts = []
    for constant in model.graph.initializer:
        if constant.data_type != onnx.TensorProto.FLOAT or np.prod(constant.dims) < SMALL:
            continue
        values = numpy_helper.to_array(constant)
        if np.abs(values).max() > np.finfo(np.float16).max:
            continue
        name = constant.name
        stored = f"{name}_float16"
        constant.CopyFrom(numpy_helper.from_array(values.astype(np.float16), stored))
        casts.append(helper.make_node("Cast", [stored], [name], f"{stored}_cast", to=onnx.TensorProto.FLOAT))
    put_first(model.graph, casts)


def as_int8(model: onnx.ModelProto, products: Sequence[str]) -> onnx.ModelProto:
    """The model with int8 weights in these matrix products, by onnxruntime's dynamic quantisation.

    Weights are int8 per output channel; what is multiplied by them becomes uint8 per tensor at run time. A weight that
    others multiply with too, as the tasks' class tokens do with those of the trunk, is stored once: they read the same
    int8 numbers as float32.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    prepared = model.metadata_props.add()
    prepared.key, prepared.value = PREPARED
    with tempfile.TemporaryDirectory(prefix="memtok-") as folder:
        place = Path(folder) / "model.onnx"
        quantize_dynamic(
            model,
            place,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=list(products),
        )
        quantised = onnx.load(place)
    del quantised.metadata_props[:]
    share(quantised.graph)
    return quantised


def share(graph: onnx.GraphProto) -> None:
    """Reads a weight that stands there as float32 and as int8 from its int8 numbers alone, in place."""
    constants: dict[str, Any] = {constant.name: constant for constant in graph.initializer}
    nodes = []
    for name, constant in constants.items():
        stored, scale = f"{name}_quantized", f"{name}_scale"
        if stored in constants and scale in constants:
            graph.initializer.remove(constant)
            widened = f"{name}_widened"
            nodes.append(helper.make_node("Cast", [stored], [widened], f"{widened}_cast", to=onnx.TensorProto.FLOAT))
            nodes.append(helper.make_node("Mul", [widened, scale], [name], f"{widened}_scaled"))
    put_first(graph, nodes)


def put_first(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Puts nodes that read constants alone before all others."""
    others = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *others])
