"""Where checkpoints come from: paths, the Hub, files in parts, files of our own. And what is refused."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from memtok.assets import shipped_backbone
from memtok.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from memtok.errors import MemtokError
from memtok.preprocessing import Preprocessing
from tests.checkpoint.tiny_models import (
    randomise,
    registered,
    save_folder,
    save_transformers,
    tiny_timm,
    tiny_transformers,
)

PREPROCESSING = Preprocessing(
    image_size=(48, 48),
    resize=54,
    crop=True,
    interpolation="bicubic",
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    position_resize="transformers",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small checkpoint in timm's layout."""
    return save_folder(registered(), tmp_path / "checkpoint")


# --- folders


def split(folder: Path, places: dict[str, str] | None = None) -> Path:
    """Puts a folder's weights into two files and an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    weight_map = {name: names[index % 2] for index, name in enumerate(sorted(tensors))}
    for file in names:
        save_file({name: tensors[name] for name, place in weight_map.items() if place == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {**weight_map, **(places or {})}}))
    return folder


def test_weights_in_parts(folder: Path, tmp_path: Path) -> None:
    whole = read_checkpoint(folder)
    assert read_checkpoint(split(folder)).fingerprint == whole.fingerprint
    model = tiny_transformers("vit-classifier")
    model.save_pretrained(tmp_path / "parts", max_shard_size="20KB")  # as transformers itself splits
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    assert read_checkpoint(tmp_path / "parts").fingerprint == read_checkpoint(model).fingerprint


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"norm.gain": "model-00001-of-00002.safetensors"}, "norm.gain in model-00001"),
        ({"norm.weight": "model-00003-of-00003.safetensors"}, "model-00003-of-00003.safetensors, found none"),
        ({"norm.weight": "../elsewhere.safetensors"}, "weight_map"),
        ({"norm.weight": 3}, "weight_map"),
    ],
)
def test_damaged_index(places: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(MemtokError, match=message):
        read_checkpoint(split(folder, places))


def test_a_tensor_that_the_index_forgot_counts(folder: Path) -> None:
    split(folder)
    extra = {"surprise": torch.zeros(3), **load_file(folder / "model-00001-of-00002.safetensors")}
    save_file(extra, folder / "model-00001-of-00002.safetensors")
    with pytest.raises(MemtokError, match="surprise"):
        read_checkpoint(folder)


def test_only_safetensors_are_opened(folder: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    for place in (folder / "pytorch_model.bin", tmp_path / "model.pt", tmp_path / "fake.safetensors"):
        place.write_bytes(pickle.dumps(Trap()))
        torch.save({"a": torch.zeros(1)}, tmp_path / "zip.safetensors")
    read_checkpoint(folder)  # beside safetensors a pickle is passed over
    (folder / "model.safetensors").unlink()
    for source, message in (
        (folder, "only pytorch_model.bin"),
        (tmp_path / "model.pt", "pickle"),
        (tmp_path / "fake.safetensors", "pickle"),
        (tmp_path / "zip.safetensors", "pickle"),
    ):
        with pytest.raises(MemtokError, match=message) as caught:
            read_checkpoint(source)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("length", [0, 7, 8, 300, -1])
def test_truncated_weights(length: int, folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:length])
    with pytest.raises(MemtokError, match=r"truncated|damaged") as caught:
        read_checkpoint(folder)
    assert "\n" not in str(caught.value)


def test_folders_that_are_no_checkpoint(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(MemtokError, match="JSON"):
        read_checkpoint(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(MemtokError, match="JSON object"):
        read_checkpoint(folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(MemtokError, match="'architecture'"):
        read_checkpoint(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MemtokError, match="no weights"):
        read_checkpoint(tmp_path / "empty")


def test_architecture_must_not_contradict_the_config(folder: Path) -> None:
    assert read_checkpoint(folder, architecture="vit_tiny_patch16_224").source == str(folder)
    with pytest.raises(MemtokError, match="found 'vit_small_patch16_224'"):
        read_checkpoint(folder, architecture="vit_small_patch16_224")


def test_lone_files_without_their_architecture(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(tiny_timm().state_dict(), path)
    with pytest.raises(MemtokError, match=r"architecture .* metadata"):
        read_checkpoint(path)
    save_file({"class_tokens": torch.zeros(1, 3)}, path, metadata={"memtok": "{}"})
    with pytest.raises(MemtokError, match="task file"):
        read_checkpoint(path)
    save_checkpoint(tiny_timm(), PREPROCESSING, path)
    with pytest.raises(MemtokError, match="brings its own"):
        read_checkpoint(path, architecture="vit_tiny_patch16_224")


@pytest.mark.parametrize(
    "source", ["./nothing", "/nowhere/at/all", "gone.safetensors", Path("a/b"), "~/no/such/folder"]
)
def test_paths_that_are_not_there(source: str | Path) -> None:
    with pytest.raises(MemtokError, match="found"):
        read_checkpoint(source)


def test_other_things(tmp_path: Path) -> None:
    with pytest.raises(MemtokError, match="found int"):
        read_checkpoint(3)  # type: ignore[arg-type]
    with pytest.raises(MemtokError, match="found Linear"):
        read_checkpoint(nn.Linear(2, 2))


# --- preprocessing and image size


def test_processor_file_is_the_checkpoints(tmp_path: Path) -> None:
    folder = save_transformers(tiny_transformers("dinov2"), tmp_path)
    read = read_checkpoint(folder)
    assert read.preprocessing.image_size == (48, 48)
    assert read.preprocessing_origin == "usual for dinov2 (the checkpoint has no preprocessor_config.json)"
    processor = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 40}, "crop_size": 32}
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": processor}))
    nested = read_checkpoint(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    for found in (nested, read_checkpoint(folder)):
        assert found.preprocessing_origin == "checkpoint"
        assert (found.preprocessing.image_size, found.preprocessing.resize) == ((32, 32), 40)
        assert found.vit.patch_embed.img_size == (32, 32)
        assert found.fingerprint == read.fingerprint
    larger = read_checkpoint(folder, image_size=64).preprocessing
    assert (larger.image_size, larger.resize) == ((64, 64), 80)
    assert replace(larger, image_size=(32, 32), resize=40) == found.preprocessing


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (50, r"multiple of the patch \(8, 8\), found \(50, 50\); the nearest is \(48, 48\)"),
        ((48, 3), r"the nearest is \(48, 8\)"),
        (0, "image_size"),
        (-8, "image_size"),
        (48.0, "image_size"),
        ((8, 8, 8), "image_size"),
        ("48", "image_size"),
    ],
)
def test_image_sizes_that_do_not_fit(size: Any, message: str) -> None:
    for source in (tiny_timm(), tiny_transformers("vit")):
        with pytest.raises(MemtokError, match=message) as caught:
            read_checkpoint(source, image_size=size)
        assert "\n" not in str(caught.value)


# --- the Hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A Hub of local folders: repository -> folder. What was asked for stands under "asked"."""
    repositories: dict[str, Any] = {"asked": []}

    def download(repository: str, *, revision: str | None = None, allow_patterns: list[str]) -> str:
        """A copy of the files that match, as the real one makes it."""
        repositories["asked"].append((repository, revision))
        if repository not in repositories:
            raise huggingface_hub.errors.LocalEntryNotFoundError("no such\nrepository")
        cache = tmp_path / "cache" / repository
        cache.mkdir(parents=True, exist_ok=True)
        for name in allow_patterns:
            if (repositories[repository] / name).is_file():
                (cache / name).write_bytes((repositories[repository] / name).read_bytes())
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return repositories


@pytest.mark.parametrize("name", ["{}", "hf-hub:{}", "hf_hub:{}"])
def test_hub_id(name: str, folder: Path, hub: dict[str, Any]) -> None:
    hub["some-one/a.model"] = folder
    source = name.format("some-one/a.model")
    read = read_checkpoint(source, image_size=32)
    assert read.source == source
    assert read.fingerprint == read_checkpoint(folder).fingerprint
    assert read.preprocessing.image_size == (32, 32)


def test_hub_repository_in_parts_at_a_revision(folder: Path, hub: dict[str, Any]) -> None:
    expected = read_checkpoint(folder).fingerprint
    hub["org/parts"] = split(folder)
    assert read_checkpoint("org/parts@refs/pr/3").fingerprint == expected
    assert hub["asked"] == [("org/parts", "refs/pr/3")] * 2


def test_hub_repository_of_transformers_brings_its_processor(tmp_path: Path, hub: dict[str, Any]) -> None:
    hub["org/vit"] = save_transformers(tiny_transformers("vit"), tmp_path / "vit")
    (hub["org/vit"] / "preprocessor_config.json").write_text(json.dumps({"size": 32}))
    read = read_checkpoint("org/vit")
    assert read.preprocessing.image_size == (32, 32)
    assert read.preprocessing_origin == "checkpoint"


def test_the_backbone_that_comes_with_memtok(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = read_checkpoint("small")
    assert read.source == "small"
    assert read.fingerprint == read_checkpoint(shipped_backbone()).fingerprint
    monkeypatch.chdir(tmp_path)
    save_transformers(tiny_transformers("vit"), tmp_path / "small")
    assert read_checkpoint("small").fingerprint != read.fingerprint  # a path that exists comes first


def test_existing_path_comes_before_the_hub(folder: Path, hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent.parent)
    source = f"{folder.parent.name}/{folder.name}"
    assert read_checkpoint(source).source == source
    assert hub["asked"] == []


def test_hub_repositories_that_cannot_be_read(tmp_path: Path, hub: dict[str, Any]) -> None:
    with pytest.raises(MemtokError, match=r"folder here or a repository .*no such repository") as caught:
        read_checkpoint("org/nothing")
    assert "\n" not in str(caught.value)
    hub["org/pickled"] = tmp_path / "pickled"
    hub["org/pickled"].mkdir()
    (hub["org/pickled"] / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(MemtokError, match="in org/pickled, found no weights"):
        read_checkpoint("org/pickled")
    bad = save_transformers(tiny_transformers("vit"), tmp_path / "bad")
    hub["org/bad"] = split(bad, {"x": "../y"})
    with pytest.raises(MemtokError, match="weight_map"):
        read_checkpoint("org/bad")


def test_checkpoint_is_frozen_in_evaluation_mode(folder: Path) -> None:
    read = read_checkpoint(folder)
    assert isinstance(read, Checkpoint)
    assert not any(module.training for module in read.vit.modules())
    assert not any(parameter.requires_grad for parameter in read.vit.parameters())
    assert {parameter.dtype for parameter in read.vit.parameters()} == {torch.float32}
    resized = read_checkpoint(randomise(tiny_timm()), image_size=32)
    assert not any(parameter.requires_grad for parameter in resized.vit.parameters())
