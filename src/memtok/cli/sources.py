"""Backbones, tasks and data from the arguments of a command. Imported only when a command starts its work."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace

from memtok.backbone import Backbone, load_backbone
from memtok.bundle import read_stored, revive
from memtok.checkpoint import is_path
from memtok.cli.errors import UsageError, check_spec
from memtok.cli.output import check_outputs
from memtok.errors import MemtokError
from memtok.preprocessing import Preprocessing
from memtok.stored import StoredTask
from memtok.task import Task

BASE = "base"  # the name of the backbone's own classifier
IN_FILES = " in the given files; give its file too"  # advice for a missing task that another one extends
PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16}


def named_specs(words: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """{task name: spec} of `NAME=SPEC` words; a lone SPEC without a name belongs to the only one of `names`.

    UsageError for a name that is neither among `names` nor `base`, and for two words of one name.
    """
    allowed = dict.fromkeys((*names, BASE))
    found: dict[str, str] = {}
    for word in words:
        name = next((name for name in sorted(allowed, key=len, reverse=True) if word.startswith(f"{name}=")), None)
        spec = word if name is None else word.removeprefix(f"{name}=")
        if name is None:
            if len(names) != 1 or len(words) != 1 or ("=" in word and not word.startswith("folder:")):
                raise UsageError(
                    f"expected NAME=SPEC with one of the names {', '.join(allowed)}, found {word!r}; write for example "
                    f"{next(iter(allowed))}=folder:PATH"
                )
            name = names[0]
        if name in found:
            raise UsageError(f"expected one data source for {name!r}, found {found[name]!r} and {spec!r}; drop one")
        found[name] = check_spec(spec)
    return found


def choose_device(word: str | None) -> str:
    """The device to run on: as given, else a GPU if there is one."""
    if word is None or word == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(word)
    except RuntimeError as error:
        raise UsageError(f"expected a device such as auto, cpu or cuda:0, found {word!r}; choose one") from error
    if (device.type == "cuda" and not torch.cuda.is_available()) or (
        device.type == "mps" and not torch.backends.mps.is_available()
    ):
        raise MemtokError(f"expected the device {word}, found none on this machine; use --device cpu")
    return word


def open_backbone(
    word: str | None,
    stored: Sequence[StoredTask] = (),
    *,
    results: Sequence[str | None] = (),
    image_size: int | None = None,
    device: str = "cpu",
    precision: str = "float32",
) -> Backbone:
    """Loads the backbone of stored tasks at their image size; MemtokError if they differ.

    Without a `word` it is searched where their headers say, also beside their files; none of `results` may replace one
    of its files.
    """
    headers = [one.header for one in stored]
    wanted: int | tuple[int, int] | None = image_size
    if headers:
        check_same_preprocessing(headers)
        wanted = Preprocessing.from_dict(headers[0]["preprocessing"]).image_size
        if image_size is not None and wanted != (image_size, image_size):
            raise MemtokError(
                f"expected images of {wanted[0]}x{wanted[1]} px, with which {headers[0]['name']!r} was trained, found "
                f"--image-size {image_size}; leave it out"
            )
    load = partial(load_backbone, image_size=wanted, dtype=PRECISIONS[precision], device=device)
    if word is None:
        places = backbone_places(headers, [one.where for one in stored])
        check_outputs(*results, inputs=places)
        return find_backbone(headers[0], places, load)
    try:
        return load(word)
    except MemtokError as error:
        if not headers or error.argument != "image_size":
            raise
        own = headers[0]["backbone"]
        raise MemtokError(
            f"expected the backbone {own['source']} ({own['fingerprint'][:19]}), on which {headers[0]['name']!r} was "
            f"trained, found {word}, which cannot take its images; load that one"
        ) from error


def backbone_places(headers: Sequence[dict[str, Any]], files: Sequence[str]) -> list[str]:
    """Where the backbone of the first header may be, by the sources in all headers of the same backbone.

    A folder or file as recorded, or of that name in the current folder or beside one of `files`; then what is no path:
    a Hub id, a timm name, `small`. Version 0.1 recorded a path as it was typed.
    """
    fingerprint = headers[0]["backbone"]["fingerprint"]
    backbones = [header["backbone"] for header in headers if header["backbone"]["fingerprint"] == fingerprint]
    found: list[str] = []
    for source in dict.fromkeys(str(backbone["source"]) for backbone in backbones):
        name = re.split(r"[\\/]", source.rstrip("\\/"))[-1]
        if not name or source.startswith("object:"):  # a model that was given as an object
            continue
        beside = [Path(file).parent / part for file in files for part in (source, name)]
        paths = [Path(os.path.expanduser(source)), Path(name), *beside]
        found += [str(path) for path in paths if path.is_dir() or path.is_file()]
        if not is_path(source):
            found.append(source)
    return list(dict.fromkeys(found))


def find_backbone(header: dict[str, Any], places: Sequence[str], load: Callable[[str], Backbone]) -> Backbone:
    """The first backbone of `places` that is the task's by its fingerprint; MemtokError if none is."""
    own = header["backbone"]
    reasons = []
    for place in places:
        try:
            backbone = load(place)
        except MemtokError as error:
            reasons.append(f"{place}: {error.message}")
            continue
        if backbone.fingerprint == own["fingerprint"]:
            return backbone
        reasons.append(f"{place}: another backbone ({backbone.fingerprint[:19]})")
    raise MemtokError(
        f"expected to find the backbone {own['source']} ({own['fingerprint'][:19]}), on which {header['name']!r} was "
        f"trained, found {'; '.join(reasons) or 'nothing of that name'}; say where it is with --backbone",
        argument="backbone",
    )


def check_same_preprocessing(headers: Sequence[dict[str, Any]]) -> None:
    """MemtokError that names the difference if the preprocessing of the tasks differs."""
    first = headers[0]
    expected = Preprocessing.from_dict(first["preprocessing"])
    for header in headers[1:]:
        if difference := expected.difference(Preprocessing.from_dict(header["preprocessing"])):
            raise MemtokError(
                f"expected tasks of one preprocessing, found a difference between {first['name']!r} and "
                f"{header['name']!r}: {difference}; train them alike"
            )


def read_files(paths: Sequence[str]) -> list[StoredTask]:
    """The tasks of all files, without a backbone.

    A task that another one extends may lie in several files and is taken once; otherwise two of one name are an error.
    """
    everything = [stored for path in paths for stored in read_stored(path)]
    extended = {entry["fingerprint"] for stored in everything for entry in stored.header["extends"]}
    found: dict[str, StoredTask] = {}
    for stored in everything:
        same = found.setdefault(stored.name, stored)
        if same is stored:
            continue
        fingerprint = stored.header["fingerprint"]
        if fingerprint not in extended or fingerprint != same.header["fingerprint"]:
            raise MemtokError(
                f"expected tasks of different names, found {stored.name!r} in {same.where} and in {stored.where}; "
                "leave one out, or give one another name with `memtok rename`"
            )
        if stored.header["classes"] != same.header["classes"]:
            raise MemtokError(
                f"expected the same class names of {stored.name!r} in {same.where} and in {stored.where}, found "
                "others; leave one out, or rename the classes of one with `memtok rename`"
            )
    return list(found.values())


def check_content(tasks: Sequence[StoredTask]) -> None:
    """MemtokError unless the tensors of every task match its fingerprint."""
    for stored in tasks:
        if stored.fingerprint() != stored.header["fingerprint"]:
            raise MemtokError(
                f"expected the content of {stored} to match its fingerprint {stored.header['fingerprint'][:19]}, found "
                f"{stored.fingerprint()[:19]}; the file was changed, get it again"
            )


def open_tasks(
    options: Namespace, stored: Sequence[StoredTask], results: Sequence[str | None], precision: str = "float32"
) -> tuple[Backbone, list[Task]]:
    """The backbone of stored tasks for a command with --backbone and --device (see `open_backbone`), and the tasks."""
    device = choose_device(options.device)
    backbone = open_backbone(options.backbone, stored, results=results, device=device, precision=precision)
    return backbone, revived(stored, backbone)


def revived(stored: Sequence[StoredTask], backbone: Backbone) -> list[Task]:
    """The tasks of files on their backbone; what they extend is found among them."""
    return revive(stored, backbone, advice=IN_FILES)
