"""Files that come with memtok: a small backbone and the handwritten digits. Where they are from: LICENSES.md."""

from __future__ import annotations

from pathlib import Path

from memtok.errors import MemtokError


def shipped_backbone() -> Path:
    """The folder of the small pre-trained backbone, in timm's layout."""
    folder = Path(__file__).resolve().parent / "small-vit"
    if not (folder / "config.json").is_file():
        raise MemtokError(
            f"expected the small backbone that comes with memtok in {folder}, found none; install it again"
        )
    return folder
