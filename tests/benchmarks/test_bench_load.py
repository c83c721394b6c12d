"""The parts of the load test: what samples say, the client, the peers, the comparison of answers, the tables."""

from __future__ import annotations

import asyncio
import io
import json
import math
import random
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from memtok.errors import MemtokError
from memtok_benchmarks import peers
from memtok_benchmarks.load import client as client_module
from memtok_benchmarks.load import material, rates, steady
from memtok_benchmarks.load.__main__ import command, main
from memtok_benchmarks.load.client import Client, Question, Sample, arrivals, fire, request
from memtok_benchmarks.load.figures import figures, percentile, slope
from memtok_benchmarks.load.peer_server import App, Queue, SeparateModels, SwitchedLoRA, Waiting
from memtok_benchmarks.load.rates import Point, Run
from memtok_benchmarks.load.report import Report
from memtok_benchmarks.load.servers import Counts, NoServerError, Work, work
from memtok_benchmarks.load.servers import command as server_command
from memtok_benchmarks.load.settings import Settings
from memtok_benchmarks.report import cells
from tests.tiny import randomize_, tiny_backbone, tiny_images

NAMES = ("task-0", "task-1", "task-2")


def test_a_percentile_is_a_value_that_so_many_do_not_exceed() -> None:
    values = [float(value) for value in range(1, 101)]
    random.Random(0).shuffle(values)
    assert [percentile(values, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]
    assert percentile([3.0], 0.5) == 3
    assert percentile([], 0.5) is None


def test_the_slope_of_points() -> None:
    assert slope([(0, 1), (1, 3), (2, 5)]) == pytest.approx(2)
    assert slope([]) == slope([(1, 2)]) == slope([(1, 2), (1, 3)]) == 0


def test_arrivals_are_as_many_as_expected_in_the_time_and_the_same_for_a_seed() -> None:
    due = arrivals(50, 4, seed=1)
    assert len(due) == 200
    assert due == sorted(due) == arrivals(50, 4, seed=1) != arrivals(50, 4, seed=2)
    assert 0 <= due[0] < due[-1] <= 4
    gaps = np.diff(due)
    assert 0.7 < gaps.std() / gaps.mean() < 1.3  # 1 for a Poisson process, 0 for a metronome
    assert len(arrivals(0.001, 1, seed=0)) == 1


def served(due: float, latency: float = 0.1, status: int = 200) -> Sample:
    return Sample(due, due, due + latency, status)


def test_latencies_count_from_when_a_request_was_due() -> None:
    late = Sample(due=1.0, sent=3.0, done=3.5, status=200)
    assert late.latency == 2.5
    found = figures([late], 1, 0, 4, batch=1)
    assert (found.p50, found.p99, found.most, found.late) == (2.5, 2.5, 2.5, 2.0)


def test_figures_of_a_load_that_is_answered() -> None:
    samples = [served(index / 10, latency=0.1 + 0.001 * index) for index in range(100)]
    found = figures(samples, 10, 2, 10, batch=1)
    assert (found.requests, found.answered, found.failed) == (80, 80, 0)  # the first 20 are the warm-up
    assert found.throughput == pytest.approx(10, rel=0.02)
    assert found.kept_up
    assert found.p50 is not None
    assert found.p95 is not None
    assert found.p99 is not None
    assert found.p50 < found.p95 < found.p99 == found.most
    assert found.p50 == pytest.approx(0.1 + 0.001 * 59)


def test_figures_of_a_server_that_falls_behind() -> None:
    """Offered 10 per second, answered 5 in order: the backlog grows by 5 per second."""
    samples = [Sample(index / 10, index / 10, (index + 1) / 5, 200) for index in range(100)]
    found = figures(samples, 10, 2, 10, batch=1)
    assert found.throughput == pytest.approx(5, rel=0.02)
    assert found.growth == pytest.approx(5, rel=0.05)
    assert not found.kept_up
    assert figures(samples, 10, 2, 10, batch=100).kept_up  # within one batch: a load that is too short to tell


@pytest.mark.parametrize(
    ("status", "field"), [(429, "refused"), (408, "timed_out"), (0, "timed_out"), (500, "failed"), (404, "failed")]
)
def test_what_is_not_answered_is_told_apart(status: int, field: str) -> None:
    samples = [served(index / 10) for index in range(50)] + [served(4.95, 0.01, status)]
    found = figures(samples, 10, 0, 5, batch=16)
    assert (found.requests, found.answered) == (51, 50)
    assert {name: getattr(found, name) for name in ("refused", "timed_out", "failed")} == {
        "refused": 0, "timed_out": 0, "failed": 0, field: 1,
    }  # fmt: skip
    assert not found.kept_up
    assert found.most == pytest.approx(0.1)  # only answers have a latency


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(handler: Handler) -> Any:
    """A client of a server that does what `handler` does with each connection, until the block ends."""

    async def quiet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handling.append(task)
        with suppress(asyncio.CancelledError):  # asyncio would log it
            await handler(reader, writer)
        writer.close()

    handling: list[asyncio.Task[Any]] = []
    server = await asyncio.start_server(quiet, "127.0.0.1", 0)
    address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        async with Client(address) as client:
            yield client
    finally:
        server.close()
        for task in handling:
            task.cancel()
        await asyncio.gather(*handling)


async def read_request(reader: asyncio.StreamReader) -> bytes | None:
    """Path and body of the next request on a connection; None at its end."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
    return head.split(b" ")[1] + b" " + await reader.readexactly(length)


def reply(status: int, body: bytes) -> bytes:
    return f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def test_the_client_keeps_connections_and_opens_more_when_they_are_in_use() -> None:
    opened: list[int] = []

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append(1)
        while (asked := await read_request(reader)) is not None:
            writer.write(reply(200, asked.upper()))

    async def run() -> None:
        async with listening(echo) as client:
            for index in range(3):
                content = request(client.address, "POST", f"/{index}", b"body")
                assert await client.ask(content) == (200, f"/{index} BODY".encode())
            assert len(opened) == 1
            await asyncio.gather(*(client.ask(request(client.address, "GET", "/")) for _ in range(3)))
            assert len(opened) == 3

    asyncio.run(run())


def test_a_connection_that_ended_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append(1)
        assert await read_request(reader) is not None
        writer.write(reply(200, b""))
        await writer.drain()
        if closing:
            writer.close()
        else:
            await read_request(reader)

    async def run() -> None:
        async with listening(once) as client:
            for _ in range(3):
                assert (await client.ask(request(client.address, "GET", "/")))[0] == 200
                await asyncio.sleep(0.05)  # for the end of the connection to arrive
        assert len(opened) == 3

    closing = True
    asyncio.run(run())
    opened.clear()
    closing = False
    monkeypatch.setattr(client_module, "IDLE", 0)  # those that were idle for long
    asyncio.run(run())


def test_no_answer_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(what: bytes, *, wait: bool) -> tuple[int, bytes]:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(what)
            if wait:
                await read_request(reader)

        async with listening(answer) as client:
            found: tuple[int, bytes] = await client.ask(request(client.address, "GET", "/"))
            return found

    for broken in (b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", b"no HTTP\r\n\r\n"):
        assert asyncio.run(run(broken, wait=False)) == (0, b"")
    assert asyncio.run(Client("http://127.0.0.1:1").ask(b"")) == (0, b"")
    monkeypatch.setattr(client_module, "PATIENCE", 0.05)
    assert asyncio.run(run(b"", wait=True)) == (0, b"")


def test_requests_are_sent_when_they_are_due_whatever_became_of_those_before() -> None:
    """The server answers the first only after the last has come: a client that waits would never send that."""
    seen: list[tuple[int | None, int, bytes]] = []

    async def run() -> list[Sample]:
        last = asyncio.Event()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while (asked := await read_request(reader)) is not None:
                if asked.startswith(b"/3"):
                    last.set()
                await last.wait()
                writer.write(reply(429 if asked.startswith(b"/2") else 200, asked))

        async with listening(answer) as client:
            asked = [Question(request(client.address, "GET", f"/{index}"), index) for index in range(4)]
            return await fire(client, [0, 0.01, 0.02, 0.03], asked, lambda q, s, body: seen.append((q.image, s, body)))

    samples = asyncio.run(run())
    assert [sample.due for sample in samples] == [0, 0.01, 0.02, 0.03]
    assert [sample.status for sample in samples] == [200, 200, 429, 200]
    assert all(sample.due <= sample.sent <= sample.done for sample in samples)
    assert sorted(seen) == [(0, 200, b"/0 "), (1, 200, b"/1 "), (2, 429, b"/2 "), (3, 200, b"/3 ")]


def test_questions_ask_all_tasks_or_one_that_is_drawn() -> None:
    made = material.Material(Settings(backbone="small"), Path(), (b"a", b"bc"), ())
    every = rates.questions(made, "http://h:1", "all", 3, 4)
    assert [question.image for question in every] == [0, 1, 0, 1]
    assert every[1].content == (
        b"POST /v1/predict?top=1 HTTP/1.1\r\nHost: h:1\r\nContent-Type: image/jpeg\r\nContent-Length: 2\r\n\r\nbc"
    )
    one = rates.questions(made, "http://h:1", "one", 3, 60)
    assert {question.name for question in one} == set(NAMES)
    assert all(f"/v1/tasks/{question.name}/predict ".encode() in question.content for question in one)


def test_the_own_pass_answers_what_a_batch_asks() -> None:
    made = material.Material(Settings(backbone="small"), Path(), (), ())
    assert rates.selection(made, "all", 100) is None
    chosen = rates.selection(made, "one", 100)
    assert chosen is not None
    assert 10 < len(set(chosen)) <= 16
    assert rates.selection(made, "one", 10) is None  # more than half of them: the server answers all


def test_the_work_of_a_server_between_two_counts() -> None:
    before = Counts(at=10, processor=5, batches=2, images=20, seconds=1)
    after = Counts(at=14, processor=11, batches=5, images=50, seconds=3)
    assert work(before, after) == Work(cores=1.5, batch=10, busy=0.5)
    assert work(Counts(10, 5), Counts(14, 11)) == Work(cores=1.5, batch=None, busy=None)
    assert work(before, Counts(14, 11, 2, 20, 1)).batch is None


def test_answers_are_compared_with_those_before() -> None:
    expected = {"pets": {"cat": 0.7, "dog": 0.3}, "digits": {"0": 0.50001, "1": 0.49999}}
    cases: list[tuple[dict[str, Any], tuple[int, int, int]]] = [
        (expected | {"other": {"x": 1.0}}, (2, 0, 0)),
        (expected | {"pets": {"cat": 0.70009, "dog": 0.29991}}, (2, 0, 0)),
        (expected | {"pets": {"cat": 0.7002, "dog": 0.2998}}, (2, 1, 0)),
        (expected | {"digits": {"0": 0.49999, "1": 0.50001}}, (2, 1, 0)),  # near, and another class
        ({"pets": expected["pets"]}, (1, 0, 1)),
        (expected | {"pets": {"cat": 1.0}}, (1, 0, 1)),
    ]
    for found, counts in cases:
        compared = steady.Comparison()
        compared.take(found, expected)
        assert (compared.compared, compared.changed, compared.missing) == counts
    assert steady.scores_of(Question(b"", 0, "pets"), b'[{"label": "cat", "score": 0.5}]') == {"pets": {"cat": 0.5}}
    body = json.dumps({"images": [{"name": "image", "tasks": {"pets": [{"label": "cat", "score": 0.5}]}}]}).encode()
    assert steady.scores_of(Question(b"", 0), body) == {"pets": {"cat": 0.5}}


def test_a_failed_request_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """All answers of a steady load count, those of its warm-up too; one that fails before it ends the test."""
    answered: list[bytes] = []
    fails = 2 + 3 * Settings(backbone="small").max_batch + 1  # two images, full batches, the first of the load
    status = 500

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (asked := await read_request(reader)) is not None:
            answered.append(asked)
            writer.write(reply(status if len(answered) == fails else 200, b'[{"label": "class 0", "score": 0.5}]'))

    def asked(made: object, address: str, number: int) -> list[Question]:
        return [Question(request(address, "GET", "/"), index % 2, "task-0") for index in range(number)]

    async def run() -> steady.Comparison:
        compared = steady.Comparison()
        async with listening(answer) as client:
            made = material.Material(Settings(backbone="small"), Path(), (), ())
            await steady.compared(client, made, [0, 0.01, 0.02, 0.03], compared, [])
        return compared

    monkeypatch.setattr(steady, "questions", asked)
    found = asyncio.run(run())
    assert (found.asked, found.failed, found.compared, found.changed) == (4, 1, 3, 0)
    fails, answered = 3, []
    with pytest.raises(MemtokError):
        asyncio.run(run())
    status, answered = 429, []  # the queue is full, as it should be
    assert asyncio.run(run()).failed == 0


def test_memory_is_that_of_the_first_and_of_the_last_minute() -> None:
    samples = [(float(at), 100 + (at if at >= 300 else 0)) for at in range(600)]
    found = steady.memory_of(samples)
    assert (found.first, found.last) == (100, 100 + 569.5)
    assert len(found.samples) == 600
    assert steady.memory_of([(at, size + 1) for at, size in samples]).slope == pytest.approx(found.slope) != 0
    assert steady.memory_of([(float(at), 3 * at) for at in range(200)]).slope == pytest.approx(180)


@pytest.fixture
def backbone() -> Any:
    return tiny_backbone()


def test_separate_models_answer_with_weights_of_their_own(backbone: Any) -> None:
    peer = SeparateModels(backbone, 3, 4)
    for seed, model in enumerate(peer.models.values()):
        randomize_(model, seed, std=0.3)
    images = tiny_images(2)
    with torch.inference_mode():
        answers = [peer.answer(name, images) for name in NAMES]
        assert all(torch.equal(answer, peer.models[name](images)) for name, answer in zip(NAMES, answers, strict=True))
    assert [tuple(answer.shape) for answer in answers] == [(2, 4)] * 3
    assert not torch.allclose(answers[0], answers[1])
    weights = {id(parameter) for model in peer.models.values() for parameter in model.parameters()}
    assert len(weights) == 3 * len(list(peer.models["task-0"].parameters()))


def test_too_many_separate_models_are_a_gap(backbone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 10_000}))
    with pytest.raises(MemtokError, match=r"expected memory for 3 models of \d+ kB, found 10 kB free"):
        SeparateModels(backbone, 3, 4)


def test_lora_answers_by_the_adapter_that_is_asked(backbone: Any) -> None:
    pytest.importorskip("peft")
    peer = SwitchedLoRA(backbone, 3, 4)
    adapted = {name: module for name, module in peer.model.named_modules() if hasattr(module, "lora_A")}
    assert len(adapted) == 2  # qkv of both layers
    randomize_(nn.ModuleList(module.lora_B for module in adapted.values()), 0, std=0.3)
    images = tiny_images(2)
    with torch.inference_mode():
        first = {name: peer.answer(name, images) for name in NAMES}
        again = {name: peer.answer(name, images) for name in reversed(NAMES)}
    assert all(torch.equal(first[name], again[name]) for name in NAMES)
    assert not torch.allclose(first["task-0"], first["task-1"])


class Recorded:
    """A peer that notes its passes; every image is answered by its first pixel."""

    def __init__(self) -> None:
        self.passes: list[tuple[str, int]] = []

    def answer(self, name: str, images: Tensor) -> Tensor:
        self.passes.append((name, len(images)))
        values = images[:, 0, 0, 0]
        return torch.stack([values, -values], dim=1)


def test_images_that_wait_for_one_task_share_a_pass(backbone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = Recorded()
    pixels = [np.full((3, 32, 32), value, np.uint8) for value in (0, 50, 100, 150, 200, 250)]

    async def run() -> list[Any]:
        queue = Queue(peer, backbone.preprocessing, max_batch=2)
        asked = [asyncio.create_task(queue.answer(name, image)) for name, image in zip("abaaba", pixels, strict=True)]
        await asyncio.sleep(0)
        running = asyncio.create_task(queue.run())
        answers = await asyncio.gather(*asked)
        running.cancel()
        return answers

    answers = asyncio.run(run())
    assert peer.passes == [("a", 2), ("b", 2), ("a", 2)]
    assert [answer.shape for answer in answers] == [(2,)] * 6
    first = [answer[0] for answer in answers]
    assert first == sorted(first)  # each image has its own answer
    assert len(set(map(float, first))) == 6


def test_images_that_waited_too_long_are_dropped(backbone: Any) -> None:
    async def run() -> None:
        queue = Queue(Recorded(), backbone.preprocessing, max_batch=2)
        loop = asyncio.get_running_loop()
        old, new = (Waiting("a", np.zeros((3, 32, 32), np.uint8), loop.create_future()) for _ in range(2))
        old.since -= 31
        queue._waiting += [old, new]
        assert queue._take() == [new]
        with pytest.raises(TimeoutError):
            await old.answer

    asyncio.run(run())


def test_a_peer_answers_in_the_schema_of_memtok(backbone: Any) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (40, 40), (200, 10, 10)).save(stream, "png")

    async def run() -> None:
        queue = Queue(Recorded(), backbone.preprocessing, max_batch=2)
        app = App(queue, backbone.preprocessing, 2)
        running = asyncio.create_task(queue.run())
        assert await app.answer("/v2/health/ready", b"") == (200, {"ready": True})
        status, found = await app.answer("/v1/tasks/a/predict", stream.getvalue())
        assert status == 200
        assert [entry["label"] for entry in found] == ["class 0", "class 1"]
        assert sum(entry["score"] for entry in found) == pytest.approx(1)
        assert (await app.answer("/v1/other", b""))[0] == 404
        running.cancel()

    asyncio.run(run())


def test_a_missing_package_is_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "installed", lambda name: False)
    made = material.Material(Settings(backbone="small"), Path(), (), ())
    with pytest.raises(NoServerError, match="not installed: peft"):
        server_command(made, "lora", 3)
    assert server_command(made, "unbatched", 3)[-4:] == ["--max-batch", "1", "--port", "0"]


def test_photographs_have_the_size_that_is_asked_and_tasks_differ(backbone: Any) -> None:
    first, second = (Image.open(io.BytesIO(content)) for content in material.photographs(2, 64, seed=0))
    assert (first.size, first.format) == ((85, 64), "JPEG")
    assert first.tobytes() != second.tobytes()
    tasks = [
        material.new_task(backbone, Settings(backbone="", classes=4), name, seed) for seed, name in enumerate("ab")
    ]
    assert not torch.equal(tasks[0].head.weight, tasks[1].head.weight)
    assert tasks[0].head.weight.std().item() == pytest.approx(2 / math.sqrt(32), rel=0.3)


def run_of(server: str, own: float, points: list[tuple[float, float, float]], tasks: int = 100) -> Run:
    """A run of (share, throughput, p99) whose own pass of 16 images takes `own` seconds; it keeps up below 0.85."""
    made = []
    for share, throughput, p99 in points:
        samples = [served(index / 100, p99) for index in range(100)]
        found = figures(samples, share * 16 / own, 0, 1, batch=16)
        changed = {"throughput": throughput, "kept_up": share < 0.85}
        made.append(
            Point(share=share, figures=type(found)(**{**vars(found), **changed}), work=Work(1.0, 8.0, 0.9), client=0.1)
        )
    return Run(server=server, tasks=tasks, question="all", max_batch=16, own_pass=(own,) * 3, points=tuple(made))


def report_of(*runs: Run, **changes: Any) -> Report:
    return Report(Settings(backbone="small", tasks=(100,), **changes), {"cores": 2}, "python", 12_000, list(runs))


def test_the_bounds_are_on_throughput_and_on_the_latency_at_half_of_it() -> None:
    points = [(0.25, 2.0, 0.7), (0.5, 4.0, 1.5), (0.8, 6.4, 1.6), (0.9, 6.5, 3.0), (1.3, 6.8, 9.0)]
    run = run_of("memtok", 2.0, points)
    assert (run.ceiling, run.batch_seconds, run.saturated) == (8, 2, 6.8)
    assert run.kept_up == pytest.approx(6.4)
    throughput, latency = report_of(run, run_of("unbatched", 2.0, points[:2])).lines()
    assert cells(throughput)[1:] == ("0.85", "memtok serve --max-batch 1 - (not saturated)", "≥ 0.8", "-", "must")
    assert cells(latency)[1:] == ("0.75", "memtok serve --max-batch 1 0.75", "≤ 2", "-", "must")
    slow = run_of("memtok", 2.0, [(0.5, 4.0, 4.1), (1.3, 6.3, 9.0)])
    assert [cells(line)[-1] for line in report_of(slow).lines()] == ["no", "no"]
    assert [cells(line)[-1] for line in report_of(slow, max_batch=8).lines()] == ["-", "-"]  # not those sizes


def test_a_gap_says_why() -> None:
    gap = Run(server="models", tasks=100, question="one", max_batch=16, gap="no room")
    own = run_of("memtok", 2.0, [(0.5, 4.0, 1.5), (1.3, 6.8, 9.0)])
    one = Run(**{**vars(own), "question": "one"})
    report = report_of(one, gap)
    assert "K separate models - (no room)" in cells(report.lines()[0])[2]
    assert "- 100 tasks, K separate models: no room." in report.to_markdown()
    assert report.lines()[0].must is None  # one task per request: no bound


def test_settings_that_cannot_be() -> None:
    for name, value in (("parts", ("rate",)), ("servers", ()), ("questions", ("all", "all")), ("rates", (0.5, 0.5))):
        with pytest.raises(MemtokError) as error:
            Settings(backbone="small", **{name: value})  # type: ignore[arg-type]
        assert error.value.argument == name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--backbone"),
        (["--backbone", "small", "--tasks", "0"], "expected --tasks as a whole number of 1 or more, found '0'"),
        (["--backbone", "small", "--parts", "rate"], "expected --parts as one of rates, changes, soak, found 'rate'"),
        (["--backbone", "small", "--seconds", "0"], "expected --seconds as"),
    ],
)
def test_wrong_arguments(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_an_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--backbone", "small", "--parts", "soak", "soak"]) == 1
    assert capsys.readouterr().err.startswith("python -m memtok_benchmarks.load: error: expected parts among rates")


def test_the_command_is_told_without_folders(tmp_path: Path) -> None:
    (tmp_path / "vit").mkdir()
    words = ["--backbone", str(tmp_path / "vit"), "--out", str(tmp_path), "--tasks", "1", "10"]
    assert command(words) == "python -m memtok_benchmarks.load --backbone vit --tasks 1 10"
