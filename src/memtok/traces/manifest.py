"""What kept traces are traces of: written beside them, and compared whenever they are used again.

A trace is a function of the backbone, of the pixels that it gets, of the precision that it computes in and of the
libraries that compute it. All of them are named here; where one differs the traces are refused, for nothing in the
numbers themselves would show it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import timm
import torch

from memtok.backbone import Backbone
from memtok.checkpoint.architecture import trunk_tensors
from memtok.data.content import content_digest, spread
from memtok.data.sources import ImageSet
from memtok.digests import digest_of
from memtok.errors import MemtokError
from memtok.files import write_json
from memtok.preprocessing import Preprocessing
from memtok.traces.record import EVERYTHING, Needs, Tensors, record_type, trace_tensors

FORMAT = 6  # since statistics have names; up to 4 a record was no list of tensors
MANIFEST = "manifest.json"
SMALL = 1 << 16  # numbers; smaller tensors of a trunk are all hashed
LARGE = 3  # of the others, these many are


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What decides the numbers in a store of traces, and how they lie there.

    backbone: its fingerprint, which is that of the checkpoint. weights: `sha256:` over some of its tensors as they are
    now, which may have been rounded since. preprocessing: as `Preprocessing.to_dict`. augment, flip, seed, views: how
    the images are varied; view v of an image is what training sees in epoch v with this seed; seed None: nothing is
    drawn. images: how many. identities, content: `sha256:` over the names of the images in order, and over their
    content. precision: that the trunk computes in. torch, timm: their versions, without the
    patch. tensors: of a record, see record.py.
    """

    format: int = FORMAT
    backbone: str
    weights: str
    preprocessing: Mapping[str, Any]
    augment: str
    flip: bool
    seed: int | None
    views: int
    images: int
    identities: str
    content: str
    precision: str
    torch: str
    timm: str
    tensors: Tensors

    @property
    def records(self) -> int:
        """One for each view of each image. Record number: view x images + index, so that a view lies in one piece."""
        return self.views * self.images

    @property
    def record_bytes(self) -> int:
        """Bytes of one record."""
        return record_type(self.tensors).itemsize

    @property
    def digest(self) -> str:
        """24 hexadecimal digits that stand for all of it."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def write(self, folder: Path) -> None:
        """Writes it into `folder`, atomically."""
        write_json(folder / MANIFEST, asdict(self))

    def check_same(self, folder: Path) -> None:
        """MemtokError that names the first difference, unless the manifest in `folder` is this one."""
        found = read_manifest(folder)
        if found.get("format") != FORMAT:
            raise MemtokError(
                f"expected traces of format {FORMAT} in {folder}, found format {found.get('format')!r}; name another "
                "folder, or delete it"
            )
        expected = json.loads(json.dumps(asdict(self)))
        for name in [field.name for field in fields(self)] + sorted(found.keys() - expected.keys()):
            here, wanted = found.get(name), expected.get(name)
            if here == wanted:
                continue
            if isinstance(here, dict) and isinstance(wanted, dict):  # the preprocessing: only what differs in it
                key = next(key for key in {**wanted, **here} if here.get(key) != wanted.get(key))
                name, here, wanted = f"{name}.{key}", here.get(key), wanted.get(key)
            raise MemtokError(
                f"expected traces with {name} {shown(wanted)} in {folder}, found {shown(here)}; name another folder, "
                "or delete it"
            )


def describe(
    backbone: Backbone,
    preprocessing: Preprocessing,
    images: ImageSet,
    *,
    augment: str,
    flip: bool,
    seed: int,
    views: int,
    autocast: str | None,
    needs: Needs = EVERYTHING,
) -> Manifest:
    """The manifest of traces of `images`; needs: what is kept of them.

    autocast: "bf16" if the trunk runs in it. With augment "none" nothing is drawn, and `flip`, `seed` and `views` do
    not count.
    """
    varied = augment != "none"
    precision = str(backbone.dtype).removeprefix("torch.")
    return Manifest(
        backbone=backbone.fingerprint,
        weights=weights_digest(backbone),
        preprocessing=preprocessing.to_dict(),
        augment=augment,
        flip=varied and flip,
        seed=seed if varied else None,
        views=views if varied else 1,
        images=len(images),
        identities=digest_of(name.encode("utf-8", "surrogatepass") for name in images.identities),
        content=content_digest(images),
        precision=precision if autocast is None else f"{precision} under {autocast}",
        torch=minor(torch.__version__),
        timm=minor(timm.__version__),
        tensors=trace_tensors(backbone, needs),
    )


def weights_digest(backbone: Backbone) -> str:
    """`sha256:` over tensors of the trunk as it runs: all small ones, and a few large ones, spread over its depth.

    For ViT-B that is 8 MB of 344, some hundredths of a second. It is computed each time, for a model that is moved to
    another precision and back, in place, tells nobody.
    """
    large = {f"blocks.{layer}.attn.proj.weight" for layer in spread(backbone.depth, LARGE)}
    chosen = (
        (name, tensor.detach().cpu())
        for name, tensor in sorted(trunk_tensors(backbone.vit))
        if tensor.numel() <= SMALL or name in large
    )
    return digest_of(
        part
        for name, tensor in chosen
        for part in (f"{name} {tensor.dtype}".encode(), tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    )


def minor(version: str) -> str:
    """`2.15` of `2.15.0+cu132`."""
    return ".".join(version.split(".")[:2])


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest in `folder` as it stands there; MemtokError if it cannot be read as JSON."""
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no table")
        return found
    except (OSError, ValueError, RecursionError) as error:
        raise MemtokError(
            f"expected a manifest of kept traces in {path}, found something else ({' '.join(str(error).split())}); "
            "delete the folder, or name another"
        ) from error


def shown(value: Any) -> str:
    """A value for a message, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else text[:197] + "..."
