"""Requests that arrive together share one pass of the model.

An image waits in a queue with the model that was served when its request came, so that a change of tasks never reaches
a request that is in flight. While the model is idle the first image waits `max_wait_ms` for others; while it is busy
the queue grows, and the next batch takes what is there, at most `max_batch` images of one model.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from memtok.serving.errors import RequestError
from memtok.serving.models import Answers, Pixels, ServedModel
from memtok.serving.settings import Limits

T = TypeVar("T")

logger = logging.getLogger("memtok")


@dataclass(frozen=True)
class Asked:
    """What a request wants to know of its images."""

    names: tuple[str, ...]
    base: bool = False
    embedding: bool = False


@dataclass
class Waiting:
    """An image in the queue; its answer arrives in `answer`, which is cancelled when the request gives up."""

    model: ServedModel
    pixels: Pixels  # (C, H, W)
    asked: Asked
    answer: asyncio.Future[Answers]
    since: float = field(default_factory=time.monotonic)


Observer = Callable[[int, float], None]
"""Called after a batch with its images and the seconds that it took."""


class Batcher:
    """The queue in front of the model, and the one thread in which it answers. clock: seconds, to time batches."""

    def __init__(self, limits: Limits, observe: Observer, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self._clock = clock
        self.reserved = 0  # images of requests that are being read or decoded
        self._observe = observe
        self._queue: deque[Waiting] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="memtok-model")
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._pace = 0.0  # seconds per image, a moving average

    @property
    def waiting(self) -> int:
        """Images that wait for the model, those that are still being decoded among them."""
        return len(self._queue) + self.reserved

    @property
    def room(self) -> int:
        """Images that may wait: those that are answered within a request's timeout at the last batches' pace.

        While nothing waits as many as `max_queue`, so that a slow batch is not the last one.
        """
        if not self.waiting or self._pace * self.limits.max_queue <= self.limits.timeout:
            return self.limits.max_queue
        return int(self.limits.timeout / self._pace)

    def start(self) -> None:
        """Begins to answer, in the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Answers what is in the queue, and ends."""
        self._stopping = True
        self._arrived.set()
        if self._task is not None:
            await self._task
        self._thread.shutdown()

    def reserve(self, images: int) -> None:
        """Takes places for the images of a request before they are decoded; RequestError 429 if there are too few."""
        waiting, room = self.waiting, self.room
        if waiting + images > room:
            raise RequestError(
                429,
                f"expected room for {images} more images, found {waiting} waiting of at most {room}; try again later",
                retry_after=self._pace * waiting,
            )
        self.reserved += images

    def release(self, images: int) -> None:
        """Gives reserved places back."""
        self.reserved -= images

    async def answer(self, model: ServedModel, images: Sequence[Pixels], asked: Asked) -> list[Answers]:
        """The answers to the images of one request, which gives up its places in the queue when it is cancelled."""
        loop = asyncio.get_running_loop()
        waiting = [Waiting(model, pixels, asked, loop.create_future()) for pixels in images]
        self._queue.extend(waiting)
        self._arrived.set()
        try:
            return list(await asyncio.gather(*(one.answer for one in waiting)))
        finally:
            for one in waiting:
                one.answer.cancel()

    async def alone(self, work: Callable[[], T]) -> T:
        """Runs something else with the model, between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _run(self) -> None:
        while True:
            batch = await self._collect()
            if not batch:
                return
            await self._answer(batch)

    async def _collect(self) -> list[Waiting]:
        """The next batch; empty when the server stops and nothing waits."""
        while True:
            self._drop_cancelled()
            if not self._queue:
                if self._stopping:
                    return []
                self._arrived.clear()
                await self._arrived.wait()
                continue
            left = self._queue[0].since + self.limits.max_wait_ms / 1000 - time.monotonic()
            if left <= 0 or len(self._queue) >= self.limits.max_batch or self._stopping:
                return self._take()
            self._arrived.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), left)

    def _drop_cancelled(self) -> None:
        if any(one.answer.done() for one in self._queue):
            self._queue = deque(one for one in self._queue if not one.answer.done())

    def _take(self) -> list[Waiting]:
        """The first images of one model."""
        batch = [self._queue.popleft()]
        while self._queue and len(batch) < self.limits.max_batch and self._queue[0].model is batch[0].model:
            batch.append(self._queue.popleft())
        return batch

    async def _answer(self, batch: list[Waiting]) -> None:
        """Answers a batch. If it fails as a whole, each image by itself, so that none fails for another."""
        loop = asyncio.get_running_loop()
        started = self._clock()
        try:
            answers = await loop.run_in_executor(self._thread, answers_of, batch)
        except Exception as error:
            if len(batch) > 1:
                logger.warning("a batch of %d images failed (%s); each is answered alone", len(batch), error)
                for one in batch:
                    await self._answer([one])
            elif not batch[0].answer.done():
                batch[0].answer.set_exception(error)
            return
        seconds = self._clock() - started
        pace = seconds / len(batch)
        self._pace = pace if not self._pace else 0.8 * self._pace + 0.2 * pace
        self._observe(len(batch), seconds)
        for one, answer in zip(batch, answers, strict=True):
            if not one.answer.done():
                one.answer.set_result(answer)


def answers_of(batch: Sequence[Waiting]) -> list[Answers]:
    """The answers to the images of a batch, by one pass of their model over all that they ask."""
    asked = [one.asked for one in batch]
    names = tuple(dict.fromkeys(name for one in asked for name in one.names))
    base, embedding = any(one.base for one in asked), any(one.embedding for one in asked)
    answers = batch[0].model.answer(np.stack([one.pixels for one in batch]), names, base=base, embedding=embedding)
    return [answers.row(index) for index in range(len(batch))]
