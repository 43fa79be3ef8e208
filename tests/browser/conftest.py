"""One server and one Chromium for a module; a page of its own for each test.

Not for the session: while Playwright runs, an event loop is running, and no other can be made.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tests.server.process import ServerProcess, running

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Whoever comes may generate; what changes the server asks for this.
ADMIN_KEY = "the-key-of-the-tests"
TIMEOUT_MILLISECONDS = 60_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(browser: Browser) -> Iterator[ServerProcess]:
    with running("--admin-key", ADMIN_KEY) as process:
        yield process.wait_until_ready()


@pytest.fixture
def context(browser: Browser, server: ServerProcess) -> Iterator[BrowserContext]:
    """A browser's window. Whatever is done in it, no request goes to another address, and nothing
    is written to its console: a violation of the content security policy would be."""
    context = browser.new_context(base_url=server.url, viewport={"width": 1280, "height": 860})
    context.set_default_timeout(TIMEOUT_MILLISECONDS)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    asked: list[str] = []
    said: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    context.on("console", lambda message: said.append(message.text))
    context.on("weberror", lambda error: said.append(str(error.error)))
    yield context
    context.close()
    assert [url for url in asked if not url.startswith(server.url)] == []
    # Chromium writes there what a server refuses.
    assert [text for text in said if "the server responded with a status of" not in text] == []


@pytest.fixture
def page(context: BrowserContext) -> Page:
    page = context.new_page()
    page.goto("/")
    return page


@pytest.fixture(scope="module")
def lora() -> Path:
    """A LoRA that ships."""
    return Path(__file__).parents[2] / "adapters" / "support-intent-lora"
