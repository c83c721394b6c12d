"""Small data sets in the published layouts, and a server on this machine that they can be downloaded from."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import struct
import tarfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from numpy.typing import NDArray
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100, SUN397, INaturalist, Places365, inaturalist

NOWHERE = "http://127.0.0.1:9/"
CIFAR = {"cifar10": CIFAR10, "cifar100": CIFAR100}
SPECIES = (
    "Amphibia/Rana clamitans",
    "Amphibia/Anaxyrus boreas",
    "Aves/Zonotrichia albicollis",
    "Aves/Anas acuta",
    "Mammalia/Lynx rufus",
)
SCENES = ("/a/abbey", "/a/airport/indoor", "/b/bar", "/z/zoo")


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def jpeg(number: int) -> bytes:
    """A picture of 8 x 8 that is not like the others."""
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (number * 7 % 256, number // 36 * 31 % 256, 90)).save(stream, "JPEG")
    return stream.getvalue()


def tar(files: Mapping[str, bytes], mode: str = "w:gz") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


# CIFAR


def python2_batch(pixels: NDArray[np.uint8], labels: list[int], key: str) -> bytes:
    """A batch as Python 2 with its numpy pickled it, protocol 2; that is how the published files look."""

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(value)) + value

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    dtype = (
        b"cnumpy\ndtype\n(" + text(b"u1") + number(0) + number(1) + b"tR"
        b"(" + number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    )
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(" + number(0) + b"t" + text(b"b") + b"tR"
        b"(" + number(1) + b"(" + b"".join(map(number, pixels.shape)) + b"t" + dtype + b"\x89"
        + text(pixels.tobytes()) + b"tb"
    )  # fmt: skip
    listed = b"](" + b"".join(map(number, labels)) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(key.encode()) + listed + b"u."


def cifar_files(name: str, seed: int = 0, train: int = 60, test: int = 20) -> dict[str, bytes]:
    """The unpacked files; CIFAR-100's batches are such as Python 3 would write."""
    kind, classes = CIFAR[name], 3
    generator = np.random.default_rng(seed)
    files = {}
    for batches, count in ((kind.train_list, train), (kind.test_list, test)):
        for batch, _ in batches:
            rows = count // len(batches)
            pixels = generator.integers(0, 256, (rows, 3072), dtype=np.uint8)
            labels = [number % classes for number in range(rows)]
            key = "labels" if name == "cifar10" else "fine_labels"
            whole = python2_batch(pixels, labels, key)
            files[batch] = whole if name == "cifar10" else pickle.dumps({"data": pixels, key: labels}, protocol=4)
    files[kind.meta["filename"]] = pickle.dumps({kind.meta["key"]: ["cat", "dog", "cow"]}, protocol=2)
    return files


def publish_cifar(monkeypatch: pytest.MonkeyPatch, name: str, files: Mapping[str, bytes], server: Server) -> bytes:
    """Puts `files` on the server as the data set of this name, with their checksums in torchvision's tables."""
    kind: Any = CIFAR[name]
    archive = tar({f"{kind.base_folder}/{file}": content for file, content in files.items()})
    monkeypatch.setattr(kind, "train_list", [[file, md5(files[file])] for file, _ in kind.train_list])
    monkeypatch.setattr(kind, "test_list", [[file, md5(files[file])] for file, _ in kind.test_list])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(files[kind.meta["filename"]])})
    monkeypatch.setattr(kind, "tgz_md5", md5(archive))
    monkeypatch.setattr(kind, "url", server.offer(kind.filename, archive))
    return archive


# Sets of image files


def inaturalist_files(each: int = 10) -> dict[str, bytes]:
    """{GROUP/SPECIES/NAME: content}, `each` images per species."""
    return {
        f"{species}/{number}.jpg": jpeg(each * place + number)
        for place, species in enumerate(SPECIES)
        for number in range(each)
    }


def inaturalist_lists(names: list[str]) -> dict[str, bytes]:
    """train2017.json and val2017.json: every fifth image validates."""
    parts = {"train2017.json": [], "val2017.json": []}  # type: dict[str, list[str]]
    for number, name in enumerate(names):
        parts["val2017.json" if number % 5 == 0 else "train2017.json"].append(name)
    return {
        part: json.dumps(
            {"images": [{"id": place, "file_name": f"train_val_images/{name}"} for place, name in enumerate(listed)]}
        ).encode()
        for part, listed in parts.items()
    }


def publish_inaturalist(monkeypatch: pytest.MonkeyPatch, files: Mapping[str, bytes], server: Server) -> bytes:
    archive = tar({f"train_val_images/{name}": content for name, content in files.items()})
    monkeypatch.setitem(inaturalist.DATASET_URLS, "2017", server.offer("train_val_images.tar.gz", archive))
    monkeypatch.setitem(inaturalist.DATASET_MD5, "2017", md5(archive))
    return archive


def sun_files(each: int = 10) -> dict[str, bytes]:
    files = {
        f"SUN397{scene}/sun_{place}{number:03d}.jpg": jpeg(each * place + number)
        for place, scene in enumerate(SCENES)
        for number in range(each)
    }
    return {**files, "SUN397/ClassName.txt": "".join(f"{scene}\n" for scene in SCENES).encode()}


def sun_lists(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Training_01.txt and Testing_01.txt, which do not name every image."""
    names = [name.removeprefix("SUN397") for name in files if name.endswith(".jpg")]
    return {
        "Training_01.txt": "\n".join(names[0::3]).encode(),
        "Testing_01.txt": "\r\n".join(names[1::3]).encode(),
    }


def publish_sun(monkeypatch: pytest.MonkeyPatch, files: Mapping[str, bytes], server: Server) -> bytes:
    archive = tar(files)
    monkeypatch.setattr(SUN397, "_DATASET_URL", server.offer("SUN397.tar.gz", archive))
    monkeypatch.setattr(SUN397, "_DATASET_MD5", md5(archive))
    return archive


def publish_places(monkeypatch: pytest.MonkeyPatch, server: Server, each: int = 6) -> dict[str, bytes]:
    """The three archives of Places-365 on the server; its classes are not numbered in the order of their names."""
    numbers = {scene: len(SCENES) - 1 - place for place, scene in enumerate(SCENES)}
    train = {
        f"{scene}/{number:08d}.jpg": numbers[scene] for scene in SCENES for number in range(each)
    }  # their names begin with a slash
    val = {f"Places365_val_{place:08d}.jpg": place % len(SCENES) for place in range(2 * len(SCENES))}
    lists = {
        "categories_places365.txt": "".join(f"{scene} {number}\n" for scene, number in numbers.items()).encode(),
        "places365_train_standard.txt": "".join(f"{name} {label}\n" for name, label in train.items()).encode(),
        "places365_val.txt": "".join(f"{name} {label}\n" for name, label in val.items()).encode(),
    }
    archives = {
        "filelist_places365-standard.tar": tar(lists, "w"),
        "train_256_places365standard.tar": tar(
            {f"data_256{name}": jpeg(place) for place, name in enumerate(train)}, "w"
        ),
        "val_256.tar": tar({f"val_256/{name}": jpeg(100 + place) for place, name in enumerate(val)}, "w"),
    }
    urls = [server.offer(name, content) for name, content in archives.items()]
    monkeypatch.setattr(Places365, "_BASE_URL", urls[0].rsplit("/", 1)[0] + "/")
    monkeypatch.setattr(
        Places365, "_CATEGORIES_META", ("categories_places365.txt", md5(lists["categories_places365.txt"]))
    )
    for table, key, name, content in (
        ("_DEVKIT_META", "standard", "filelist_places365-standard.tar", archives),
        ("_FILE_LIST_META", "train-standard", "places365_train_standard.txt", lists),
        ("_FILE_LIST_META", "val", "places365_val.txt", lists),
        ("_IMAGES_META", ("train-standard", True), "train_256_places365standard.tar", archives),
        ("_IMAGES_META", ("val", True), "val_256.tar", archives),
    ):
        monkeypatch.setitem(getattr(Places365, table), key, (name, md5(content[name])))
    return archives


def everywhere_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """All downloads go to a port where nobody listens."""
    for kind in (torchvision.datasets.MNIST, torchvision.datasets.FashionMNIST):
        monkeypatch.setattr(kind, "mirrors", [NOWHERE])
    for batches in CIFAR.values():
        monkeypatch.setattr(batches, "url", NOWHERE + batches.filename)
    monkeypatch.setitem(inaturalist.DATASET_URLS, "2017", f"{NOWHERE}train_val_images.tar.gz")
    monkeypatch.setattr(SUN397, "_DATASET_URL", f"{NOWHERE}SUN397.tar.gz")
    monkeypatch.setattr(Places365, "_BASE_URL", NOWHERE)


# Where they come from


@dataclass
class Server:
    """Files by name; `cut` ones end early, though the server says how long they are. `asked` counts the downloads."""

    address: str
    files: dict[str, bytes] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def offer(self, name: str, content: bytes) -> str:
        """Puts a file there and returns its address."""
        self.files[name] = content
        return f"{self.address}/{name}"


@contextmanager
def serving() -> Iterator[Server]:
    """A server on this machine, for as long as the block runs."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.head()

        def do_GET(self) -> None:
            name = self.path.lstrip("/")
            server.asked.append(name)
            if self.head():
                self.wfile.write(server.files[name][: server.cut.get(name)])

        def head(self) -> bool:
            content = server.files.get(self.path.lstrip("/"))
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            return content is not None

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        server = Server(f"http://127.0.0.1:{listener.server_port}")
        thread = threading.Thread(target=lambda: listener.serve_forever(poll_interval=0.01), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            listener.shutdown()
            thread.join()


def open_with_torchvision(name: str, data_dir: Path) -> Any:
    """What torchvision's own class makes of a data folder, for comparison."""
    if name == "inaturalist2017":
        return INaturalist(str(data_dir), version="2017")
    if name == "sun397":
        return SUN397(str(data_dir))
    return CIFAR[name](str(data_dir))
