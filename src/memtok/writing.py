"""Writes task files from headers and tensors; what they say is in `memtok.header`, reading them in `memtok.bundle`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from memtok.checkpoint import portable_source
from memtok.checks import check_classes, check_name
from memtok.errors import MemtokError
from memtok.files import atomic_write
from memtok.header import DIGEST, FORMAT_VERSION, digest_of, without_repeats
from memtok.parts import TENSORS

Content = tuple[dict[str, Any], dict[str, Tensor]]
"""Of one task: its header without the digest, and its tensors under their plain names."""


def write_tasks(tasks: Sequence[Content], path: str | Path) -> None:
    """Writes tasks, atomically, each header with a new digest.

    MemtokError for no task, two of one name, other tensors than tasks have, or broken numbers.
    """
    if not tasks:
        raise MemtokError("expected at least one task to write, found none; name some")
    names: set[str] = set()
    tensors: dict[str, Tensor] = {}
    for header, own in tasks:
        check_content(header, own)
        name = header["name"]
        if name in names:
            raise MemtokError(f"expected tasks of different names in one file, found {name!r} twice; rename one")
        names.add(name)
        prefix = "" if len(tasks) == 1 else f"tasks.{name}."
        tensors |= {prefix + key: tensor.detach().to("cpu").contiguous() for key, tensor in own.items()}
    headers = [with_digest(header) for header, _ in tasks]
    content = headers[0] if len(tasks) == 1 else {"tasks": headers}
    # ASCII with escapes, for the name of a folder in a record may be no UTF-8.
    metadata = {"memtok": json.dumps({"format_version": FORMAT_VERSION, **content})}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def check_content(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """MemtokError unless a task can be written: its names, the names of its tensors, finite numbers."""
    name = check_name(header["name"])
    for key, tensor in tensors.items():
        if key not in TENSORS:
            raise MemtokError(f"expected no tensor {key} in task {name!r}, found one; not this format")
        if not bool(torch.isfinite(tensor).all()):
            raise MemtokError(f"expected finite numbers in {key} of task {name!r}, found others; train it again")
    if len(check_classes(header["classes"])) != len(tensors["head.bias"]):
        raise MemtokError(
            f"expected {len(tensors['head.bias'])} class names in task {name!r}, found "
            f"{len(header['classes'])}; the file was changed, get it again"
        )


def with_digest(header: dict[str, Any]) -> dict[str, Any]:
    """A header as JSON gives it back, without a path of this machine, and with the digest of just that."""
    backbone = header["backbone"]
    shared = header | {"backbone": backbone | {"source": portable_source(backbone["source"])}}
    try:
        fields = json.loads(json.dumps(shared), object_pairs_hook=without_repeats)
        return {**fields, DIGEST: digest_of(fields)}
    except (TypeError, ValueError, RecursionError) as error:
        raise MemtokError(f"expected a task.record of JSON values, found another ({error}); mend the record") from error
