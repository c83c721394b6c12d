"""Stores that stay open from one run to the next, so that what one run kept in memory is there for the others."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import torch

from memtok.traces.disk import DiskStore
from memtok.traces.manifest import Manifest
from memtok.traces.store import MemoryStore, Notify, Store


class OpenStores:
    """Stores of traces by place and content, each opened when it is first asked for, all closed together.

    A context manager: at its end the stores are closed, and what was kept in memory is given back.
    """

    def __init__(self) -> None:
        self.stack = ExitStack()
        self.stores: dict[tuple[str, str, str], Store] = {}

    def __enter__(self) -> OpenStores:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self, place: str, folder: Path, manifest: Manifest, device: torch.device, notify: Notify) -> Store:
        """The store of these traces, opened if it is not open yet. MemtokError if it cannot be.

        place: "disk" (then in `folder`), "gpu" (then on `device`) or "ram". notify: told what concerns the opening.
        """
        where = {"disk": str(folder.absolute()), "gpu": str(device)}.get(place, "")
        key = place, where, manifest.digest
        if key not in self.stores:
            if place == "disk":
                store: Store = DiskStore(folder, manifest, notify)
            else:
                store = MemoryStore(manifest, device if place == "gpu" else torch.device("cpu"))
            self.stack.callback(store.close)
            self.stores[key] = store
        return self.stores[key]

    def close(self) -> None:
        """Closes all of them. They can be opened again."""
        self.stack.close()
        self.stores.clear()
