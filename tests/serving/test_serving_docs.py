"""docs/serving.md: its endpoints, options, bounds and examples are those of the code."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import memtok
from memtok.cli.options import build_parser, option_names
from memtok.cli.serve import configure
from memtok_benchmarks.load.__main__ import parser as load_parser
from memtok_benchmarks.load.report import GROWN, SHARE_OF_OWN_PASS, TIMES_OF_A_BATCH
from memtok_benchmarks.load.settings import SERVERS
from tests.serving.conftest import Client, Serve

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
ROUTE = re.compile(r"`(GET|POST|PUT|DELETE) (/[^` ]*)`")
OTHERS = {"--data-binary", "--rm", "--model-repository", "--workers", "--device", "--probabilities", "--out"}
OTHERS |= {"--read-only", "--tmpfs", "--cap-drop", "--security-opt"}
"""Options of curl, docker, Triton and uvicorn, and of other commands of memtok."""


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return (root / "docs" / "serving.md").read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """The blocks of code in a language."""
    return [text for name, text in BLOCK.findall(page) if name == language]


def test_every_endpoint_is_named_and_no_other(page: str, serve: Serve, model: memtok.MemoryViT) -> None:
    client: Client = serve(model)
    schema: dict[str, Any] = client.get("/openapi.json").json()
    there = {(method.upper(), path) for path, methods in schema["paths"].items() for method in methods}
    assert set(ROUTE.findall(page)) == there
    patterns = [re.compile(re.sub(r"\{\w+\}", "[^/]+", path) + "$") for _, path in there]
    for path in re.findall(r"http://(?:127\.0\.0\.1|HOST):8000(/v[12][^\s'\"?)]*)", page):
        assert any(pattern.match(path) for pattern in patterns), path


def test_every_option_is_there(page: str) -> None:
    parser = build_parser("serve", "serves", "", "")
    configure(parser)
    known = {
        *option_names(parser).values(),
        *(word for action in load_parser()._actions for word in action.option_strings),
    }
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page))
    assert named - known <= OTHERS
    assert {"--keys", "--max-batch", "--max-wait-ms", "--max-queue", "--timeout", "--task-dir"} <= named


def test_defaults_and_bounds_are_those_of_the_code(page: str) -> None:
    from memtok.serving.running import GRACE
    from memtok.serving.settings import Limits

    limits, text = Limits(), " ".join(page.split())
    for said in (
        f"`--max-wait-ms` ({limits.max_wait_ms:g})",
        f"`--max-batch` images ({limits.max_batch})",
        f"`--timeout` seconds ({limits.timeout:g})",
        f"`--max-queue` images ({limits.max_queue})",
        f"({GRACE} seconds at most)",
        f"429 are no answers | {SHARE_OF_OWN_PASS} |",
        f"over the time of the own pass | {TIMES_OF_A_BATCH:g} |",
        f"after a warm-up | {GROWN} |",
    ):
        assert said in text
    assert {f"- `{name}`" in text for name in SERVERS[1:]} == {True}


def test_examples_can_be_read(page: str) -> None:
    for text in blocks(page, "python"):
        ast.parse(text)
    for text in blocks(page, "json"):
        json.loads(text)
    deployment, scraping = (yaml.safe_load(text) for text in blocks(page, "yaml"))
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    for probe, path in (("liveness", "live"), ("readiness", "ready"), ("startup", "ready")):
        assert container[f"{probe}Probe"]["httpGet"]["path"] == f"/v2/health/{path}"
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert scraping["scrape_configs"][0]["authorization"]["type"] == "Bearer"
