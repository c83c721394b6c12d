"""Who imports whom, from the sources: no circles, not through imports in functions either; the library stands alone."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PLACES = {"memtok": "src", "memtok_experiments": "experiments", "memtok_benchmarks": "benchmarks"}

Graph = dict[str, set[str]]


def graph_of(package: str, root: Path) -> Graph:
    """Every module of a package with the modules of all three packages that it imports, wherever in its code."""
    modules: dict[str, Path] = {}
    for each, place in PLACES.items():
        for path in sorted((root / place / each).rglob("*.py")):
            name = ".".join(path.relative_to(root / place).with_suffix("").parts)
            modules[name.removesuffix(".__init__")] = path
    return {
        name: imported(path.read_text(encoding="utf-8"), set(modules)) - {name}
        for name, path in modules.items()
        if name.split(".")[0] == package
    }


def imported(code: str, modules: set[str]) -> set[str]:
    """Those of `modules` that some statement in `code` imports; `from a import b` is a.b where that is a module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "expected absolute imports only"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else str(node.module) for name in inner}
    return found & modules


def circle(graph: Graph) -> list[str]:
    """The modules of a circle, the first one again at the end; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_a_circle_is_found() -> None:
    names = {"a", "a.b", "a.c"}
    code = {"a": "", "a.b": "def f():\n    from a import c", "a.c": "if True:\n    from a.b import anything"}
    assert set(circle({name: imported(text, names) for name, text in code.items()})) == {"a.b", "a.c"}
    assert imported("import a.b\nfrom a import anything\nimport torch", names) == {"a", "a.b"}


@pytest.mark.parametrize("package", PLACES)
def test_no_circles(root: Path, package: str) -> None:
    assert circle(graph_of(package, root)) == []


@pytest.mark.parametrize("package", PLACES)
def test_nothing_beside_itself_and_the_library(root: Path, package: str) -> None:
    """The library imports neither experiments nor benchmarks, and these do not import each other."""
    graph = graph_of(package, root)
    assert graph
    found = {(name, other) for name, others in graph.items() for other in others}
    assert {(name, other) for name, other in found if other.split(".")[0] not in (package, "memtok")} == set()
