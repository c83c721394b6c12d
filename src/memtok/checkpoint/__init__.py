"""Checkpoints: from any layout of timm and transformers to a frozen timm model, and back to a file.

Read `sources` first (what a source may be), then `conversion` and `layouts` (transformers' names to timm's),
`architecture` (what a timm model is made of, and which are refused), `fingerprint`, `positions` and `processors`.
"""

from __future__ import annotations

from memtok.checkpoint.architecture import check_supported
from memtok.checkpoint.fingerprint import fingerprint_of
from memtok.checkpoint.layouts import LEFT_OUT
from memtok.checkpoint.sources import Checkpoint, is_path, portable_source, read_checkpoint, save_checkpoint

__all__ = [
    "LEFT_OUT",
    "Checkpoint",
    "check_supported",
    "fingerprint_of",
    "is_path",
    "portable_source",
    "read_checkpoint",
    "save_checkpoint",
]
