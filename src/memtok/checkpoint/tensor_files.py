"""The tensors of a checkpoint: read from safetensors files, copied into a model. Pickles are never opened."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from memtok.checkpoint.architectures.common import shape_text
from memtok.errors import MemtokError, one_line
from memtok.header import read_safetensors_header

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name and the metadata of a safetensors file; MemtokError if it is truncated or something else."""
    metadata = read_safetensors_header(path).metadata
    try:
        with safe_open(path, framework="pt") as stored:
            return {name: stored.get_tensor(name) for name in stored.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise MemtokError(
            f"expected a whole safetensors file, found a damaged one in {path} ({one_line(error)}); get it again"
        ) from error


def read_folder_tensors(folder: Path, label: str) -> dict[str, Tensor]:
    """All tensors of a checkpoint folder: `model.safetensors`, else the files of its index.

    label: the name of the folder in errors. MemtokError if there is neither, or a file or tensor is missing.
    """
    if (folder / WEIGHTS).is_file():
        return read_tensors(folder / WEIGHTS)[0]
    if not (folder / INDEX).is_file():
        others = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pth", ".pt", ".h5", ".npz"))
        found = f"only {', '.join(others)}, which memtok never opens" if others else "no weights"
        raise MemtokError(f"expected {WEIGHTS} or {INDEX} in {label}, found {found}; save the model as safetensors")
    places = shard_places(folder)
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(places.values())):
        tensors.update(read_tensors(folder / shard)[0])
    missing = sorted(places.keys() - tensors.keys())
    if missing:
        raise MemtokError(
            f"expected the tensor {missing[0]} in {places[missing[0]]}, as {INDEX} says, found none; get {label} again"
        )
    return tensors


def shard_places(folder: Path) -> dict[str, str]:
    """Tensor name -> file name beside the index, of a checkpoint in several files."""
    places = read_json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not places or any(Path(str(place)).name != place for place in places.values()):
        raise MemtokError(
            f"expected weight_map, from tensors to files of the same folder, in {folder / INDEX}, found another thing; "
            "get the file again"
        )
    return {str(name): str(place) for name, place in places.items()}


def read_json(path: Path) -> dict[str, object]:
    """A JSON object; MemtokError for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MemtokError(f"expected JSON in {path}, found: {one_line(error)}; get the file again") from error
    if not isinstance(content, dict):
        raise MemtokError(f"expected a JSON object in {path}, found {type(content).__name__}; get the file again")
    return content


def load_tensors(vit: nn.Module, tensors: Mapping[str, Tensor], called: Mapping[str, str] | None = None) -> None:
    """Copies checkpoint tensors into `vit`, whatever their precision. Every one must be there, none may be left.

    called: the name of each tensor in the checkpoint, for errors. MemtokError names the first wrong tensor.
    """
    called = called or {}
    expected = vit.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        label = called.get(name, name)
        if name not in tensors:
            raise MemtokError(f"expected the tensor {label}, found none in the checkpoint; get it again")
        if name not in expected:
            raise MemtokError(
                f"expected no tensor {label} in a model of this architecture, found one in the checkpoint; "
                "check that the architecture is the right one"
            )
        if tensors[name].shape != expected[name].shape:
            raise MemtokError(
                f"expected {label} of shape {shape_text(expected[name].shape)}, found "
                f"{shape_text(tensors[name].shape)} in the checkpoint; check that the architecture is the right one"
            )
        if tensors[name].is_floating_point() != expected[name].is_floating_point():  # stems have counters of steps
            raise MemtokError(
                f"expected {label} in floating point, found {tensors[name].dtype}; memtok reads no quantised checkpoint"
            )
    vit.load_state_dict(dict(tensors), strict=True)
