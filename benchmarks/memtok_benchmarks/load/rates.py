"""Offered load, step by step: how much a server answers, how fast, and up to which load it keeps up."""

from __future__ import annotations

import asyncio
import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from memtok.display import counted
from memtok.serving.torch_model import SELECTED
from memtok_benchmarks.load.client import Client, Question, arrivals, fire, request
from memtok_benchmarks.load.figures import Figures, figures
from memtok_benchmarks.load.material import Material, names
from memtok_benchmarks.load.own_pass import OwnPass, own_pass
from memtok_benchmarks.load.servers import NoServerError, Server, Work, serving, work

WARM_UP = 4  # requests before the first load: the first pass of a server computes what later ones have

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One load. share: of the own pass's images per second. client: the share of a core that the client took."""

    share: float
    figures: Figures
    work: Work
    client: float


@dataclass(frozen=True, kw_only=True)
class Run:
    """All loads of one server. own_pass: seconds of the model's own passes over `max_batch` images, before and after.

    gap: why there are no points.
    """

    server: str
    tasks: int
    question: str
    max_batch: int
    own_pass: tuple[float, ...] = ()
    points: tuple[Point, ...] = ()
    gap: str = ""

    @property
    def batch_seconds(self) -> float:
        """The median of the own passes."""
        return statistics.median(self.own_pass)

    @property
    def ceiling(self) -> float:
        """Images per second of the own pass."""
        return self.max_batch / self.batch_seconds

    @property
    def kept_up(self) -> float | None:
        """The largest offered load, in requests per second, up to which the server kept up with every one."""
        found = None
        for point in sorted(self.points, key=lambda point: point.share):
            if not point.figures.kept_up:
                break
            found = point.figures.offered
        return found

    @property
    def saturated(self) -> float | None:
        """Answers per second at the largest load, if that is beyond the own pass; 429 are no answers."""
        last = max(self.points, key=lambda point: point.share, default=None)
        return last.figures.throughput if last is not None and last.share > 1 else None

    def at(self, share: float) -> Point | None:
        """The load at this share of the own pass."""
        return next((point for point in self.points if point.share == share), None)


def measure(material: Material, say: Say) -> Iterator[Run]:
    """A run per number of tasks, question and server. Peers answer one task per request."""
    settings = material.settings
    for count in settings.tasks:
        with own_pass(material, count) as own:
            for name in settings.servers:
                asked = [q for q in settings.questions if q == "one" or name in ("memtok", "unbatched")]
                yield from of_server(material, own, name, count, asked, say)


def of_server(material: Material, own: OwnPass, name: str, count: int, asked: Sequence[str], say: Say) -> Iterator[Run]:
    """The runs of one server with `count` tasks."""
    batch = material.settings.max_batch
    say(f"{counted(count, 'task')}, {name}: starting")
    try:
        with serving(material, name, count) as server:
            for question in asked:
                chosen = selection(material, question, count)
                before = own.seconds(batch, chosen, material.settings.passes)
                ceiling = batch / statistics.median(before)
                points = asyncio.run(loads(material, server, question, count, ceiling, say))
                after = own.seconds(batch, chosen, material.settings.passes)
                yield Run(
                    server=name,
                    tasks=count,
                    question=question,
                    max_batch=batch,
                    own_pass=(*before, *after),
                    points=tuple(points),
                )
    except NoServerError as error:
        for question in asked:
            yield Run(server=name, tasks=count, question=question, max_batch=batch, gap=str(error))


def selection(material: Material, question: str, count: int) -> list[str] | None:
    """The tasks of the own pass: what a full batch asks, None for all.

    A batch of the question `one` asks as many tasks as it has images, or fewer; like the server, the own pass answers
    all if it asks more than half of them.
    """
    if question == "all":
        return None
    drawn = random.Random(material.settings.seed)
    chosen = sorted({drawn.choice(names(count)) for _ in range(material.settings.max_batch)})
    return chosen if len(chosen) <= SELECTED * count else None


async def loads(material: Material, server: Server, question: str, count: int, ceiling: float, say: Say) -> list[Point]:
    """One load after another, each on an idle server."""
    points = []
    async with Client(server.address) as client:
        for one in questions(material, server.address, question, count, WARM_UP):
            await client.ask(one.content)
        for share in material.settings.rates:
            points.append(await load(material, server, client, question, count, share, share * ceiling))
            found = points[-1].figures
            offered, answered, p99 = found.offered, found.throughput, found.p99 or 0.0
            say(f"  {question}, {offered:.1f} a second offered: {answered:.1f} answered, p99 {p99:.3f} s")
    return points


async def load(
    material: Material, server: Server, client: Client, question: str, count: int, share: float, rate: float
) -> Point:
    """One load."""
    settings = material.settings
    due = arrivals(rate, settings.seconds, settings.seed)
    asked = questions(material, server.address, question, count, len(due))
    before, begun, processor = await server.counts(client), time.monotonic(), time.process_time()
    with short_collections():
        samples = await fire(client, due, asked, None)
    cost = (time.process_time() - processor) / (time.monotonic() - begun)
    found = figures(samples, rate, settings.warm * settings.seconds, settings.seconds, settings.max_batch)
    return Point(share=share, figures=found, work=work(before, await server.counts(client)), client=cost)


def questions(material: Material, address: str, question: str, count: int, number: int) -> list[Question]:
    """So many requests: the images in turn, and of the question `one` a task that is drawn for each."""
    drawn = random.Random(material.settings.seed)
    made: dict[tuple[int, str | None], Question] = {}
    found = []
    for index in range(number):
        image, name = index % len(material.images), None if question == "all" else drawn.choice(names(count))
        if (image, name) not in made:
            path = "/v1/predict?top=1" if name is None else f"/v1/tasks/{name}/predict"
            made[image, name] = Question(request(address, "POST", path, material.images[image]), image, name)
        found.append(made[image, name])
    return found


@contextmanager
def short_collections() -> Iterator[None]:
    """Garbage is collected among new objects only: to look at torch's would stop the client for many milliseconds."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
