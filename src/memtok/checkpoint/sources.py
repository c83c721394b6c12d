"""Reading pre-trained Vision Transformers from any source, and writing them.

`read_checkpoint` takes a folder in timm's or transformers' layout, a lone `.safetensors` file, a Hub id, a timm model
name, or a model object, and returns a frozen timm model in float32 with its fingerprint and its preprocessing. It reads
safetensors only and never opens a pickle. docs/backbones.md lists what is read and what is not.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
from safetensors.torch import save_file
from torch import Tensor, nn

from memtok.assets import shipped_backbone
from memtok.checkpoint.architecture import build, describe, from_json
from memtok.checkpoint.architectures.common import check_as_built
from memtok.checkpoint.conversion import convert, layout_name
from memtok.checkpoint.fingerprint import fingerprint_of
from memtok.checkpoint.objects import check_unchanged
from memtok.checkpoint.positions import resize_positions
from memtok.checkpoint.processors import read_processor, usual_preprocessing
from memtok.checkpoint.tensor_files import (
    INDEX,
    WEIGHTS,
    load_tensors,
    read_folder_tensors,
    read_json,
    read_tensors,
    shard_places,
)
from memtok.checkpoint.timm_models import (
    Found,
    read_timm_config,
    read_timm_name,
    read_timm_object,
    read_timm_tensors,
)
from memtok.errors import Argument, MemtokError, one_line
from memtok.files import atomic_write
from memtok.header import DIGEST, check_digest, digest_of
from memtok.preprocessing import Preprocessing, size_pair
from memtok.regular import check_regular

SHIPPED = "small"  # the backbone that comes with memtok
HUB_PREFIXES = ("hf-hub:", "hf_hub:")
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
PROCESSOR = "preprocessor_config.json"
NESTED_PROCESSOR = "processor_config.json"  # CLIP's, by transformers 5, beside the tokenizer's settings
HUB_FILES = ("config.json", WEIGHTS, INDEX, PROCESSOR, NESTED_PROCESSOR)
FORMAT = "memtok_checkpoint"  # the metadata key of files that `save_checkpoint` writes; its value is the version
FORMAT_VERSION = "1"


@dataclass(frozen=True)
class Checkpoint:
    """A pre-trained Vision Transformer, ready to be the backbone of tasks.

    vit: timm's model, float32 on the CPU, in evaluation mode and without gradients, its position embeddings resized
    to preprocessing.image_size. fingerprint: of its trunk, before that. source: Hub id, timm name, path as given, or
    "object:" and the class. preprocessing_origin: "checkpoint", or which default it is. classes: names of the
    base classes where they are known. left_out: names of the checkpoint's tensors that were not read. record: of the
    training, empty for files that memtok did not write.
    """

    vit: nn.Module
    fingerprint: str
    preprocessing: Preprocessing
    source: str
    preprocessing_origin: str
    classes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    record: dict[str, Any] = field(default_factory=dict)


def read_checkpoint(
    source: str | Path | nn.Module,
    *,
    image_size: int | tuple[int, int] | None = None,
    architecture: str | None = None,
) -> Checkpoint:
    """Reads a checkpoint: an existing path, else `org/name` on the Hub, else a timm model name; or a model object.

    "small" is the backbone that comes with memtok.

    image_size: pixels, (height, width) or one number for both; the default is that of the checkpoint's processor file,
    else that of the model. architecture: timm's name, for a lone `.safetensors` file whose metadata does not name it.
    An object of timm or transformers is copied and never touched.

    Raises MemtokError for a source that is not found, damaged, or not understood.
    """
    size = None if image_size is None else size_pair(image_size, f"{Argument('image_size')}")
    if isinstance(source, nn.Module):
        label = f"object:{type(source).__name__}"
        found = _read_object(source, size)
    elif isinstance(source, str | Path):
        label = str(source)
        found = _read_named(source, size, architecture)
    else:
        raise MemtokError(
            f"expected a path, a Hub id, a timm name or a model, found {type(source).__name__}; give one of these",
            argument="source",
        )
    fingerprint = fingerprint_of(found.vit)
    preprocessing = found.preprocessing
    resize_positions(found.vit, preprocessing.image_size, preprocessing.position_resize)
    found.vit.requires_grad_(False).eval()
    return Checkpoint(
        found.vit, fingerprint, preprocessing, label, found.origin, found.classes, found.left_out, found.record
    )


def is_path(source: str) -> bool:
    """Whether a source has the form of a path, and is neither a Hub id, a timm name nor `small`."""
    if source.startswith(("object:", *HUB_PREFIXES)):
        return False
    one_word = Path(source).name == source or HUB_NAME.fullmatch(source)
    return not one_word or source.endswith(".safetensors") or source.startswith(("~", "."))


def portable_source(source: str) -> str:
    """The source of a backbone as task files record it: as given, but of a folder or file its name only.

    Its path on the machine that trained a task is of no use on others, and private.
    """
    path = os.path.abspath(os.path.expanduser(source))
    here = os.path.exists(path) and source != SHIPPED and not source.startswith(HUB_PREFIXES)
    return Path(path).name or source if here or is_path(source) else source


def _read_named(source: str | Path, size: tuple[int, int] | None, architecture: str | None) -> Found:
    text = str(source)
    for prefix in HUB_PREFIXES:
        if text.startswith(prefix):
            return _read_hub(text.removeprefix(prefix), size, architecture)
    path = Path(source).expanduser()
    check_regular(path, "a folder or a .safetensors file")
    if path.is_dir():
        return _read_folder(path, text, size, architecture)
    if path.is_file():
        return _read_file(path, size, architecture)
    if text == SHIPPED:
        return _read_folder(shipped_backbone(), text, size, architecture)
    if isinstance(source, Path) or path.is_absolute() or path.suffix == ".safetensors" or text.startswith("."):
        raise MemtokError(
            f"expected a folder or a .safetensors file, found nothing at {text}; check the path", argument="source"
        )
    if HUB_NAME.fullmatch(text):
        return _read_hub(text, size, architecture)
    if architecture is not None:
        raise MemtokError(
            f"expected an architecture for a lone file only, found {architecture!r} for {text!r}; leave it out",
            argument="architecture",
        )
    return read_timm_name(text, size)


def _read_hub(name: str, size: tuple[int, int] | None, architecture: str | None) -> Found:
    """A repository of the Hugging Face Hub, `org/name` or `org/name@revision`, or its copy in the local cache."""
    repository, _, revision = name.partition("@")

    def download(files: Sequence[str]) -> Path:
        return Path(
            huggingface_hub.snapshot_download(repository, revision=revision or None, allow_patterns=list(files))
        )

    try:
        folder = download(HUB_FILES)
        if not (folder / WEIGHTS).is_file() and (folder / INDEX).is_file():
            folder = download((*HUB_FILES, *sorted(set(shard_places(folder).values()))))
    except MemtokError:
        raise
    except Exception as error:  # the Hub's client raises errors of its own, of its network library, and of the system
        raise MemtokError(
            f"expected {name!r} to be a folder here or a repository of the Hugging Face Hub, found neither "
            f"({one_line(error)}); check the name and the connection",
            argument="source",
        ) from error
    return _read_folder(folder, name, size, architecture)


def _read_folder(folder: Path, label: str, size: tuple[int, int] | None, architecture: str | None) -> Found:
    """A checkpoint folder; its config.json decides whose layout it is. label: what to call it in an error."""
    if not (folder / "config.json").is_file():
        tensors = read_folder_tensors(folder, label)
        if architecture is None:
            raise MemtokError(
                f"expected config.json beside the weights in {label}, found none; add it, or give the architecture"
            )
        return read_timm_tensors(architecture, tensors, size)
    config = read_json(folder / "config.json")
    if architecture not in (None, config.get("architecture")):
        raise MemtokError(
            f"expected the architecture that config.json in {label} names, "
            f"{config.get('architecture') or config.get('model_type')!r}, found {architecture!r}; leave it out",
            argument="architecture",
        )
    if config.get("architecture"):
        return read_timm_config(config, read_folder_tensors(folder, label), size)
    if config.get("model_type"):
        return _read_transformers(folder, label, config, size)
    raise MemtokError(
        f"expected 'architecture' (timm) or 'model_type' (transformers) in config.json of {label}, found neither; "
        "get the file again"
    )


def _read_transformers(folder: Path, label: str, config: Mapping[str, Any], size: tuple[int, int] | None) -> Found:
    layout_name(config)  # an unknown model type is refused before its weights are read
    converted = convert(config, read_folder_tensors(folder, label))
    vit: Any = converted.vit
    own_size = tuple(vit.patch_embed.img_size)
    processor = _processor_config(folder)
    if processor is None:
        origin = f"usual for {converted.layout} (the checkpoint has no {PROCESSOR})"
        preprocessing = usual_preprocessing(converted.layout, size or own_size, converted.position_resize)
    else:
        origin = "checkpoint"
        preprocessing = read_processor(processor, converted.layout, own_size, converted.position_resize)
        preprocessing = preprocessing.with_image_size(size or preprocessing.image_size)
    return Found(vit, preprocessing, origin, converted.classes, converted.left_out)


def _processor_config(folder: Path) -> Mapping[str, Any] | None:
    """The image processor's settings, None where the folder has none."""
    if (folder / PROCESSOR).is_file():
        return read_json(folder / PROCESSOR)
    nested = read_json(folder / NESTED_PROCESSOR) if (folder / NESTED_PROCESSOR).is_file() else {}
    settings = nested.get("image_processor")
    return settings if isinstance(settings, dict) else None


def _read_file(path: Path, size: tuple[int, int] | None, architecture: str | None) -> Found:
    """A lone file with timm's tensor names: one that `save_checkpoint` wrote, or any whose architecture is known."""
    tensors, metadata = read_tensors(path)
    if FORMAT in metadata:
        return _read_saved(path, tensors, metadata, size, architecture)
    if "memtok" in metadata:
        raise MemtokError(f"expected a backbone, found a memtok task file in {path}; give it as a task")
    named = metadata.get("architecture", architecture)
    if named is None:
        raise MemtokError(
            f"expected the architecture of {path} in its metadata, found none; give timm's name of it as architecture",
            argument="architecture",
        )
    if architecture not in (None, named):
        raise MemtokError(
            f"expected the architecture {named!r} that {path} names, found {architecture!r}; leave it out",
            argument="architecture",
        )
    return read_timm_tensors(named, tensors, size)


def _read_object(model: nn.Module, size: tuple[int, int] | None) -> Found:
    """A copy of a model in memory. A transformers model is saved and read back: its files keep their names."""
    check_unchanged(model)
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "model_type") or not hasattr(model, "save_pretrained"):
        return read_timm_object(model, size)
    layout_name({"model_type": config.model_type})
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stderr(io.StringIO()):  # it prints a progress bar
        # Saving writes into the model's configuration, so a copy is saved.
        copied: Any = copy.deepcopy(model)
        copied.save_pretrained(name)
        return _read_folder(Path(name), f"object:{type(model).__name__}", size, None)


def save_checkpoint(
    vit: nn.Module,
    preprocessing: Preprocessing,
    path: str | Path,
    *,
    classes: Sequence[str] = (),
    record: Mapping[str, Any] | None = None,
) -> None:
    """Writes a whole timm model as a lone `.safetensors` file that `read_checkpoint` reads back bit for bit.

    The head is in it, `classes` names its outputs; the position embeddings are stored at their current size. `record`:
    of its training, JSON-able. Written to a temporary file, then renamed. MemtokError for a model that cannot be
    described, or that does not fit the preprocessing or the class names.
    """
    architecture = describe(vit)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in vit.state_dict().items()}
    if architecture.classes < 0:
        raise MemtokError("expected a linear head, found another module; replace it before saving")
    check_as_built(vit, build(architecture, "meta"))  # the head too
    if architecture.image_size != preprocessing.image_size:
        raise MemtokError(
            f"expected the preprocessing of images of {architecture.image_size}, found {preprocessing.image_size}; "
            "use with_image_size"
        )
    if classes and len(classes) != architecture.classes:
        raise MemtokError(
            f"expected {architecture.classes} class names, one per output, found {len(classes)}; name each",
            argument="classes",
        )
    metadata = {
        FORMAT: FORMAT_VERSION,
        "architecture": architecture.to_json(),
        "preprocessing": json.dumps(preprocessing.to_dict()),
        "classes": json.dumps(list(classes), ensure_ascii=False),
        "record": json.dumps(dict(record or {})),
    }
    metadata[DIGEST] = digest_of(metadata)
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def _read_saved(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    size: tuple[int, int] | None,
    architecture: str | None,
) -> Found:
    """A file that `save_checkpoint` wrote, and its preprocessing at the size wanted."""
    if architecture is not None:
        raise MemtokError(
            f"expected no architecture for {path}, which brings its own, found one; leave it out",
            argument="architecture",
        )
    if metadata[FORMAT] != FORMAT_VERSION:
        raise MemtokError(
            f"expected version {FORMAT_VERSION} of memtok's checkpoints, found {metadata[FORMAT]!r} in {path}; "
            "read it with a newer memtok"
        )
    check_digest(path, metadata)
    try:
        vit: Any = build(from_json(metadata["architecture"]))
        preprocessing = Preprocessing.from_dict(json.loads(metadata["preprocessing"]))
        classes = tuple(str(name) for name in json.loads(metadata["classes"]))
        record = dict(json.loads(metadata.get("record", "{}")))  # the first files have none
    except MemtokError:
        raise
    except (KeyError, ValueError, TypeError, AssertionError, ArithmeticError, RuntimeError) as error:
        raise MemtokError(
            f"expected the header of a memtok checkpoint in {path}, found a damaged one ({one_line(error)}); "
            "get the file again"
        ) from error
    load_tensors(vit, tensors)
    if classes and len(classes) != getattr(vit.head, "out_features", 0):
        raise MemtokError(
            f"expected a class name for each output of the head in {path}, found {len(classes)}; get the file again"
        )
    sized = preprocessing.with_image_size(size or preprocessing.image_size)
    return Found(vit, sized, "checkpoint", classes, (), record)
