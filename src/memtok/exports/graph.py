"""A program of `torch.export` as one ONNX file: outputs under their names, and memtok's description in its metadata."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from memtok.errors import Argument, MemtokError
from memtok.exports.description import INPUT, KEY, Description
from memtok.exports.program import TRUNK
from memtok.exports.progress import CONVERTING, SMALLER, Begin
from memtok.exports.weights import as_float16, as_int8

LARGEST = 2**31 - 1
"""Bytes that a file of the format protobuf, and so one ONNX file, can hold."""

BATCH = "batch"  # the name of the dimension that is dynamic


def onnx_bytes(program: ExportedProgram, description: Description, names: Sequence[str], begin: Begin) -> bytes:
    """The content of the ONNX file of a program whose outputs are `names` in order; the output TRUNK is not kept.

    begin: told of each stage. Raises MemtokError for a model of more than 2 GiB.
    """
    begin(CONVERTING)
    with quiet():
        written: Any = torch.onnx.export(program, dynamo=True, input_names=[INPUT], verbose=False)
    graph = written.model.graph
    fold_transposes(graph)
    trunk = trunk_products(graph, names)
    tidy(written.model, description, names)
    check_size(sum(value.const_value.nbytes for value in graph.initializers.values()), of="float32")
    proto = written.model_proto
    if description.weights in SMALLER:
        begin(SMALLER[description.weights])
    if description.weights == "float16":
        as_float16(proto)
    elif description.weights == "int8":
        proto = as_int8(proto, trunk)
    entry = proto.metadata_props.add()
    entry.key, entry.value = KEY, description.to_json()
    check_size(proto.ByteSize(), of=description.weights)
    content: bytes = proto.SerializeToString()
    return content


def check_size(size: int, of: str) -> None:
    """MemtokError for what does not fit into one file."""
    if size > LARGEST:
        raise MemtokError(
            f"expected a model of at most {LARGEST / 2**30:.2f} GiB for one ONNX file, found {size / 2**30:.2f} GiB of "
            f"{of} weights; take a smaller backbone, or {Argument('format', 'torch')}, which has no limit"
        )


def fold_transposes(graph: Any) -> None:
    """Stores weights as products read them, in place; the exporter leaves large ones to be transposed at run time."""
    from onnx_ir import Value, tensor

    for node in list(graph):
        if node.op_type != "Transpose" or not node.inputs[0].is_initializer():
            continue
        (turned,) = node.outputs
        order = node.attributes["perm"].as_ints() if "perm" in node.attributes else None
        values = np.ascontiguousarray(node.inputs[0].const_value.numpy().transpose(order))
        constant = Value(name=f"{turned.name}_stored", shape=turned.shape, type=turned.type, const_value=tensor(values))
        graph.register_initializer(constant)
        turned.replace_all_uses_with(constant)
        graph.remove(node, safe=True)


def trunk_products(graph: Any, names: Sequence[str]) -> list[str]:
    """The names of the matrix products of the trunk: those of a constant matrix that the output TRUNK depends on.

    No task writes to the trunk, so what leads to the trunk's output is the trunk, whatever weights the tasks share.
    """
    if TRUNK not in names:
        return []
    waiting, seen = [graph.outputs[names.index(TRUNK)].producer()], set[str]()
    found = []
    while waiting:
        node = waiting.pop()
        if node is None or node.name in seen:
            continue
        seen.add(node.name)
        waiting += [value.producer() for value in node.inputs if value is not None]
        if node.op_type == "MatMul" and node.inputs[1].is_initializer() and len(node.inputs[1].shape) == 2:
            found.append(node.name)
    if not found:
        raise MemtokError(
            "expected products of the trunk to quantise, found none in the exported graph; take "
            f"{Argument('weights', 'float32')}"
        )
    return sorted(found)


def tidy(model: Any, description: Description, names: Sequence[str]) -> None:
    """Names the outputs, drops what is not one of them, and what the exporter noted of the machine it ran on."""
    from onnx_ir import Shape
    from onnx_ir.passes import common

    graph = model.graph
    for index in reversed(range(len(names))):
        if names[index] not in description.outputs:
            del graph.outputs[index]
    common.RemoveUnusedNodesPass()(model)
    common.DeduplicateInitializersPass(size_limit=LARGEST)(model)  # weights that trunk and tasks share, transposed
    kept = [name for name in names if name in description.outputs]
    rename(graph, dict(zip(kept, graph.outputs, strict=True)))
    common.ClearMetadataAndDocStringPass()(model)  # stack traces, with paths of the machine
    symbol = str(graph.inputs[0].shape[0])
    for value in values_of(graph):
        if value.shape is not None:
            value.shape = Shape([BATCH if str(dim) == symbol else dim for dim in value.shape])
    graph.name = KEY
    model.producer_name, model.producer_version = KEY, description.memtok


def rename(graph: Any, outputs: dict[str, Any]) -> None:
    """Gives outputs their names; what had such a name before, such as a value called `linear`, gets another one."""
    taken = {str(value.name) for value in values_of(graph)} | outputs.keys() | {INPUT}
    for value in values_of(graph):
        if value.name in outputs or (value.name == INPUT and value is not graph.inputs[0]):
            number = next(number for number in range(len(taken) + 1) if f"{value.name}_{number}" not in taken)
            value.name = f"{value.name}_{number}"
            taken.add(value.name)
    for name, value in outputs.items():
        value.name = name


def values_of(graph: Any) -> Iterator[Any]:
    """All values of a graph: inputs, constants, and what its nodes compute."""
    sources: Iterable[Any] = (graph.inputs, list(graph.initializers.values()), *(node.outputs for node in graph))
    for values in sources:
        yield from values


@contextmanager
def quiet() -> Iterator[None]:
    """Hides what torch's exporter and its optimiser say of themselves, which no user can act on."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
