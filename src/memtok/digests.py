"""SHA-256 over what is written to files and read again, so that a damaged file is refused and not believed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from memtok.errors import MemtokError
from memtok.files import write_json

T = TypeVar("T")

SEAL = "sha256"  # the key of a JSON object's digest over all its other keys


def digest_of(parts: Iterable[Any]) -> str:
    """`sha256:` over byte strings, or one-dimensional arrays of bytes, each with its length before it."""
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "little"))
        total.update(part)
    return f"sha256:{total.hexdigest()}"


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with the digest of its content, as `unsealed` reads it."""
    return {**value, SEAL: json_digest(value)}


def unsealed(value: Any) -> dict[str, Any]:
    """The same without its digest, where there is one (version 0.1 wrote none); ValueError if it is not the content's.

    A key that is damaged itself stays in the object, where whoever reads it refuses what it does not know.
    """
    content = {name: one for name, one in dict(value).items() if name != SEAL}
    if SEAL in value and value[SEAL] != json_digest(content):
        raise ValueError("its checksum is not that of its content")
    return content


def json_digest(value: Mapping[str, Any]) -> str:
    """`sha256:` over a JSON object, in whatever order its keys stand."""
    return digest_of([json.dumps(value, sort_keys=True, allow_nan=False).encode()])


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON object with the digest of its content, atomically."""
    write_json(path, sealed(value))


def read_sealed(path: Path, what: str, parse: Callable[[dict[str, Any]], T], anew: str) -> T | None:
    """What `parse` makes of what `write_sealed` wrote; None where there is no file.

    MemtokError for a file that is damaged or something else, which says `what` was expected and how to start `anew`.
    parse: raises ValueError, TypeError or KeyError for an object that is none of its own, or its own MemtokError.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError(f"found a {type(value).__name__}")
        return parse(unsealed(value))
    except FileNotFoundError:
        return None
    except MemtokError:
        raise
    except OSError as error:
        raise MemtokError(f"expected to read {path}, found: {error.strerror}; check its permissions") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise MemtokError(f"expected {what} in {path}, found a damaged file; {anew}") from error
