"""The file that a saved run lies in: tensors, a JSON header, and a checksum over both. Nothing is ever unpickled."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from memtok.digests import digest_of
from memtok.errors import MemtokError
from memtok.files import atomic_write, first_line

FORMAT = 3  # 1 has no checksum, 1 and 2 hold one task; both are still read
HEADER, CHECKSUM = "memtok-run", "sha256"  # of the safetensors metadata


@dataclass(frozen=True)
class Saved:
    """What a file of a saved run holds: its JSON header and its tensors, on the CPU."""

    header: dict[str, Any]
    tensors: dict[str, Tensor]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `prefix`, without it."""
        found = {key: value for key, value in sorted(self.tensors.items()) if key.startswith(prefix)}
        return {key.removeprefix(prefix): value for key, value in found.items()}


def write_saved(path: Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Writes a saved run, atomically."""
    tensors = {name: value.detach().to("cpu").contiguous() for name, value in tensors.items()}
    text = json.dumps({"format": FORMAT, **header}, allow_nan=False)
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata={HEADER: text, CHECKSUM: checksum(text, tensors)})


def read_saved(path: Path) -> Saved | None:
    """What `write_saved` wrote, None where there is no file; MemtokError if it is something else, or damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as stream:
            metadata = stream.metadata() or {}
            tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 - not a mapping
        header = dict(json.loads(metadata[HEADER]))
        # Version 0.1 wrote no checksum. A damaged name of it is neither of the two.
        known = {1: {HEADER}, 2: {HEADER, CHECKSUM}, FORMAT: {HEADER, CHECKSUM}}
        if set(metadata) != known.get(header["format"]):
            raise ValueError(f"format {header['format']!r} with {', '.join(sorted(metadata))}")
        if CHECKSUM in metadata and metadata[CHECKSUM] != checksum(metadata[HEADER], tensors):
            raise ValueError("damaged: its checksum is not that of its content")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError, RuntimeError) as error:
        raise MemtokError(
            f"expected the state of a run of memtok (format {FORMAT}) in {path}, found something else "
            f"({first_line(error)}); delete it to start anew"
        ) from error
    return Saved(header, tensors)


def checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    """`sha256:` over the text of the header, and over name, type, shape and bytes of every tensor."""

    def parts() -> Iterator[Any]:
        yield text.encode()
        for name, value in sorted(tensors.items()):
            yield f"{name} {value.dtype} {tuple(value.shape)}".encode()
            yield value.flatten().view(torch.uint8).numpy()

    return digest_of(parts())
