"""A steady load in which every answer is compared with the one before it, while tasks change and memory is watched."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from memtok.display import counted
from memtok.errors import MemtokError
from memtok_benchmarks.load.client import Client, Question, Sample, arrivals, fire, request
from memtok_benchmarks.load.figures import OK, REFUSED, Figures, figures, slope
from memtok_benchmarks.load.material import Material, names
from memtok_benchmarks.load.own_pass import OwnPass, own_pass
from memtok_benchmarks.load.rates import Say, short_collections
from memtok_benchmarks.load.servers import Server, serving

TOLERANCE = 1e-4  # of a probability: batches of other sizes round otherwise
ADDED, REPLACED, REMOVED = 201, 200, 204
MINUTE = 60.0

Scores = Mapping[str, Mapping[str, float]]
"""The probability of each class by task."""

Work = Coroutine[object, object, None]


@dataclass
class Comparison:
    """Answers beside those to the same image before the load, those of the warm-up among them.

    asked: requests; failed: of these, those with another status than 200. compared: answers of a task to an image.
    changed: of these, those with another most likely class, or with a probability further away than `TOLERANCE`.
    largest: difference of a probability. missing: tasks without an answer.
    """

    asked: int = 0
    failed: int = 0
    compared: int = 0
    changed: int = 0
    missing: int = 0
    largest: float = 0.0

    def take(self, found: Scores, expected: Scores) -> None:
        """Compares the tasks of `expected`; tasks that were added meanwhile are in `found` too."""
        for name, scores in expected.items():
            if name not in found or set(found[name]) != set(scores):
                self.missing += 1
                continue
            difference = max(abs(found[name][label] - score) for label, score in scores.items())
            self.compared += 1
            self.largest = max(self.largest, difference)
            self.changed += difference > TOLERANCE or best(found[name]) != best(scores)


@dataclass
class Changes:
    """Tasks that were added, replaced and removed. failed: requests for it with another answer than that."""

    added: int = 0
    replaced: int = 0
    removed: int = 0
    failed: int = 0
    seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What the server held, in bytes, once per second, after the warm-up.

    first, last: medians of the first and the last minute. slope: bytes per minute, by least squares.
    """

    samples: tuple[int, ...]
    first: float
    last: float
    slope: float


@dataclass(frozen=True, kw_only=True)
class Steady:
    """A steady load on `tasks` tasks that stay. part: `changes` or `soak`."""

    part: str
    tasks: int
    seconds: float
    share: float
    own_pass: tuple[float, ...]
    figures: Figures
    answers: Comparison
    changes: Changes
    memory: Memory


def measure(material: Material, part: str, say: Say) -> Steady:
    """The part `changes`, in which other tasks come and go, or `soak`, a long load without changes."""
    settings = material.settings
    count = settings.steady_tasks
    say(f"{counted(count, 'task')}, memtok: starting for the part {part}")
    with own_pass(material, count) as own, serving(material, "memtok", count) as server:
        return asyncio.run(steady(material, own, server, part))


async def steady(material: Material, own: OwnPass, server: Server, part: str) -> Steady:
    """One load on a server."""
    settings = material.settings
    changing = part == "changes"
    seconds = settings.changes_seconds if changing else settings.soak_seconds
    share = settings.changes_share if changing else settings.soak_share
    own_seconds = own.seconds(settings.max_batch, None, settings.passes)
    rate = share * settings.max_batch / statistics.median(own_seconds)
    answers, changes, memory = Comparison(), Changes(), list[tuple[float, int]]()
    async with Client(server.address) as client, Client(server.address) as other:
        beside = [watch(server, memory)]
        if changing:
            beside.append(change(material, other, changes))
        samples = await compared(client, material, arrivals(rate, seconds, settings.seed), answers, beside)
    memory.append((seconds, server.resident()))
    begin = settings.warm * seconds
    return Steady(
        part=part,
        tasks=settings.steady_tasks,
        seconds=seconds,
        share=share,
        own_pass=tuple(own_seconds),
        figures=figures(samples, rate, begin, seconds, settings.max_batch),
        answers=answers,
        changes=changes,
        memory=memory_of([(at, size) for at, size in memory if at >= min(begin, MINUTE)]),
    )


async def compared(
    client: Client, material: Material, due: Sequence[float], answers: Comparison, beside: Sequence[Work]
) -> list[Sample]:
    """The samples of a load whose answers are compared with those before it. beside: what runs as long as it does."""
    asked = questions(material, client.address, len(due))
    expected = await answers_before(client, asked)
    await fill(client, material)

    def look(question: Question, status: int, body: bytes) -> None:
        answers.asked += 1
        if status == OK:
            answers.take(scores_of(question, body), expected[question.image, question.name])
        else:
            answers.failed += 1

    with short_collections():
        running = [asyncio.ensure_future(work) for work in beside]
        samples = await fire(client, due, asked, look)
        for task in running:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
    return samples


async def fill(client: Client, material: Material) -> None:
    """Full batches before the load: what they take of memory is no growth. MemtokError if a request fails.

    One that a full queue refuses does not: the batches are full then.
    """
    count = 3 * material.settings.max_batch
    for sample in await fire(client, [0.0] * count, questions(material, client.address, count), None):
        if sample.status not in (OK, REFUSED):
            raise MemtokError(f"expected answers to {count} requests at once, found status {sample.status}")


def questions(material: Material, address: str, number: int) -> list[Question]:
    """Requests for all tasks and for one task in turns, each with all classes in its answer."""
    settings, made = material.settings, []
    tasks = names(settings.steady_tasks)
    for image, content in enumerate(material.images):
        every = request(address, "POST", f"/v1/predict?top={settings.classes}", content)
        name = tasks[image % len(tasks)]
        made.append(Question(every, image))
        made.append(Question(request(address, "POST", f"/v1/tasks/{name}/predict", content), image, name))
    return [made[index % len(made)] for index in range(number)]


async def answers_before(client: Client, asked: Sequence[Question]) -> dict[tuple[int, str | None], Scores]:
    """The scores of each different question, asked one by one."""
    found: dict[tuple[int, str | None], Scores] = {}
    for question in asked:
        if (question.image, question.name) not in found:
            _, body = await client.ask(question.content)
            found[question.image, question.name] = scores_of(question, body)
    return found


def scores_of(question: Question, body: bytes) -> Scores:
    """The scores in an answer."""
    value = json.loads(body)
    tasks = value["images"][0]["tasks"] if question.name is None else {question.name: value}
    return {name: {entry["label"]: entry["score"] for entry in entries} for name, entries in tasks.items()}


def best(scores: Mapping[str, float]) -> str:
    """The most likely class."""
    return max(scores, key=lambda label: scores[label])


async def change(material: Material, client: Client, changes: Changes) -> None:
    """Adds two tasks, replaces one of them, removes both, and begins again, one request after the other."""
    first, second, other = material.further
    cycle = [
        ("PUT", "further-0", first, ADDED),
        ("PUT", "further-1", second, ADDED),
        ("PUT", "further-0", other, REPLACED),
        ("DELETE", "further-1", b"", REMOVED),
        ("DELETE", "further-0", b"", REMOVED),
    ]
    while True:
        for method, name, content, expected in cycle:
            asked = request(client.address, method, f"/v1/tasks/{name}", content, "application/octet-stream")
            begun = time.monotonic()
            status, _ = await client.ask(asked)
            changes.seconds.append(time.monotonic() - begun)
            changes.added += status == expected == ADDED
            changes.replaced += status == expected == REPLACED
            changes.removed += status == expected == REMOVED
            changes.failed += status != expected
            await asyncio.sleep(material.settings.pause)


async def watch(server: Server, memory: list[tuple[float, int]]) -> None:
    """Notes the memory of the server once per second."""
    begun = time.monotonic()
    while True:
        memory.append((time.monotonic() - begun, server.resident()))
        await asyncio.sleep(1)


def memory_of(samples: Sequence[tuple[float, int]]) -> Memory:
    """What became of the memory, from (seconds, bytes)."""
    begin, end = samples[0][0], samples[-1][0]
    return Memory(
        samples=tuple(size for _, size in samples),
        first=statistics.median(size for at, size in samples if at < begin + MINUTE),
        last=statistics.median(size for at, size in samples if at > end - MINUTE),
        slope=MINUTE * slope(samples),
    )
