"""SHA-256 over what is written to files and read again, so that a damaged file is refused and not believed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

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
