"""Requests share passes: batches grow while the model is busy, give places up, and never mix two models."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

import numpy as np
import pytest

from memtok.serving.batching import Asked, Batcher
from memtok.serving.errors import RequestError
from memtok.serving.settings import Limits
from tests.serving.conftest import Gate

PETS = Asked(("pets",))


def image(value: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Pixels of one value."""
    return np.full((3, 8, 8), value, np.uint8)


def with_batcher(work: Callable[[Batcher], Awaitable[None]], **limits: Any) -> list[int]:
    """Runs `work` with a batcher; the sizes of its batches."""
    sizes: list[int] = []

    async def run() -> None:
        batcher = Batcher(
            Limits(**{"max_wait_ms": 0.0, "max_images": 1, **limits}), lambda images, _: sizes.append(images)
        )
        batcher.start()
        try:
            await work(batcher)
        finally:
            await batcher.stop()

    asyncio.run(run())
    return sizes


async def begun(gate: Gate) -> None:
    """Waits until the model has begun a batch."""
    await asyncio.get_running_loop().run_in_executor(None, gate.begun.acquire)


async def turns() -> None:
    """Lets everything that is ready in the loop run."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_the_batch_grows_while_the_model_is_busy() -> None:
    gate = Gate()

    async def work(batcher: Batcher) -> None:
        first = asyncio.ensure_future(batcher.answer(gate, [image(0)], PETS))
        await begun(gate)
        others = [asyncio.ensure_future(batcher.answer(gate, [image(255 * (n % 2))], PETS)) for n in range(7)]
        await turns()
        assert batcher.waiting == 7
        gate.open.set()
        answers = [(await one)[0] for one in [first, *others]]
        assert [one.probabilities["pets"].argmax() for one in answers] == [0, 0, 1, 0, 1, 0, 1, 0]

    assert with_batcher(work, max_batch=4) == [1, 4, 3]


def test_an_idle_model_waits_for_more() -> None:
    """Images that come within `max_wait_ms` share a batch; a full one goes at once."""
    gate = Gate()
    gate.open.set()

    async def work(batcher: Batcher) -> None:
        await asyncio.gather(*(batcher.answer(gate, [image(0)], PETS) for _ in range(3)))

    assert with_batcher(work, max_wait_ms=1e9, max_batch=3) == [3]


def test_a_request_is_answered_by_the_model_that_it_came_to() -> None:
    old, new = Gate(), Gate()
    blocker = Gate()

    async def work(batcher: Batcher) -> None:
        first = asyncio.ensure_future(batcher.answer(blocker, [image(0)], PETS))
        await begun(blocker)
        jobs = [asyncio.ensure_future(batcher.answer(model, [image(0)], PETS)) for model in (old, old, new, old)]
        await turns()
        for gate in (blocker, old, new):
            gate.open.set()
        await asyncio.gather(first, *jobs)

    assert with_batcher(work) == [1, 2, 1, 1]
    assert (old.batches, new.batches) == ([(2, ("pets",)), (1, ("pets",))], [(1, ("pets",))])


def test_a_batch_asks_only_for_what_its_requests_ask() -> None:
    gate = Gate(["a", "b", "c"])
    gate.open.set()

    async def work(batcher: Batcher) -> None:
        jobs = (batcher.answer(gate, [image(0)], Asked(names)) for names in (("a",), ("c", "a")))
        await asyncio.gather(*jobs)

    with_batcher(work, max_wait_ms=1e9, max_batch=2)
    assert gate.batches == [(2, ("a", "c"))]


def test_a_cancelled_request_gives_up_its_place() -> None:
    gate = Gate()

    async def work(batcher: Batcher) -> None:
        first = asyncio.ensure_future(batcher.answer(gate, [image(0)], PETS))
        await begun(gate)
        second = asyncio.ensure_future(batcher.answer(gate, [image(0)] * 3, PETS))
        third = asyncio.ensure_future(batcher.answer(gate, [image(255)], PETS))
        await turns()
        second.cancel()
        await turns()
        gate.open.set()
        await first
        assert (await third)[0].probabilities["pets"].tolist() == [0, 1]

    assert with_batcher(work) == [1, 1]


def test_room_is_limited() -> None:
    gate = Gate()

    async def work(batcher: Batcher) -> None:
        first = asyncio.ensure_future(batcher.answer(gate, [image(0)], PETS))
        await begun(gate)
        batcher.reserve(2)
        with pytest.raises(RequestError) as caught:
            batcher.reserve(2)
        assert caught.value.status == 429
        assert int(caught.value.headers["Retry-After"]) >= 1
        batcher.release(2)
        batcher.reserve(3)
        batcher.release(3)
        gate.open.set()
        await first

    with_batcher(work, max_queue=3)


def test_what_the_model_cannot_answer_in_time_is_refused_at_once() -> None:
    """Every batch takes a second, and a request may take three: of what waits, three images are answered in time."""
    gate = Gate()
    gate.open.set()

    async def run() -> None:
        limits = Limits(max_wait_ms=0.0, max_images=50, max_queue=50, max_batch=1, timeout=3.0)
        batcher = Batcher(limits, lambda *_: None, clock=count(0.0, 1.0).__next__)
        batcher.reserve(50)  # nothing is known of the model yet
        batcher.release(50)
        batcher.start()
        await batcher.answer(gate, [image(0)], PETS)
        batcher.reserve(2)
        batcher.reserve(1)
        with pytest.raises(RequestError) as caught:
            batcher.reserve(1)
        assert caught.value.status == 429
        assert caught.value.headers["Retry-After"] == "3"
        batcher.release(3)
        batcher.reserve(50)  # while nothing waits, so that a slow batch is not the last one
        batcher.release(50)
        await batcher.stop()

    asyncio.run(run())


def test_one_image_that_fails_harms_no_other() -> None:
    gate = Gate()
    gate.open.set()
    gate.fails_on = lambda pixels: pixels[0, 0, 0] == 7

    async def work(batcher: Batcher) -> None:
        jobs = [batcher.answer(gate, [image(value)], PETS) for value in (0, 7, 255)]
        good, bad, other = await asyncio.gather(*jobs, return_exceptions=True)
        assert isinstance(bad, RuntimeError)
        assert not isinstance(good, BaseException)
        assert not isinstance(other, BaseException)
        assert good[0].probabilities["pets"].tolist() == [1, 0]
        assert other[0].probabilities["pets"].tolist() == [0, 1]

    with_batcher(work, max_wait_ms=1e9, max_batch=3)


def test_stopping_answers_what_waits() -> None:
    gate = Gate()

    async def run() -> None:
        batcher = Batcher(Limits(max_batch=2), lambda *_: None)
        batcher.start()
        jobs = [asyncio.ensure_future(batcher.answer(gate, [image(0)], PETS)) for _ in range(5)]
        await begun(gate)
        stopping = asyncio.ensure_future(batcher.stop())
        await turns()
        assert not stopping.done()
        gate.open.set()
        await stopping
        assert all(job.done() for job in jobs)
        assert [len(await job) for job in jobs] == [1] * 5

    asyncio.run(run())
