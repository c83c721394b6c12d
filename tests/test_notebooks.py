"""The notebooks run from top to bottom, as somebody would run them, on small data; warnings are errors."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import memtok

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "notebooks"

# What replaces the values of the cell tagged `parameters`. PHOTOS is a folder of few images; one that is not there
# stands for a data set that cannot be downloaded.
SMALLER = {
    "fine_tuning_and_the_mask": "DATA, STEPS, BATCH_SIZE = 'PHOTOS', 2, 8",
    "large_data_sets": "DATA, FALLBACK, STEPS, BATCH_SIZE = 'folder:not-there', 'PHOTOS', 6, 8",
    "concatenation": "DATA, STEPS, BATCH_SIZE = 'PHOTOS', 2, 8",
    "mnist_from_scratch": "DATA, STEPS = 'PHOTOS', 2",
    "where_a_class_token_looks": "DATA, STEPS, BATCH_SIZE = 'PHOTOS', 2, 8",
}
FIRST = """
import warnings
warnings.simplefilter("error")
warnings.filterwarnings("ignore", message="IProgress not found")  # a bar of tqdm's, without ipywidgets
warnings.filterwarnings("ignore", module="ipykernel")
"""


def read(name: str) -> Any:
    """A notebook, format 4."""
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def printed(notebook: Any) -> str:
    """All that its cells wrote."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "\n".join(output["text"] for output in outputs if output["output_type"] == "stream")


def pictures(notebook: Any) -> int:
    """How many figures it drew."""
    return sum("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Handwritten digits as a folder, four of each to train on and two each to validate and to test on."""
    folder = tmp_path_factory.mktemp("photos")
    digits = memtok.open_data("digits")
    for part, images, count in (("train", digits.train, 4), ("val", digits.validation, 2), ("test", digits.test, 2)):
        for name in digits.classes:
            (folder / part / name).mkdir(parents=True)
            for number, index in enumerate(np.flatnonzero(images.labels == int(name))[:count]):
                images[index][0].save(folder / part / name / f"{number}.png")
    return folder


@pytest.fixture
def runtime() -> Iterator[Path]:
    """A folder for the kernel's sockets; its path has to be short."""
    with tempfile.TemporaryDirectory(prefix="memtok-") as folder:
        yield Path(folder)


def execute(name: str, smaller: str, runtime: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The notebook after it ran in a kernel of its own, in its folder."""
    from jupyter_client import AsyncKernelManager

    class LocalKernel(AsyncKernelManager):
        """Talks over sockets in the file system, so that no port is opened."""

        def __init__(self, **more: Any) -> None:
            super().__init__(transport="ipc", ip=str(runtime / "kernel"), **more)

    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(runtime))
    environment = {
        **os.environ,
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYTHONPATH": os.pathsep.join(str(ROOT / folder) for folder in ("src", "experiments")),
        "MEMTOK_DATA": str(runtime / "data"),
        "IPYTHONDIR": str(runtime / "ipython"),
    }
    notebook = read(name)
    tagged = [index for index, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1, "one cell is tagged `parameters`"
    notebook.cells.insert(tagged[0] + 1, nbformat.v4.new_code_cell(smaller))
    notebook.cells.insert(0, nbformat.v4.new_code_cell(FIRST))
    client = nbclient.NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        kernel_manager_class=LocalKernel,
        resources={"metadata": {"path": str(FOLDER)}},
    )
    client.execute(env=environment)
    return notebook


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SMALLER))
def test_runs(name: str, photos: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(FOLDER.iterdir())
    notebook = execute(name, SMALLER[name].replace("PHOTOS", f"folder:{photos}"), runtime, monkeypatch)
    said = printed(notebook)
    assert pictures(notebook) == sum("plt.show()" in cell.source for cell in notebook.cells) > 0
    if name != "where_a_class_token_looks":
        assert re.search(r"(verified|the data's): True", said)
    if name == "large_data_sets":
        assert f"SHOWS {f'folder:{photos}'.upper()}, NOT FOLDER:NOT-THERE" in said
        assert "switched off after step 3" in said
        assert "gone on to step 6" in said
    assert sorted(FOLDER.iterdir()) == before, "a notebook leaves nothing behind"


def test_all_are_tested() -> None:
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(SMALLER)


@pytest.mark.parametrize("name", sorted(SMALLER))
def test_tidy(name: str) -> None:
    """Says first what one learns and how long it takes; small, valid, without traces of the machine that ran it."""
    notebook = read(name)
    nbformat.validate(notebook)
    assert notebook.nbformat == 4
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert "You learn" in first.source
    assert re.search(r"takes (about )?\w+( to \w+)? minutes", first.source)
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}
        for output in cell.get("outputs", []):
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr", output["text"]
    path = FOLDER / f"{name}.ipynb"
    assert path.stat().st_size < 1_000_000
    assert not re.search(r"/(home|root|work|tmp|Users)/", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", sorted(SMALLER))
def test_links(name: str) -> None:
    """What a notebook points to is there."""
    for cell in read(name).cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\(([^)#]+)", cell.source):
                assert target.startswith("https://") or (FOLDER / target).exists(), target
