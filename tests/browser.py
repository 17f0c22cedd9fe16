"""A real headless Chromium for tests of pages: the machine's own, driven by Playwright, with nothing but loopback open.

Without one the tests are skipped, or fail where ``HIGHRANK_BROWSER=required``. ``HIGHRANK_CHROMIUM`` names another one.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

__all__ = ["PHONE", "WIDE", "chromium", "opened"]

PHONE = {"width": 375, "height": 812}
WIDE = {"width": 1440, "height": 900}
# As root Chromium has no sandbox; it must not look for updates, and the tests must not reach the network.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
]


@contextmanager
def chromium() -> Iterator[Browser]:
    found = os.environ.get("HIGHRANK_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not found:
        reason = "no Chromium on this machine: install the package chromium, or set HIGHRANK_CHROMIUM to a program"
        if os.environ.get("HIGHRANK_BROWSER") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, address: str, **context: object) -> Iterator[tuple[Page, list[str]]]:
    """A page at ``address`` and what went wrong in it so far: console errors, exceptions, requests that left it."""
    wrong: list[str] = []
    inside: BrowserContext = browser.new_context(**context)  # type: ignore[arg-type]
    page = inside.new_page()
    page.on("console", lambda said: wrong.append(f"console: {said.text}") if said.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(f"exception: {error}"))
    page.on("requestfailed", lambda request: wrong.append(f"request: {request.url}"))
    page.goto(address)
    try:
        yield page, wrong
    finally:
        inside.close()
