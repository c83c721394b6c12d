"""Stores that stay open from one run to the next, so that what one run cached in memory is there for the others."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import torch

from memtok.traces.disk import DiskStore
from memtok.traces.manifest import Manifest
from memtok.traces.record import NO_NEEDS, Needs
from memtok.traces.store import MemoryStore, Store


class OpenStores(ExitStack):
    """Stores of traces by place and content, each opened when it is first asked for, all closed together.

    A context manager: at its end the stores are closed, and what was cached in memory is given back. needs: what all
    runs that share them read, so that they read the same records.
    """

    def __init__(self, needs: Needs = NO_NEEDS) -> None:
        super().__init__()
        self.needs = needs
        self.stores: dict[tuple[str, str, str], Store] = {}

    def open(self, place: str, folder: Path, manifest: Manifest, device: torch.device) -> Store:
        """The store of these traces, opened if it is not open yet. MemtokError if it cannot be.

        place: "disk" (then in `folder`), "gpu" (then on `device`) or "ram".
        """
        where = {"disk": str(folder.absolute()), "gpu": str(device)}.get(place, "")
        key = place, where, manifest.digest
        if key not in self.stores:
            memory = device if place == "gpu" else torch.device("cpu")
            store = DiskStore(folder, manifest) if place == "disk" else MemoryStore(manifest, memory)
            self.stores[key] = store
            self.callback(self.stores.pop, key)
            self.callback(store.close)
        return self.stores[key]
