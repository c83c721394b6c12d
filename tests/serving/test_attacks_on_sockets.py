"""What no HTTP client would send, over real connections: the server goes on, and stops when it is asked to."""

from __future__ import annotations

import http.client
import socket
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

import memtok
from memtok.serving import running
from memtok.serving.bodies import decode
from tests.serving.attack_tools import GOOD, made_app, picture
from tests.serving.conftest import over_a_socket
from tests.serving.processes import PATIENCE
from tests.tiny import tiny_backbone, tiny_task

LOCAL = b"Host: 127.0.0.1\r\n"
CLOSE = b"Connection: close\r\n"
POST = b"POST /v1/predict HTTP/1.1\r\n" + LOCAL
CHUNKED = POST + CLOSE + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def served() -> memtok.MemoryViT:
    backbone = tiny_backbone(depth=1)
    return memtok.MemoryViT(backbone, [tiny_task(backbone, "pets")])


@pytest.fixture(scope="module")
def port(served: memtok.MemoryViT) -> Iterator[int]:
    with over_a_socket(served) as address:
        yield int(address.rpartition(":")[2])


def connected(port: int) -> socket.socket:
    """A connection to the server."""
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def exchanged(port: int, sent: bytes, *, leave: bool = False) -> bytes:
    """What comes back until the server closes the connection; it may do so before everything is sent.

    leave: closes this side once everything is sent.
    """
    found = b""
    with connected(port) as connection:
        with suppress(ConnectionError):
            connection.sendall(sent)
            if leave:
                connection.shutdown(socket.SHUT_WR)
        with suppress(ConnectionError):
            while part := connection.recv(2**16):
                found += part
    return found


def answered(port: int) -> bytes:
    """The answer to a good request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("POST", "/v1/predict", GOOD, {"Content-Type": "image/png"})
        response = connection.getresponse()
        assert response.status == 200
        return response.read()
    finally:
        connection.close()


GET = b"GET /v2 HTTP/1.1\r\n" + LOCAL + CLOSE
HEAD = 2**16
"""Bytes of a head that the server waits for. Of a larger one that is there already it may read all."""
WHOLE = 0
"""In the place of a status: 200 or 400, by how the bytes arrive."""
RAW: dict[str, tuple[bytes, int]] = {
    "TLS": (b"\x16\x03\x01\x02\0\1\0\1\xfc\r\n\r\n", 400),
    "every byte": (bytes(range(256)) * 300, 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "a line without end": (b"GET /" + b"a" * 100_000, 400),
    "20,000 headers": (GET + b"X: y\r\n" * 20_000 + b"\r\n", WHOLE),
    "a key of 128 kB": (GET + b"Authorization: Bearer " + b"a" * 2**17 + b"\r\n\r\n", WHOLE),
    "a zero in a header": (GET + b"A: \0\r\n\r\n", 400),
    "no host": (b"GET /v2 HTTP/1.1\r\n\r\n", 400),
    "two hosts": (GET + b"Host: evil.example\r\n\r\n", 400),
    "another host": (b"GET /v2 HTTP/1.1\r\nHost: evil.example\r\n" + CLOSE + b"\r\n", 400),
    "odd escapes": (b"GET /v1/tasks/%zz%f HTTP/1.1\r\n" + LOCAL + CLOSE + b"\r\n", 404),
    "no length": (POST + CLOSE + b"\r\n" + GOOD, 422),
    "two lengths": (POST + CLOSE + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400),
    "a negative length": (POST + CLOSE + b"Content-Length: -3\r\n\r\nabc", 400),
    "less than everything": (POST + CLOSE + b"Content-Length: 9\r\n\r\n" + GOOD, 422),
    "a length and chunks": (POST + CLOSE + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 422),
    "packed transfer": (POST + CLOSE + b"Transfer-Encoding: gzip\r\n\r\nabc", 400),
    "no chunk": (CHUNKED + b"zz\r\nabc", 400),
    "an endless chunk": (CHUNKED + b"f" * 30 + b"\r\nabc", 400),
    "a byte at a time": (CHUNKED + b"".join(b"1\r\n%c\r\n" % byte for byte in GOOD) + b"0\r\n\r\n", 200),
}  # fmt: skip


@pytest.mark.parametrize("name", RAW)
def test_raw_requests(port: int, name: str) -> None:
    before = answered(port)
    sent, status = RAW[name]
    found = exchanged(port, sent)
    assert b"Traceback" not in found
    if found or len(sent) < HEAD:  # an answer to more than the server reads may be lost
        expected = (status,) if status else (200, 400)
        assert int(found.split(maxsplit=2)[1]) in expected, found[:200]
    assert answered(port) == before


@pytest.mark.parametrize(
    "sent", [b"", b"POST /v1/pre", POST, POST + b"Content-Length: 99\r\n\r\nabc", CHUNKED + b"9\r\nabc"]
)
def test_half_a_request(port: int, sent: bytes) -> None:
    before = answered(port)
    assert exchanged(port, sent, leave=True) == b""
    with connected(port) as connection:
        connection.sendall(sent)  # and then the client leaves without a word
    assert answered(port) == before


def test_too_much_in_chunks(port: int) -> None:
    """A client that reads no answer before it has sent everything gets one too, even of a body without a length."""
    before = answered(port)
    with connected(port) as connection:
        connection.sendall(CHUNKED + (b"100000\r\n" + b"x" * 2**20 + b"\r\n") * 64 + b"0\r\n\r\n")
        assert connection.recv(2**16).startswith(b"HTTP/1.1 413 ")
    assert answered(port) == before


def test_pipelined_requests(port: int) -> None:
    """Each is answered, in order, and what is no request ends the connection."""
    one = POST + b"Content-Length: %d\r\n\r\n" % len(GOOD) + GOOD
    health = b"GET /v2/health/live HTTP/1.1\r\n" + LOCAL + b"\r\n"
    with connected(port) as connection:
        connection.sendall((one + health) * 10 + b"garbage\r\n\r\n")
        found = b""
        while part := connection.recv(2**16):
            found += part
    assert found.count(b"HTTP/1.1 200 OK") == 20
    assert found.count(b'{"live":true}') == 10
    assert found.count(b"HTTP/1.1 400") == 1


def test_idle_connections_keep_nothing_up(served: memtok.MemoryViT) -> None:
    """A server with 200 of them answers, and stops while they are open."""
    with ExitStack() as stack:
        with over_a_socket(served) as address:
            port = int(address.rpartition(":")[2])
            before = answered(port)
            idle = [stack.enter_context(connected(port)) for _ in range(200)]
            for connection in idle[::2]:
                connection.sendall(POST + b"Content-Len")
            for connection in idle[::4]:
                connection.sendall(b"gth: 99\r\n\r\nabc")
            assert answered(port) == before
            for connection in idle[::4]:  # these are in the server's hands, and leave
                connection.close()
        for connection in idle[1::2]:
            assert connection.recv(1) == b""


def test_images_do_not_fill_the_log(monkeypatch: pytest.MonkeyPatch, served: memtok.MemoryViT) -> None:
    """Pillow warns of metadata, in texts that the image chooses, and Python remembers each text."""
    damaged = b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\xff\xff\xff\xff\x08\0\0\0\0\0\0\0"
    image = picture("JPEG", exif=damaged)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        decode(image, served.preprocessing, 10_000)
        assert found != []
        found.clear()
        monkeypatch.setattr(running.Announcing, "run", lambda self, sockets: None)
        with running.listen("127.0.0.1", 0) as listening:
            running.run(made_app(), listening, lambda: None)
        decode(image, served.preprocessing, 10_000)
    assert found == []
