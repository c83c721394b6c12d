"""What the tests of named data sets share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.data.fakes import Server, everywhere_offline, serving


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No data set can be downloaded."""
    everywhere_offline(monkeypatch)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server on this machine; data sets that were not published on it cannot be downloaded."""
    everywhere_offline(monkeypatch)
    with serving() as started:
        yield started
