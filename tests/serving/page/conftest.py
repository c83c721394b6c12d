"""A real browser, the address of a server, and the page in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.serving.page.stand_in import stand_in

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium with a camera that shows a test picture. Not for the session: its event loop would be in others' way."""
    from playwright.sync_api import sync_playwright  # a test without it is skipped by driver.py

    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"needs a browser: {', '.join(BROWSERS)}")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def address() -> Iterator[str]:
    """Of a server with the tasks `pets`, which may be removed, and `scenes`, which may not."""
    with stand_in() as address:
        yield address


@pytest.fixture
def open_page(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Opens the page; options as of a browser's context, `before` gets the page before it loads.

    In the end: no request went to another host, every file of the page was there, and the console had no error but
    those of responses.
    """
    pages, wrong = [], []

    def open_page(before: Callable[[Any], object] = lambda page: None, **options: Any) -> Any:
        page = browser.new_context(**options).new_page()
        page.on("request", lambda sent: None if ours(sent.url) else wrong.append(f"request to {sent.url}"))
        page.on("response", lambda got: wrong.append(got.url) if got.status >= 400 and "/v1/" not in got.url else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if serious(said) else None)
        before(page)
        page.goto(address)
        pages.append(page)
        return page

    def ours(url: str) -> bool:
        return url.startswith((address, f"blob:{address}"))

    yield open_page
    for page in pages:
        page.context.close()
    assert wrong == []


def serious(said: Any) -> bool:
    return said.type in ("error", "warning") and not said.text.startswith("Failed to load resource")


@pytest.fixture
def page(open_page: Callable[..., Any]) -> Any:
    return open_page()
