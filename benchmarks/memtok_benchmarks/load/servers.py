"""The servers of a load test: each a process on a free port of loopback."""

from __future__ import annotations

import asyncio
import json
import re
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import psutil

from memtok.errors import MemtokError
from memtok_benchmarks import peers
from memtok_benchmarks.load.client import Client, request
from memtok_benchmarks.load.figures import OK
from memtok_benchmarks.load.material import Material

ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+")
START = 600.0  # seconds until it listens: PEFT takes longer than that for 1,000 adapters
READY = 120.0  # seconds from listening to the first answer
STOP = 90.0  # seconds for a graceful stop


class NoServerError(MemtokError):
    """A server that does not start; the message says why."""


@dataclass(frozen=True)
class Counts:
    """What a server did since its start. seconds: of the model; processor: of all cores. images are those in batches.

    batches, images and seconds are None for a server without metrics.
    """

    at: float
    processor: float
    batches: float | None = None
    images: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Work:
    """Between two counts. batch: mean images in a pass. busy: share of the time. cores: that the process used."""

    cores: float
    batch: float | None
    busy: float | None


class Server:
    """A server that answers."""

    def __init__(self, address: str, process: psutil.Process, metrics: bool) -> None:
        self.address, self.process, self.metrics = address, process, metrics

    def resident(self) -> int:
        """Bytes of memory that it holds."""
        return int(self.process.memory_info().rss)

    async def counts(self, client: Client) -> Counts:
        """What it did up to now."""
        times = self.process.cpu_times()
        now, processor = time.monotonic(), times.user + times.system
        if not self.metrics:
            return Counts(now, processor)
        _, text = await client.ask(request(self.address, "GET", "/metrics"))
        found = {line.split()[0]: line.split()[1] for line in text.decode().splitlines() if "{" not in line}
        batches, images, seconds = (
            float(found[f"memtok_batch_{name}"]) for name in ("images_count", "images_sum", "seconds_sum")
        )
        return Counts(now, processor, batches, images, seconds)


def work(before: Counts, after: Counts) -> Work:
    """What it did between two counts."""
    seconds = after.at - before.at
    cores = (after.processor - before.processor) / seconds
    if before.images is None or after.images is None:
        return Work(cores, None, None)
    assert before.batches is not None
    assert after.batches is not None
    assert before.seconds is not None
    assert after.seconds is not None
    batches = after.batches - before.batches
    busy = (after.seconds - before.seconds) / seconds
    return Work(cores, (after.images - before.images) / batches if batches else None, busy)


def command(material: Material, name: str, count: int) -> list[str]:
    """How a server of the first `count` tasks is started; NoServerError for one whose package is missing."""
    settings = material.settings
    batch = 1 if name == "unbatched" else settings.max_batch
    if name in ("memtok", "unbatched"):
        words = ["serve", str(material.tasks(count)), "--backbone", settings.backbone, "--max-batch", str(batch)]
        return [sys.executable, "-m", "memtok", *words, "--port", "0"]
    if name == "lora" and not peers.installed("peft"):
        raise NoServerError("not installed: peft")
    asked = {
        "peer": name,
        "backbone": settings.backbone,
        "image_size": settings.image_size,
        "tasks": count,
        "classes": settings.classes,
        "max_batch": batch,
    }
    return [sys.executable, "-m", "memtok_benchmarks.load.peer_server", json.dumps(asked)]


@contextmanager
def serving(material: Material, name: str, count: int) -> Iterator[Server]:
    """A server, ready to answer; stopped when the block ends. NoServerError if it does not start."""
    words = command(material, name, count)
    with tempfile.TemporaryFile("w+") as errors, started(words, errors) as process:
        assert process.stdout is not None
        if not select.select([process.stdout], [], [], START)[0]:
            raise NoServerError(f"does not start within {START:.0f} s")
        found = ADDRESS.search(process.stdout.readline())
        if found is None:
            process.wait()
            errors.seek(0)
            said = (errors.read().strip().splitlines() or ["nothing"])[-1]
            raise NoServerError(f"does not start: {said[:200]}")
        asyncio.run(ready(found[0]))
        yield Server(found[0], psutil.Process(process.pid), name in ("memtok", "unbatched"))


@contextmanager
def started(words: list[str], errors: IO[str]) -> Iterator[subprocess.Popen[str]]:
    """A process; a graceful stop at the end, then a hard one."""
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(STOP)
            except subprocess.TimeoutExpired:
                process.kill()


async def ready(address: str) -> None:
    """Returns when the server says that it is; NoServerError if that takes too long."""
    asked, begun = request(address, "GET", "/v2/health/ready"), time.monotonic()
    async with Client(address) as client:
        while (await client.ask(asked))[0] != OK:
            if time.monotonic() - begun > READY:
                raise NoServerError(f"not ready within {READY:.0f} s")
            await asyncio.sleep(0.05)
