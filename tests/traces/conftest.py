"""A small random backbone and some pictures for the tests of kept traces."""

from __future__ import annotations

import pytest

from memtok.backbone import Backbone
from memtok.data.sources import ImageSet
from tests.tiny import tiny_backbone
from tests.traces.helpers_traces import pictures


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    return tiny_backbone()


@pytest.fixture
def images() -> ImageSet:
    return pictures()
