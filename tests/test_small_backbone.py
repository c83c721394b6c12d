"""The backbone that memtok ships, and the script that trains it."""

from __future__ import annotations

import gzip
import importlib.util
import struct
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch
from safetensors.torch import load_file

import memtok
from memtok.assets import shipped_backbone

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture(scope="module")
def script(root: Path) -> ModuleType:
    """scripts/train_small_backbone.py as a module."""
    path = root / "scripts" / "train_small_backbone.py"
    specification = importlib.util.spec_from_file_location("train_small_backbone", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    # dataclasses look their module up by name.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "train_small_backbone", module)
        specification.loader.exec_module(module)
    return module


def test_it_is_read_as_timm_reads_it() -> None:
    images = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    source = timm.create_model(f"local-dir:{shipped_backbone()}", pretrained=True).eval()
    backbone = memtok.load_backbone(shipped_backbone())
    with torch.no_grad():
        _, base = backbone(images)
        assert torch.equal(base, source(images))
    assert backbone.classes[0] == "T-shirt/top"
    assert len(backbone.classes) == 10
    assert backbone.preprocessing.image_size == (28, 28)
    assert backbone.preprocessing.mean == backbone.preprocessing.std == (0.5, 0.5, 0.5)


def test_it_is_stored_in_half_precision() -> None:
    tensors = load_file(shipped_backbone() / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


def test_it_knows_fashion_mnist(script: ModuleType) -> None:
    """Its accuracy on the first 1,000 test images; on all 10,000: docs/small-backbone.md."""
    if not FASHION_MNIST.is_dir():
        pytest.skip("needs the Debian package dataset-fashion-mnist")
    images, labels = script.read_part(FASHION_MNIST, "t10k")
    backbone = memtok.load_backbone(shipped_backbone())
    with torch.no_grad():
        _, logits = backbone(script.normalise(images[:1000] / 255))
    assert (logits.argmax(dim=1) == labels[:1000]).float().mean().item() > 0.86


def write_idx(path: Path, values: torch.Tensor) -> None:
    shape = struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(gzip.compress(bytes([0, 0, 8, values.ndim]) + shape + values.numpy().tobytes()))


def made_up_data(folder: Path, seed: int, count: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 28, 28), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 10, (count,), generator=generator, dtype=torch.uint8)
    folder.mkdir()
    write_idx(folder / "train-images-idx3-ubyte.gz", images)
    write_idx(folder / "train-labels-idx1-ubyte.gz", labels)
    return images, labels


def test_idx_files_come_back(script: ModuleType, tmp_path: Path, print_seed: Callable[[], int]) -> None:
    images, labels = made_up_data(tmp_path / "data", print_seed())
    read_images, read_labels = script.read_part(tmp_path / "data", "train")
    assert torch.equal(read_images, images)
    assert torch.equal(read_labels, labels.long())


@pytest.mark.twice
def test_training_goes_on_where_it_was_killed(script: ModuleType, tmp_path: Path) -> None:
    """Stopped and started again, with whatever the global generator holds, the tensors are the same."""
    made_up_data(tmp_path / "data", seed=0)
    settings = script.Settings(epochs=2, batch_size=8, warmup_steps=3)
    whole = script.train(settings, tmp_path / "data", tmp_path / "whole.safetensors", None)
    torch.manual_seed(99)
    with pytest.raises(SystemExit, match="stopped after step 7"):
        script.train(settings, tmp_path / "data", tmp_path / "parts.safetensors", 7)
    parts = script.train(settings, tmp_path / "data", tmp_path / "parts.safetensors", None)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, parts.state_dict()[name]), name
    other = script.Settings(**{**asdict(settings), "learning_rate": 0.5})
    with pytest.raises(SystemExit, match="other settings"):
        script.train(other, tmp_path / "data", tmp_path / "parts.safetensors", None)


def test_augmentation_stays_in_range_and_moves_little(script: ModuleType) -> None:
    images = torch.zeros(64, 28, 28)
    images[:, 12:16, 12:16] = 1.0  # a square in the middle stays near the middle, whatever is drawn
    moved = script.augment(images, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    assert moved.min() >= 0
    assert moved.max() <= 1
    places = torch.arange(28.0)
    for centre in ((moved.sum(dim=1) * places).sum(dim=1), (moved.sum(dim=2) * places).sum(dim=1)):
        middle = centre / moved.sum(dim=(1, 2))
        assert (middle - 13.5).abs().max() < 3
        assert (middle - 13.5).abs().max() > 1
