"""Servers of other ways to answer many tasks with one kind of ViT: `python -m memtok_benchmarks.load.peer_server`.

- `models`: K separate models, each a full copy of the ViT with a head of its own, as full fine-tuning leaves them.
- `lora`: one ViT with K adapters of PEFT's LoRA (rank 8, on queries, keys and values) and K heads, switched by
  `set_adapter` before a pass.

Both run one pass per task. What is around the pass is memtok's own: its decoding in as many threads, uvicorn, one
thread for the model, JSON in the same schema, 408 after 30 seconds. There is less of it: no framework, no keys, no
limits, no metrics. Batching is better than first come, first served: with the image that waits longest, all others that
wait for the same task go into its pass.
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import psutil
import torch
import uvicorn
from starlette.types import Receive, Scope, Send
from torch import Tensor, nn

from memtok.backbone import Backbone, load_backbone
from memtok.data.transforms import Normaliser
from memtok.display import shown_bytes
from memtok.errors import MemtokError
from memtok.preprocessing import Preprocessing
from memtok.serving.bodies import decode
from memtok.serving.models import Pixels, Scores
from memtok.serving.routes import ranking
from memtok.serving.running import address_of, listen
from memtok.serving.settings import Limits
from memtok_benchmarks import peers
from memtok_benchmarks.load.material import names

LIMITS = Limits()


class Answering(Protocol):
    """A peer."""

    def answer(self, name: str, images: Tensor) -> Tensor:
        """(B, classes) logits of one task for (B, 3, height, width) images."""


def new_model(backbone: Backbone, classes: int) -> nn.Module:
    """A full copy of the ViT with a new classifier."""
    vit: Any = copy.deepcopy(backbone.vit)
    vit.reset_classifier(classes)
    model: nn.Module = vit.eval().requires_grad_(False)
    return model


class SeparateModels:
    """K models; MemtokError if the memory is too small for them."""

    def __init__(self, backbone: Backbone, count: int, classes: int) -> None:
        size = sum(tensor.numel() * tensor.element_size() for tensor in backbone.parameters())
        free = psutil.virtual_memory().available
        if count * size > 0.8 * free:
            raise MemtokError(
                f"expected memory for {count:,} models of {shown_bytes(size)}, found {shown_bytes(free)} free"
            )
        self.models = {name: new_model(backbone, classes) for name in names(count)}

    def answer(self, name: str, images: Tensor) -> Tensor:
        """By the model of the task."""
        logits: Tensor = self.models[name](images)
        return logits


class SwitchedLoRA:
    """One model with K adapters."""

    def __init__(self, backbone: Backbone, count: int, classes: int) -> None:
        peft = peers.package("peft")
        config = peft.LoraConfig(
            r=peers.RANK, lora_alpha=peers.RANK, target_modules=["qkv"], modules_to_save=["head"]
        )  # as PEFT's documentation has it for models of timm
        first, *others = names(count)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model: Any = peft.get_peft_model(new_model(backbone, classes), config, adapter_name=first)
            for name in others:
                self.model.add_adapter(name, config)
        self.model.eval()
        self.active = first

    def answer(self, name: str, images: Tensor) -> Tensor:
        """By the adapter of the task, switched to if it is not the active one."""
        if name != self.active:
            self.model.set_adapter(name, inference_mode=True)
            self.active = name
        logits: Tensor = self.model(images)
        return logits


PEERS: dict[str, Callable[[Backbone, int, int], Answering]] = {"models": SeparateModels, "lora": SwitchedLoRA}


@dataclass(eq=False)
class Waiting:
    """An image in the queue."""

    name: str
    pixels: Pixels
    answer: asyncio.Future[Scores]
    since: float = field(default_factory=time.monotonic)


class Queue:
    """Images that wait; those that ask the same task share a pass."""

    def __init__(self, peer: Answering, preprocessing: Preprocessing, max_batch: int) -> None:
        self.peer, self.max_batch = peer, max_batch
        self._normalise = Normaliser(preprocessing)
        self._waiting: list[Waiting] = []
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1)

    async def answer(self, name: str, pixels: Pixels) -> Scores:
        """The probabilities (classes,) of one image; TimeoutError if its turn does not come in time."""
        waiting = Waiting(name, pixels, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._arrived.set()
        return await waiting.answer

    async def run(self) -> None:
        """Answers for ever."""
        while True:
            batch = self._take()
            if not batch:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            work = partial(self._pass, batch[0].name, np.stack([one.pixels for one in batch]))
            rows = await asyncio.get_running_loop().run_in_executor(self._thread, work)
            for one, row in zip(batch, rows, strict=True):
                one.answer.set_result(row)

    def _take(self) -> list[Waiting]:
        """The image that waits longest and those that ask the same task, without the ones that waited too long."""
        oldest = time.monotonic() - LIMITS.timeout
        for one in self._waiting:
            if one.since < oldest:
                one.answer.set_exception(TimeoutError())
        self._waiting = [one for one in self._waiting if not one.answer.done()]
        same = [one for one in self._waiting if one.name == self._waiting[0].name][: self.max_batch]
        self._waiting = [one for one in self._waiting if one not in same]
        return same

    def _pass(self, name: str, pixels: Pixels) -> Scores:
        with torch.inference_mode():
            images = self._normalise(torch.from_numpy(pixels))
            found: Scores = self.peer.answer(name, images).float().softmax(dim=1).numpy()
        return found


class App:
    """The ASGI application: `/v2/health/ready`, and `/v1/tasks/NAME/predict` for the bytes of an image."""

    def __init__(self, queue: Queue, preprocessing: Preprocessing, classes: int) -> None:
        self.queue, self.preprocessing = queue, preprocessing
        self.classes = tuple(f"class {index}" for index in range(classes))
        self._pool = ThreadPoolExecutor((os.cpu_count() or 1) + 1)
        self._running: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] == "lifespan":
            await self.live(receive, send)
            return
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        status, value = await self.answer(scope["path"], body)
        content = json.dumps(value).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def live(self, receive: Receive, send: Send) -> None:
        """Starts the queue in the event loop."""
        await receive()
        self._running = asyncio.create_task(self.queue.run())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self._running.cancel()
        await send({"type": "lifespan.shutdown.complete"})

    async def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        """Status and JSON."""
        match path.split("/")[1:]:
            case ["v2", "health", "ready"]:
                return 200, {"ready": True}
            case ["v1", "tasks", name, "predict"]:
                work = partial(decode, body, self.preprocessing, LIMITS.max_pixels)
                image = await asyncio.get_running_loop().run_in_executor(self._pool, work)
                try:
                    scores = await self.queue.answer(name, image.pixels)
                except TimeoutError:
                    return 408, {"error": "expected an answer in time"}
                return 200, ranking(scores, self.classes, len(self.classes))
            case _:
                return 404, {"error": "not found"}


def serve(asked: Mapping[str, Any]) -> None:
    """Serves what a line of JSON asks for, until it is stopped."""
    backbone = load_backbone(asked["backbone"], image_size=asked["image_size"])
    peer = PEERS[asked["peer"]](backbone, asked["tasks"], asked["classes"])
    queue = Queue(peer, backbone.preprocessing, asked["max_batch"])
    app = App(queue, backbone.preprocessing, asked["classes"])
    with listen("127.0.0.1", 0) as listening:
        print(f"on {address_of(listening)}", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False)).run(sockets=[listening])


if __name__ == "__main__":
    try:
        serve(json.loads(sys.argv[1]))
    except MemtokError as error:
        sys.exit(str(error))
