"""`memtok serve` as a process: it ends at a signal, with success, and answers what it has taken before."""

from __future__ import annotations

import http.client
import json
import signal
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from memtok.cli import INTERRUPTED
from tests.serving.attack_tools import picture
from tests.serving.processes import MEMTOK, PATIENCE, InFlight, serving

COMMAND = [*MEMTOK, "serve", "--backbone", "small", "--device", "cpu", "--port", "0"]
PATH = "/v1/predict?embedding=true"

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_what_it_took_is_answered(number: signal.Signals, tmp_path: Path) -> None:
    with serving(COMMAND, cwd=tmp_path) as server, ExitStack() as stack:
        # A connection that waits for its next request, as a client's pool has it, keeps nothing up.
        idle = stack.enter_context(closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)))
        idle.request("GET", "/v2/health/ready")
        assert json.loads(idle.getresponse().read()) == {"ready": True}
        taken = [stack.enter_context(InFlight(server.port, PATH, picture(seed=seed))) for seed in range(3)]
        server.signal(number)
        server.refuses()
        for one in taken:
            status, body = one.finish()
            assert (status, len(json.loads(body)["images"][0]["embedding"])) == (200, 128)
        assert server.wait() == 0
        output = "".join(server.output)
        assert "Traceback" not in output
        assert "interrupted" not in output


def test_a_second_interrupt_does_not_wait(tmp_path: Path) -> None:
    with serving(COMMAND, cwd=tmp_path) as server, InFlight(server.port, PATH, picture()):
        server.signal(signal.SIGINT)
        server.refuses()
        server.signal(signal.SIGINT)
        assert server.wait() == INTERRUPTED
        assert "Traceback" not in "".join(server.output)


def test_it_ends_when_it_is_idle(tmp_path: Path) -> None:
    with serving(COMMAND, cwd=tmp_path) as server:
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
