"""Every command and every block of Python of docs/coming-from-the-reproduction.md runs, word for word.

Stand-ins take the place of what is large: on the Hub lies a small backbone with patches of 32 pixels, and old
checkpoints of it; each data set has a few pictures, and the preset a few steps.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import memtok
from memtok.cli import COMMANDS, main
from memtok.data import DATASETS
from memtok.data.published import Published
from memtok.data.sources import ArrayStore, ImageSet
from memtok.legacy import PUBLISHED, REPOSITORY
from memtok.training.recipes import RECIPES
from memtok_experiments import presets
from tests.old_states import old_state
from tests.tiny import tiny_vit

BACKBONE = "google/vit-base-patch32-224-in21k"
CLASSES = {"cifar10": 3, "mnist": 3, "cifar100": 4, "inaturalist2017": 5, "places365": 3, "sun397": 2}
OLD = dict(zip(PUBLISHED, ("cifar100", "inaturalist2017", "places365", "sun397"), strict=True))
SHAPE = {"img_size": 224, "patch_size": 32, "num_classes": 4}


@pytest.fixture
def page(root: Path) -> str:
    return (root / "docs" / "coming-from-the-reproduction.md").read_text(encoding="utf-8")


def blocks(page: str, *languages: str) -> list[tuple[str, str]]:
    """(language, content) of every fenced block, in order."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    return [(language, content) for language, content in found if language in languages]


def commands(block: str) -> list[list[str]]:
    """The words of every command, lines that end in a backslash joined."""
    return [shlex.split(line) for line in block.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two repositories of the page, as folders: the backbone in transformers' layout, and the old checkpoints."""
    vit = tiny_vit(**SHAPE)
    base, old = tmp_path / "hub" / "base", tmp_path / "hub" / "old"
    for folder in (base, old):
        folder.mkdir(parents=True)
    save_transformers(vit, base)
    for seed, (file, name) in enumerate(OLD.items()):
        torch.save(old_state(vit, [(1, CLASSES[name])], seed=seed), old / file)
    repositories = {BACKBONE: base, REPOSITORY: old}

    def snapshot(repository: str, **_: Any) -> str:
        return str(repositories[repository])

    def one(repository: str, name: str, **_: Any) -> str:
        return str(repositories[repository] / name)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", one)


def save_transformers(vit: Any, folder: Path) -> None:
    """The backbone as transformers saves a ViTModel, with the processor file of the published one."""
    renamed = {key: value for key, value in old_state(vit, []).items() if not key.startswith("classifiers.")}
    renamed["vit.embeddings.cls_token"] = renamed.pop("vit.embeddings.cls_tokens.0")
    tensors = {key.removeprefix("vit."): value for key, value in renamed.items() if "attention_mask" not in key}
    save_file(tensors, folder / "model.safetensors")
    config = {
        "model_type": "vit",
        "hidden_size": vit.embed_dim,
        "num_hidden_layers": len(vit.blocks),
        "num_attention_heads": vit.blocks[0].attn.num_heads,
        "intermediate_size": 4 * vit.embed_dim,
        "image_size": 224,
        "patch_size": 32,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
    }
    processor = {"size": 224, "resample": 2, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor | {"do_resize": True, "do_normalize": True}))


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every data set of the page, with 15 + 5 pictures in place of the download."""

    def pictures(part: str, count: int, classes: int) -> ImageSet:
        pixels = np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        return ImageSet(ArrayStore(pixels, part), np.arange(count), np.arange(count, dtype=np.int64) % classes)

    def reader(classes: int) -> Callable[[Path], Published]:
        names = tuple(f"class {index}" for index in range(classes))
        return lambda _: Published.of_two_parts(names, pictures("train", 15, classes), pictures("test", 5, classes))

    for name, classes in CLASSES.items():
        monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], read=reader(classes)))


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The preset of the page takes two steps, and any backbone."""
    preset = presets.PRESETS["reproduction-cifar100"]
    assert preset().backbones == (BACKBONE,)
    shape = presets.Shape("a small one", 2, 32, 32)
    monkeypatch.setitem(presets.PRESETS, "reproduction-cifar100", lambda: replace(preset(), steps=2, needs=(shape,)))


@pytest.mark.slow
def test_every_block_runs(
    page: str,
    hub: None,
    data: None,
    few_steps: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    tuned = tiny_vit(**SHAPE)
    with torch.no_grad():
        tuned.cls_token += 0.5
    Path("models").mkdir()
    torch.save(old_state(tuned, [(2, 3)]), "models/mine_model.pt")
    names: dict[str, Any] = {}
    ran: list[str] = []
    for language, block in blocks(page, "sh", "console", "python"):
        if language == "python":
            exec(compile(block, "the page", "exec"), names)
            continue
        for words in commands(block):
            assert words[0] == "memtok", words
            capsys.readouterr()
            code = main(words[1:])
            assert code == 0, f"{shlex.join(words)}: {capsys.readouterr().err}"
            ran.append(words[1])
    assert {"train", "evaluate", "concat", "verify", "import-legacy", "reproduce"} <= set(ran)
    check_results(names)


def check_results(names: dict[str, Any]) -> None:
    """What the commands and blocks left behind is what the page says."""
    backbone = memtok.load_backbone(BACKBONE)
    trained = memtok.load_task("models/CIFAR100.safetensors", backbone)
    assert trained.name == "CIFAR100"
    assert trained.cells == 1
    assert trained.placement == "before-norm"
    assert trained.record["recipe"] == "reproduction"
    assert trained.record["hyperparameters"]["batch_size"] == 64
    assert trained.record["steps"] == 20  # twenty epochs of one batch
    assert set(json.loads(Path("accuracy.json").read_text())["tasks"]) == {"CIFAR100", "Places"}
    assert {task.name for task in memtok.load_tasks("models/both.safetensors", backbone)} == {"CIFAR100", "Places"}
    for file, name in OLD.items():
        task = memtok.load_task(f"imported/{file.removesuffix('_model.pt')}.safetensors", backbone)
        assert task.classes == memtok.open_data(name).classes
        assert (task.placement, task.preprocessing.std) == ("after-norm", (1.0, 1.0, 1.0))
        assert task.preprocessing.image_size == (224, 224)
    with pytest.raises(memtok.MemtokError, match=r"mean \(0\.5, 0\.5, 0\.5\) and \(0\.0"):
        memtok.MemoryViT(backbone, [trained, task])
    assert memtok.load_backbone("mine/base.safetensors").fingerprint != backbone.fingerprint
    assert names["task"].name == "CIFAR100"
    assert names["model"].names == ("pets", "digits", "more")
    assert Path("table2/table2.md").is_file()
    assert Path("concat/concat.md").is_file()


def test_tables_name_what_there_is(page: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Options, tests, files and names of memtok in the tables exist."""
    for test in re.findall(r"`(test_fault_\d\d_\w+)`", page):
        assert f"def {test}(" in (root / "tests" / "test_faults.py").read_text(encoding="utf-8")
    assert len(set(re.findall(r"test_fault_(\d\d)", page))) == 11
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", page):
        assert (root / "docs" / link).is_file(), link
    for path in re.findall(r"`((?:notebooks|examples|tests|docs)/[\w./]*)`", page):
        assert (root / path).exists(), path
    for name in re.findall(r"`memtok\.([\w.]+)", page):
        value: Any = memtok
        for part in name.split("."):
            value = getattr(value, part)
    for recipe in re.findall(r"--recipe (\w+)", page):
        assert recipe in RECIPES
    right = " ".join(line.rpartition("|")[0].rpartition("|")[2] for line in page.splitlines() if line.startswith("| "))
    known = set()
    for command in ("train", "evaluate", "import-legacy", "reproduce"):
        assert main([command, "--help"]) == 0
        known |= set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    assert set(re.findall(r"--[\w-]+", right)) <= known


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_epochs_wherever_steps_are(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    options = set(re.findall(r"^  (--\w+)", capsys.readouterr().out, flags=re.MULTILINE))
    assert ("--steps" in options) == ("--epochs" in options)
