"""The tables of layouts.py: complete, and written down in the documentation."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from memtok.checkpoint.architectures.common import ACTIVATIONS as TIMM_ACTIVATIONS
from memtok.checkpoint.layouts import ACTIVATIONS, DEIT_TEACHER, DINOV2_SWIGLU, LAYOUTS, LEFT_OUT, MODEL_TYPES
from memtok.checkpoint.processors import USUAL_PROCESSORS


def test_every_model_type_has_a_layout_and_a_usual_preprocessing() -> None:
    assert set(MODEL_TYPES.values()) == LAYOUTS.keys() == USUAL_PROCESSORS.keys()


def test_every_activation_is_one_of_timms() -> None:
    assert set(ACTIVATIONS.values()) <= set(TIMM_ACTIVATIONS.values())


def test_tables_name_a_layer_on_both_sides_or_on_none() -> None:
    for modules in (*(layout.modules for layout in LAYOUTS.values()), DEIT_TEACHER, DINOV2_SWIGLU):
        for target, sources in modules.items():
            assert sources
            assert all(("{}" in source) == ("{}" in target) for source in sources)


def test_docs_list_what_is_left_out(root: Path) -> None:
    """docs/backbones.md has one row per rule, with its pattern and its reason."""
    rows = (root / "docs" / "backbones.md").read_text(encoding="utf-8").splitlines()
    for rule in LEFT_OUT:
        pattern = rule.pattern.replace("|", r"\|")  # as a cell of a table has it
        found = [row for row in rows if f"`{pattern}`" in row and rule.reason in row]
        assert len(found) == 1, rule
        assert all(f"`{layout}`" in found[0] for layout in rule.layouts), rule


def test_docs_list_every_model_type_and_activation(root: Path) -> None:
    text = (root / "docs" / "backbones.md").read_text(encoding="utf-8")
    for name in (*MODEL_TYPES, *ACTIVATIONS):
        assert re.search(rf"`{re.escape(name)}`", text), name


@pytest.mark.slow
def test_transformers_is_not_imported() -> None:
    """It is no dependency; its checkpoints are read by the names in their files."""
    code = "import sys, memtok.checkpoint; print([name for name in sys.modules if name.startswith('transformers')])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
