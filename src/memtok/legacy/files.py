"""Sources of old checkpoints: a file, a folder such as `models/`, or a repository of the Hugging Face Hub."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from torch import Tensor

from memtok.checkpoint.sources import HUB_NAME, HUB_PREFIXES
from memtok.errors import MemtokError, one_line
from memtok.regular import check_regular

# What the reproduction's authors published on the Hub, and the names that its download script saves them under.
REPOSITORY = "necrashter/transformers-learnable-memory"
PUBLISHED = ("CIFAR100_model.pt", "INaturalist_model.pt", "Places_model.pt", "Sun_model.pt")


@dataclass(frozen=True)
class LegacyFile:
    """An old checkpoint on this machine.

    label: its name in errors. origin: its name, or its name on the Hub, for the records of its tasks.
    """

    path: Path
    label: str
    origin: str


def legacy_files(source: str | Path, file: str | Sequence[str] | None = None) -> list[LegacyFile]:
    """The files that `source` means.

    source: a file; or a folder or `org/name` on the Hub (`org/name@revision` too), of which `file` names one file or
    several, else all `*.pt` are taken, in alphabetical order. Files on the Hub are downloaded into the cache of
    its client. MemtokError for what is not found.
    """
    names = [file] if isinstance(file, str) else list(file or [])
    for name in names:
        if Path(name).name != name:
            raise MemtokError(
                f"expected the name of a file in {source}, found {name!r}; leave out its folder", argument="file"
            )
    text, path = str(source), Path(source).expanduser()
    for prefix in HUB_PREFIXES:
        if isinstance(source, str) and text.startswith(prefix):
            return from_hub(text.removeprefix(prefix), names)
    check_regular(path, "an old checkpoint")
    if path.is_file():
        if names:
            raise MemtokError(
                f"expected no name of a file in {text}, which is a file, found {names[0]!r}; leave it out",
                argument="file",
            )
        return [LegacyFile(path, text, path.name)]
    if path.is_dir():
        return in_folder(path, text, names)
    if isinstance(source, str) and path.suffix not in (".pt", ".pth", ".bin") and HUB_NAME.fullmatch(text):
        return from_hub(text, names)
    raise MemtokError(
        f"expected an old checkpoint such as {PUBLISHED[0]}, a folder of them or {REPOSITORY}, found no file {text}; "
        "check the path",
        argument="source",
    )


def in_folder(folder: Path, label: str, names: Sequence[str]) -> list[LegacyFile]:
    """The files of these names in a folder, or all `*.pt` if none is named."""
    here = sorted(path.name for path in folder.glob("*.pt"))
    shown = ", ".join(here) or "no file that ends in .pt"
    for name in names:
        if not (folder / name).is_file():
            raise MemtokError(f"expected {name} in {label}, found {shown}; name one that is there", argument="file")
    if not (names or here):
        raise MemtokError(
            f"expected old checkpoints such as {PUBLISHED[0]} in {label}, found {shown}; check the name",
            argument="source",
        )
    return [LegacyFile(folder / name, f"{label}/{name}", name) for name in names or here]


def from_hub(repository: str, names: Sequence[str]) -> list[LegacyFile]:
    """The same of a repository, `org/name` or `org/name@revision`."""
    found = in_folder(download(repository, names), repository, names)
    return [replace(file, origin=file.label) for file in found]


def download(repository: str, names: Sequence[str]) -> Path:
    """The folder with these files of a repository, or with all its `*.pt` if none is named."""
    repository, _, revision = repository.partition("@")
    options: dict[str, Any] = {"revision": revision or None}
    try:
        if not names:
            return Path(huggingface_hub.snapshot_download(repository, allow_patterns=["*.pt"], **options))
        got = [Path(huggingface_hub.hf_hub_download(repository, name, **options)) for name in names]
        return got[0].parent
    except Exception as error:  # the Hub's client raises errors of its own, of its network library, and of the system
        wanted = ", ".join(names) or "*.pt"
        raise MemtokError(
            f"expected to get {wanted} of {repository!r} from the Hugging Face Hub, found: {one_line(error)}; check "
            "the name and the connection, or download the file and give its path",
            argument="source",
        ) from error


def load_state(file: LegacyFile) -> dict[str, Tensor]:
    """The tensors of a file that `torch.save` wrote, by name; MemtokError for any other file.

    Nothing in the file is executed: `weights_only` reads tensors and plain containers only.
    """
    label = file.label
    check_regular(file.path, "an old checkpoint")
    try:
        with warnings.catch_warnings(action="ignore"):  # of other pickle protocols; they are rejected below
            state: Any = torch.load(file.path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged and foreign files raise nearly anything
        first = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise MemtokError(
            f"expected a state dict of the public reproduction in {label}, found something else ({first[:120]}); "
            "memtok reads tensors only and executes nothing"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise MemtokError(
            f"expected a state dict of the public reproduction in {label}, found {type(state).__name__}; import files "
            f"named like {PUBLISHED[0]}"
        )
    if not all(isinstance(value, Tensor) for value in state.values()):
        raise MemtokError(
            f"expected tensors only in {label}, found other values; export the model's state_dict() again"
        )
    return dict(state)
