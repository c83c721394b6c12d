"""docs/api.md: every public name stands in it, and it says what the code says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

import memtok


@pytest.fixture(scope="module")
def script(root: Path) -> ModuleType:
    """scripts/api_page.py as a module."""
    spec = importlib.util.spec_from_file_location("api_page", root / "scripts" / "api_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(script: ModuleType, root: Path) -> None:
    written = (root / "docs" / "api.md").read_text(encoding="utf-8")
    assert written == script.page(), "run: python scripts/api_page.py"


def test_every_public_name_stands_in_it(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in memtok.__all__:
        assert f"memtok.{name}`" in script.page()
    monkeypatch.setattr(memtok, "__all__", [*memtok.__all__, "newcomer"])
    monkeypatch.setattr(memtok, "newcomer", lambda images: images, raising=False)
    assert "### `memtok.newcomer`" in script.page()


def test_signatures_and_docstrings(script: ModuleType) -> None:
    page = script.page()
    assert "    compare_head: bool | None = None,\n" in page
    assert "def load_task(" in page
    assert "    def remove(self, name: str) -> MemoryViT:\n" in page
    assert "Raises MemtokError for a source that cannot be found or read" in page
    assert "_derive" not in page
