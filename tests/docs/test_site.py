"""The documentation's site as ``make docs`` builds it, in a real browser: whole, readable, and asking nobody else."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser import PHONE, WIDE, opened
from tests.docs.snippets import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Where the site is served, on loopback."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *words: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Links(HTMLParser):
    """What a page links to, what can be linked to in it, and what it would load."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors = {""}

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.anchors |= {value for name in ("id", "name") if (value := given.get(name))}
        if tag == "a" and (target := given.get("href")):
            self.links.append(target)
        elif (tag in ("script", "img", "iframe") and (source := given.get("src"))) or (
            tag == "link" and (source := given.get("href"))
        ):
            self.loaded.append(source)


def read(page: Path) -> Links:
    links = Links()
    links.feed(page.read_text(encoding="utf-8"))
    return links


def test_every_link_and_anchor_leads_somewhere_and_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    pages = {page.resolve(): read(page) for page in site.rglob("*.html")}
    assert len(pages) > 15
    broken = []
    for page, found in pages.items():
        if page.name == "404.html":
            continue  # its links begin at the root of a server
        for target in found.links + found.loaded:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                assert target not in found.loaded, f"{page.name} loads {target}"
                continue
            other = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if other.is_dir():
                other /= "index.html"
            anchor = unquote(parts.fragment)
            if not other.is_file() or (other in pages and anchor not in pages[other].anchors):
                broken.append(f"{page.name} -> {target}")
    assert broken == []


def overflow(page: Page) -> int:
    """How many pixels a page is wider than its window."""
    width: int = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return width


def test_every_page_fits_a_phone_and_asks_nobody_else(site: Path, address: str, browser: Browser) -> None:
    pages = sorted(path.relative_to(site).as_posix() for path in site.glob("*.html"))
    asked: list[str] = []
    with opened(browser, f"{address}/index.html", viewport=PHONE) as (page, wrong):
        page.on("request", lambda request: asked.append(request.url))
        wide = []
        for name in pages:
            page.goto(f"{address}/{name}")
            if over := overflow(page):
                wide.append(f"{name}: {over} px too wide")
    assert wide == []
    # What was still on its way when the page was left is no failure; what is not there is an error of the console.
    assert [what for what in wrong if not what.startswith(f"request: {address}/")] == []
    assert asked
    assert [url for url in asked if not url.startswith(address)] == []


@pytest.mark.parametrize("from_disk", [False, True], ids=["served", "from disk"])
def test_search_finds_a_word(site: Path, address: str, browser: Browser, from_disk: bool) -> None:
    start = site.as_uri() if from_disk else address
    with opened(browser, f"{start}/index.html", viewport=WIDE) as (page, wrong):
        page.get_by_role("textbox", name="Search").first.click()
        page.keyboard.type("posterior filter")
        first = page.locator(".md-search-result__link").first
        expect(first).to_be_visible(timeout=20_000)
        first.click()
        expect(page.locator("h1")).to_be_visible()
        assert "posterior filter" in page.locator("article").inner_text().lower()
    assert wrong == []


@pytest.mark.parametrize(("scheme", "name"), [("light", "default"), ("dark", "slate")])
def test_light_and_dark_follow_the_reader(address: str, browser: Browser, scheme: str, name: str) -> None:
    with opened(browser, f"{address}/index.html", viewport=WIDE, color_scheme=scheme) as (page, wrong):
        expect(page.locator("body")).to_have_attribute("data-md-color-scheme", name)
    assert wrong == []


def test_the_public_names_are_in_the_reference(site: Path) -> None:
    import highrank

    anchors = read(site / "api.html").anchors
    missing = [
        name
        for name in highrank.__all__
        if name != "__version__" and not any(anchor.endswith(f".{name}") for anchor in anchors)
    ]
    assert missing == []
