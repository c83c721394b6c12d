"""Checkpoints of the public reproduction, read as tasks. See docs/coming-from-the-reproduction.md.

files.py finds and loads them, state.py accounts for every tensor and reads the attention mask, tasks.py compares the
backbone inside and makes the tasks.
"""

from memtok.legacy.files import PUBLISHED, REPOSITORY, legacy_files
from memtok.legacy.tasks import legacy_backbone, read_legacy

__all__ = ["PUBLISHED", "REPOSITORY", "legacy_backbone", "legacy_files", "read_legacy"]
