"""The model's own batched pass, which a server cannot exceed: in a process of its own, like the server.

A folded `MemoryViT` in inference mode, on images that are decoded, resized and normalised already, without the base
output, with as many threads of torch as the server. Nothing else is counted: no HTTP, no queue, no JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memtok.errors import MemtokError
from memtok_benchmarks.load.material import Material


class OwnPass:
    """The process, which waits idle between two measurements."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def seconds(self, images: int, names: Sequence[str] | None, passes: int) -> list[float]:
        """The time of each pass over so many images, which answers the tasks `names` or all, after one untimed pass."""
        found: list[float] = self.ask({"images": images, "names": names, "passes": passes})
        return found

    def ask(self, question: Any) -> Any:
        """Its answer; MemtokError if it ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise MemtokError("expected the time of the model's own pass, found that its process ended; see above")
        return json.loads(line)


@contextmanager
def own_pass(material: Material, count: int) -> Iterator[OwnPass]:
    """The process with the first `count` tasks."""
    command = [sys.executable, "-m", "memtok_benchmarks.load.own_pass"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            found = OwnPass(process)
            found.ask({"backbone": material.settings.backbone, "tasks": str(material.tasks(count))})
            yield found
        finally:
            process.kill()


def work() -> None:
    """In the process: loads what the first line names, then times passes, one line for each line."""
    import torch

    from memtok.bundle import read_stored
    from memtok.cli.sources import open_backbone, revived
    from memtok.model import MemoryViT

    given = json.loads(sys.stdin.readline())
    stored = read_stored(Path(given["tasks"]))
    backbone = open_backbone(given["backbone"], stored)
    model = MemoryViT(backbone, revived(stored, backbone))
    height, width = backbone.preprocessing.image_size
    print(json.dumps({"threads": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        chosen = model if asked["names"] is None else model.select(asked["names"])
        images = torch.randn(asked["images"], 3, height, width, generator=torch.Generator().manual_seed(0))
        seconds = []
        with chosen.folded(), torch.inference_mode():
            for _ in range(asked["passes"] + 1):
                begun = time.perf_counter()
                _ = chosen(images, base=False).logits
                seconds.append(time.perf_counter() - begun)
        print(json.dumps(seconds[1:]), flush=True)


if __name__ == "__main__":
    work()
