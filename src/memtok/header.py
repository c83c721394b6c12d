"""Headers of safetensors files and of task files, read without torch and without touching the numbers.

The format (huggingface/safetensors): eight bytes with the length of a JSON object, the object (name -> dtype, shape,
offsets, and `__metadata__`, a table of strings), then the numbers. A file that is no such thing is named for what it
is; nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memtok.errors import MemtokError
from memtok.parts import CHOICES, TENSORS
from memtok.regular import check_regular

FORMAT_VERSION = 1  # of task files
LARGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors library
DIGEST = "digest"  # the header's field that covers all others
PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True)
class StoredTensor:
    """What a header says of one tensor: dtype as safetensors writes it ("F32"), and shape."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class Header:
    """metadata: the free table of strings. tensors: by name, in the file's order. nbytes: size of the whole file."""

    metadata: dict[str, str]
    tensors: dict[str, StoredTensor]
    nbytes: int


def read_safetensors_header(path: str | Path) -> Header:
    """Reads and checks the header; MemtokError for a file that is missing, truncated, or of another kind."""
    place = Path(path)
    check_regular(place, "a safetensors file")
    if place.is_dir():
        raise MemtokError(f"expected a safetensors file, found the folder {place}; name the file in it")
    try:
        size = place.stat().st_size
        with place.open("rb") as stream:
            start = stream.read(8)
            length = int.from_bytes(start, "little")
            body = stream.read(length) if len(start) == 8 and length <= min(size, LARGEST_HEADER) else b""
    except FileNotFoundError as error:
        raise MemtokError(f"expected the file {place}, found none there; check the path") from error
    except OSError as error:
        raise MemtokError(f"expected to read {place}, found: {error.strerror}; check its permissions") from error
    # The first bytes of a good file are a length, which may look like a pickle's: only a body that is none tells.
    whole = len(start) == 8 and len(body) == length and body.startswith(b"{")
    if not whole and start.startswith(PICKLE_STARTS):
        raise MemtokError(
            f"expected a safetensors file, found a pickle or PyTorch checkpoint in {place}; memtok never unpickles, "
            "so convert it to safetensors first"
        )
    if not whole:
        raise MemtokError(
            f"expected a safetensors file, found something else or a truncated one in {place}; get it again"
        )
    return Header(*parse_header(place, body, size - 8 - length), size)


def parse_header(path: Path, body: bytes, data_bytes: int) -> tuple[dict[str, str], dict[str, StoredTensor]]:
    """Metadata and tensors of a header's JSON; `data_bytes` is what the file holds after it."""
    try:
        parsed: dict[str, Any] = json.loads(body, object_pairs_hook=without_repeats)
        metadata = dict(parsed.pop("__metadata__", {}))
        tensors = {
            name: StoredTensor(
                str(entry["dtype"]),
                tuple(int(size) for size in entry["shape"]),
                int(entry["data_offsets"][1]) - int(entry["data_offsets"][0]),
            )
            for name, entry in parsed.items()
        }
        end = max((int(entry["data_offsets"][1]) for entry in parsed.values()), default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        raise MemtokError(
            f"expected the header of a safetensors file, found a damaged one in {path}; get it again"
        ) from error
    if end != data_bytes:
        how = "truncated" if data_bytes < end else "longer than it says"
        raise MemtokError(
            f"expected {end:,} bytes of numbers in {path}, found {data_bytes:,}: the file is {how}; get it again"
        )
    return {str(key): str(value) for key, value in metadata.items()}, tensors


def read_header(path: str | Path) -> list[dict[str, Any]]:
    """The headers of all tasks in a file, in order, without reading a number."""
    return parse_metadata(Path(path), read_safetensors_header(path).metadata)


def parse_metadata(path: Path, metadata: dict[str, str]) -> list[dict[str, Any]]:
    """Task headers from a safetensors file's metadata, checked field by field and against their digests."""
    if "memtok" not in metadata:
        raise MemtokError(
            f"expected a memtok task file, found a safetensors file without its header in {path}; name another"
        )
    try:
        content = json.loads(metadata["memtok"], object_pairs_hook=without_repeats)
        version = content.pop("format_version")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        reason = f" ({error})" if isinstance(error, ValueError) else ""
        raise MemtokError(
            f"expected a task file's header, found a damaged one in {path}{reason}; get the file again"
        ) from error
    if type(version) is not int or version != FORMAT_VERSION:
        raise MemtokError(
            f"expected a task file of format version {FORMAT_VERSION}, found {version!r} in {path}; "
            "read it with the version of memtok that wrote it, or a newer one"
        )
    headers = content.get("tasks", [content])
    if not isinstance(headers, list) or not headers:
        raise MemtokError(f"expected the headers of tasks, found none in {path}; get the file again")
    for header in headers:
        check_header(path, header)
        check_digest(path, header)
    twice = [name for name, count in Counter(header["name"] for header in headers).items() if count > 1]
    if twice:
        raise MemtokError(f"expected tasks of different names in {path}, found {twice[0]!r} twice; get the file again")
    return [{key: value for key, value in header.items() if key != DIGEST} for header in headers]


def without_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads`: an object whose keys all differ; ValueError names one that comes twice."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} comes twice")
        found[key] = value
    return found


def digest_of(fields: Mapping[str, Any]) -> str:
    """`sha256:` over JSON values by name, but for the digest itself: sorted keys, no spaces, ASCII with escapes."""
    covered = {key: value for key, value in fields.items() if key != DIGEST}
    text = json.dumps(covered, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode("ascii")).hexdigest()


def check_digest(path: Path, fields: Mapping[str, Any]) -> None:
    """MemtokError if fields of a header were changed since they were written; version 0.1 wrote no digest."""
    try:
        same = DIGEST not in fields or fields[DIGEST] == digest_of(fields)
    except RecursionError:  # nested deeper than anything that memtok writes
        same = False
    if not same:
        whose = f" of task {fields['name']!r}" if "name" in fields else ""
        raise MemtokError(
            f"expected the header{whose} in {path} to match its digest, found that a name or another field was "
            "changed; get the file again"
        )


def tensors_of(headers: Sequence[Mapping[str, Any]], names: Iterable[str]) -> tuple[list[dict[str, str]], list[str]]:
    """Which tensors belong to which task: for each header {name in the task: name in the file}, and those of none."""
    names = list(names)
    if len(headers) == 1 and "class_tokens" in names:
        return [{name: name for name in names}], []
    owners = {f"tasks.{header['name']}.{key}": (index, key) for index, header in enumerate(headers) for key in TENSORS}
    own: list[dict[str, str]] = [{} for _ in headers]
    left = []
    for name in names:
        if name not in owners:
            left.append(name)
            continue
        index, key = owners[name]
        own[index][key] = name
    return own, left


def check_header(path: Path, header: Any) -> None:
    """MemtokError unless `header` has every field of this format in its type."""
    checks: dict[str, Callable[[Any], bool]] = {
        "name": lambda value: isinstance(value, str),
        "classes": lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
        "regime": lambda value: isinstance(value, str),
        "composable": lambda value: isinstance(value, bool),
        **{
            choice.name: lambda value: isinstance(value, str)
            for choice in CHOICES
            if choice.of is None or (isinstance(header, dict) and choice.name in header)
        },
        "backbone": lambda value: texts(value, "fingerprint", "source"),
        "preprocessing": lambda value: isinstance(value, dict),
        "extends": lambda value: isinstance(value, list) and all(texts(item, "name", "fingerprint") for item in value),
        "fingerprint": lambda value: isinstance(value, str),
        "record": lambda value: isinstance(value, dict),
    }
    if not isinstance(header, dict):
        raise MemtokError(
            f"expected a task's header as an object, found {type(header).__name__} in {path}; get the file again"
        )
    for key, fits in checks.items():
        if key not in header or not fits(header[key]):
            raise MemtokError(
                f"expected a valid field {key!r} in the header of {path}, found {header.get(key)!r}; get the file again"
            )


def texts(value: Any, *keys: str) -> bool:
    """Whether `value` is an object with a text under each of these keys."""
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in keys)
