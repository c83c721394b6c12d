"""A server in this process, images as bytes, and a model that answers when a test lets it."""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import memtok
from memtok.preprocessing import Preprocessing
from memtok.serving.models import Answers, Pixels, TaskFacts
from tests.tiny import tiny_backbone, tiny_task

pytest.importorskip("fastapi")
pytest.importorskip("fastapi_offline")
pytest.importorskip("prometheus_client")
pytest.importorskip("python_multipart")
testclient = pytest.importorskip("starlette.testclient")

Client = testclient.TestClient


def png(seed: int = 0, size: tuple[int, int] = (40, 48), format: str = "PNG") -> bytes:
    """The bytes of a random image of (height, width) `size`."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format=format)
    return stream.getvalue()


def task_bytes(task: memtok.Task, folder: Path) -> bytes:
    """The bytes of a task's file."""
    task.save(folder / "saved.safetensors")
    return (folder / "saved.safetensors").read_bytes()


@pytest.fixture(scope="session")
def backbone() -> memtok.Backbone:
    return tiny_backbone()


@pytest.fixture
def model(backbone: memtok.Backbone) -> memtok.MemoryViT:
    """Three kinds of tasks: with memory, with a head alone, and one that extends the first."""
    pets = tiny_task(backbone, "pets", memory=2, seed=1)
    digits = tiny_task(backbone, "digits", regime="head", classes=7, seed=2)
    breeds = tiny_task(backbone, "breeds", memory=1, extends=[pets], classes=4, seed=3)
    return memtok.MemoryViT(backbone, [pets, digits, breeds])


Serve = Callable[..., Client]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """`serve(model, limits=..., keys=..., store=...)` starts a server and gives a client of it."""
    from memtok.serving.application import create_app
    from memtok.serving.catalogue import Catalogue
    from memtok.serving.keys import KeyRing
    from memtok.serving.models import ServedModel
    from memtok.serving.settings import Limits
    from memtok.serving.task_folder import TaskFolder
    from memtok.serving.torch_model import TorchModel

    with ExitStack() as stack:

        def start(
            model: memtok.MemoryViT | ServedModel,
            *,
            limits: Mapping[str, float] | None = None,
            keys: Path | None = None,
            store: Path | None = None,
            hosts: Sequence[str] | None = None,
        ) -> Client:
            served = TorchModel(model) if isinstance(model, memtok.MemoryViT) else model
            folder = None if store is None else TaskFolder(store)
            catalogue = Catalogue(served, Limits(**(limits or {})), folder)  # type: ignore[arg-type]
            app = create_app(catalogue, None if keys is None else KeyRing(keys), hosts=hosts)
            return stack.enter_context(Client(app, raise_server_exceptions=False))

        yield start


@pytest.fixture(scope="module")
def small_server() -> Iterator[Client]:
    """A server of two tasks with low limits, for all tests of a file."""
    from tests.serving.attack_tools import MAX_BODY, MAX_PIXELS, made_app

    app = made_app(max_body=MAX_BODY, max_pixels=MAX_PIXELS)
    with Client(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def attacked(small_server: Client, caplog: pytest.LogCaptureFixture) -> Iterator[Client]:
    """Its client. What a test does changes no later answer, and no request fails for a reason that was not foreseen."""
    before = small_server.post("/v1/predict", content=png())
    assert before.status_code == 200
    yield small_server
    assert small_server.post("/v1/predict", content=png()).content == before.content
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


@contextmanager
def over_a_socket(model: memtok.MemoryViT, *, keys: Path | None = None, store: Path | None = None) -> Iterator[str]:
    """The address of a real server on a free port of loopback, without a slash at its end."""
    import uvicorn

    from memtok.serving.application import create_app
    from memtok.serving.catalogue import Catalogue
    from memtok.serving.keys import KeyRing
    from memtok.serving.running import LOCAL_HOSTS, Announcing, address_of, listen
    from memtok.serving.settings import Limits
    from memtok.serving.task_folder import TaskFolder
    from memtok.serving.torch_model import TorchModel

    catalogue = Catalogue(TorchModel(model), Limits(), None if store is None else TaskFolder(store))
    app = create_app(catalogue, None if keys is None else KeyRing(keys), hosts=LOCAL_HOSTS)
    started = threading.Event()
    server = Announcing(uvicorn.Config(app, log_config=None, ws="none", lifespan="on"), started.set)
    with listen("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            assert started.wait(60)
            yield address_of(listening)
        finally:
            server.should_exit = True
            thread.join()


class Gate:
    """A served model of two classes that answers only while its gate is open, and remembers its batches."""

    fixed = True
    backbone = ("gate", "sha256:0")
    base_classes = None
    embeds = False

    def __init__(self, names: Sequence[str] = ("pets",)) -> None:
        self.tasks = {name: TaskFacts(name, ("cat", "dog"), "sha256:0") for name in names}
        self.preprocessing = Preprocessing(
            image_size=(8, 8),
            resize=(8, 8),
            crop=False,
            interpolation="nearest",
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            position_resize="timm",
        )
        self.open = threading.Event()
        self.begun = threading.Semaphore(0)
        self.batches: list[tuple[int, tuple[str, ...]]] = []
        self.fails_on: Callable[[Pixels], bool] = lambda pixels: False

    def answer(self, pixels: Pixels, names: Sequence[str], *, base: bool = False, embedding: bool = False) -> Answers:
        """(1, 0) for an image whose first pixel is dark, (0, 1) for a light one."""
        self.batches.append((len(pixels), tuple(names)))
        self.begun.release()
        assert self.open.wait(60)
        if any(map(self.fails_on, pixels)):
            raise RuntimeError("it failed")
        light = (pixels[:, 0, 0, 0] > 127).astype(np.float32)
        scores = np.stack([1 - light, light], axis=1)
        return Answers(dict.fromkeys(names, scores), None, None)

    def attention(self, pixels: Pixels, name: str) -> NDArray[np.float32]:
        """None."""
        raise NotImplementedError
