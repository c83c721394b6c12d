"""What all routes share: the tasks, the queue, the keys, and how a request becomes answers."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from fastapi import Request
from PIL import Image

from memtok.serving.batching import Asked, Batcher
from memtok.serving.bodies import Body, Decoded, decode
from memtok.serving.catalogue import Catalogue
from memtok.serving.errors import RequestError, no_task
from memtok.serving.keys import EVERYBODY, Key, KeyRing, Rates
from memtok.serving.metrics import Metrics
from memtok.serving.models import Answers, Scores, ServedModel
from memtok.serving.settings import Limits

T = TypeVar("T")


@dataclass(frozen=True)
class Result:
    """What came of one image of a request: answers, or the reason why there are none."""

    name: str
    answers: Answers | None
    error: RequestError | None


class Service:
    """A server without its routes; `start` and `stop` in the event loop that answers."""

    def __init__(self, catalogue: Catalogue, keys: KeyRing | None = None) -> None:
        self.catalogue = catalogue
        self.keys = keys
        self.limits: Limits = catalogue.limits
        self.metrics = Metrics()
        self.rates = Rates()
        self.batcher = Batcher(self.limits, self.metrics.observe_batch)
        self.ready = False
        # Decoding releases the interpreter lock. One more than there are cores: an image that is slow to decode
        # leaves room for others.
        self._pool = ThreadPoolExecutor((os.cpu_count() or 1) + 1, thread_name_prefix="memtok-images")
        self.metrics.queue.set_function(lambda: self.batcher.waiting)
        self.metrics.tasks.set_function(lambda: len(self.catalogue.model.tasks))

    def start(self) -> None:
        """Begins to answer."""
        Image.init()  # registers Pillow's formats once, before the threads would do it side by side
        self.batcher.start()
        self.ready = True

    async def stop(self) -> None:
        """Answers what was taken, and ends."""
        self.ready = False
        await self.batcher.stop()
        self.catalogue.stop()
        self._pool.shutdown()

    async def in_pool(self, work: Callable[[], T]) -> T:
        """Runs work that would hold up the event loop in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    async def caller(self, authorization: str | None, address: str) -> Key:
        """Who asks, by the header `Authorization`; RequestError 401 without a right key, 429 beyond its rate."""
        if self.keys is None:
            self.rates.take(f"address {address}", self.limits.rate)
            return EVERYBODY
        scheme, _, text = (authorization or "").partition(" ")
        text = text.strip()
        if scheme.lower() != "bearer" or not text:
            raise RequestError(
                401, "expected a key as `Authorization: Bearer KEY`, found none; ask the operator for one"
            )
        ring = self.keys
        key = ring.remembered(text) or await self.in_pool(lambda: ring.check(text))
        if key is None:
            raise RequestError(401, "expected a key that this server knows, found another; ask the operator for one")
        self.rates.take(f"key {key.id}", key.rate or self.limits.rate)
        return key

    def chosen(self, model: ServedModel, key: Key, names: Sequence[str] | None) -> tuple[str, ...]:
        """The tasks that are asked, by default all that the key may see; RequestError 404 for others."""
        if names is None:
            return tuple(name for name in model.tasks if key.sees(name))
        for name in names:
            if not key.sees(name) or name not in model.tasks:  # what it may not see is not even looked up
                raise no_task(name)
        return tuple(dict.fromkeys(names))

    def check_count(self, images: int) -> None:
        """RequestError 413 for more images than a request may have."""
        if images > self.limits.max_images:
            raise RequestError(
                413, f"expected at most {self.limits.max_images} images in a request, found {images}; send several"
            )

    async def results(self, model: ServedModel, body: Body, asked: Asked) -> list[Result]:
        """What the model answers to the images of a request; a broken image harms none of the others."""
        count = len(body.images)
        self.check_count(count)
        self.batcher.reserve(count)
        try:
            decoded = await asyncio.gather(*(self._decoded(model, content) for _, content in body.images))
        finally:
            self.batcher.release(count)
        good = [one.pixels for one in decoded if isinstance(one, Decoded)]
        answers = iter(await self.batcher.answer(model, good, asked) if good else [])
        for name in asked.names:
            if name in self.catalogue.model.tasks:  # it may have been removed meanwhile, and is forgotten
                self.metrics.task_images.labels(name).inc(len(good))
        return [
            Result(name, next(answers), None) if isinstance(one, Decoded) else Result(name, None, one)
            for (name, _), one in zip(body.images, decoded, strict=True)
        ]

    async def _decoded(self, model: ServedModel, content: bytes) -> Decoded | RequestError:
        try:
            return await self.decoded(model, content)
        except RequestError as error:
            return error

    async def attention(self, model: ServedModel, body: Body, name: str) -> tuple[Scores, tuple[int, int]]:
        """Attention weights (rows, columns) over the patches of one image, and the (height, width) of that image."""
        if len(body.images) != 1:
            raise RequestError(422, f"expected one image, found {len(body.images)}; send them one by one")
        self.batcher.reserve(1)
        try:
            image = await self.decoded(model, body.images[0][1])
            return await self.batcher.alone(lambda: model.attention(image.pixels, name)), image.size
        finally:
            self.batcher.release(1)

    async def decoded(self, model: ServedModel, content: bytes) -> Decoded:
        """An image as the model takes it. A thread that still works on it stops soon after the request gave up."""
        over = threading.Event()
        try:
            return await self.in_pool(lambda: decode(content, model.preprocessing, self.limits.max_pixels, over.is_set))
        finally:
            over.set()


@asynccontextmanager
async def deadline(seconds: float) -> AsyncIterator[None]:
    """RequestError 408 when the block takes longer; what it waits for is cancelled, and so gives up its places."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise RequestError(
            408, f"expected an answer within {seconds:g} s, found more work than that; try again later, or allow more"
        ) from error


async def attended(request: Request, work: Coroutine[object, object, T]) -> T:
    """The result of work for a request whose body was read. It is cancelled when the client leaves."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(left(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise RequestError(400, "expected a client that waits for the answer, found that it left")
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def left(request: Request) -> None:
    """Returns when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
