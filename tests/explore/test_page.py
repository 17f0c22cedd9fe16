"""The page of the real command in a real browser, and what its server refuses."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser import PHONE, WIDE, opened

TEXT = "and god said let there be light\nand there was light and god saw the light that it was good\n" * 3
PATIENCE_S = 60


@contextmanager
def explored(run: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address that ``highrank explore`` prints, and its process; no display, so no browser is opened."""
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    command = [sys.executable, "-m", "highrank", "explore", str(run), "--device", "cpu", *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            assert address, process.communicate()[1]
            yield address, process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def address(trained: Path, small_text: Path) -> Iterator[str]:
    with explored(trained, "--data", str(small_text)) as (address, _):
        yield address


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """The page, drawn; whatever is done with it, it has no errors and asks nobody but its server."""
    with opened(browser, "about:blank", viewport=WIDE) as (page, wrong):
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        expect(page.locator("#shown table").first).to_be_visible(timeout=1000 * PATIENCE_S)
        yield page
        server = address.rsplit("/", 2)[0]
        assert asked
        assert [url for url in asked if not url.startswith((server, "data:", "blob:"))] == []
        # The page itself ends the stream of events that it listens to.
        assert [said for said in wrong if "/gradio_api/queue/data" not in said and "/heartbeat/" not in said] == []


def next_words(page: Page, table: int = 0) -> dict[str, str]:
    """The likeliest words and their probabilities as they stand in a table."""
    rows = page.locator("#shown .hr-next").nth(table).locator("tbody tr")
    return dict(
        zip(rows.locator("th").all_inner_texts(), rows.locator("td:nth-child(2)").all_inner_texts(), strict=True)
    )


def percent(text: str) -> float:
    return float(text.removesuffix("%"))


def type_context(page: Page, context: str) -> None:
    page.locator("#context textarea").fill(context)
    last = context.split()[-1]
    expect(page.locator("#shown .hr-chip").last).to_contain_text(last, timeout=1000 * PATIENCE_S)


def test_typing_changes_the_distribution(page: Page) -> None:
    type_context(page, "and god")
    first = next_words(page)
    assert len(first) == 10
    assert list(first.values()) == sorted(first.values(), key=percent, reverse=True)
    type_context(page, "and god said let")
    assert next_words(page) != first


def test_components_and_their_weights_are_shown(page: Page) -> None:
    cards = page.locator("#shown .hr-card")
    assert cards.count() == 3
    weights = [percent(text.removeprefix("weight ")) for text in cards.locator(".hr-weight").all_inner_texts()]
    assert weights == sorted(weights, reverse=True)
    assert sum(weights) == pytest.approx(100, abs=0.2)
    assert cards.first.locator("tbody tr").count() == 5


def test_the_temperature_slider_changes_the_distribution(page: Page) -> None:
    type_context(page, "and god")
    plain = next_words(page)
    page.locator("#temperature input[type=range]").fill("0.5")
    expect(page.locator("#shown")).to_contain_text("at temperature 0.5", timeout=1000 * PATIENCE_S)
    sharper = next_words(page)
    assert next(iter(sharper)) == next(iter(plain))
    assert percent(next(iter(sharper.values()))) > percent(next(iter(plain.values())))
    page.locator("#top input[type=range]").fill("3")
    expect(page.locator("#shown .hr-next tbody tr")).to_have_count(3, timeout=1000 * PATIENCE_S)


def test_words_outside_the_vocabulary_are_said(page: Page) -> None:
    type_context(page, "and <script>alert(1)</script> ${7*6}")
    said = page.locator("#shown .hr-said").inner_text()
    assert "Not in the vocabulary" in said
    assert "“<script>alert(1)</script>”, “${7*6}”" in said


def test_adapting_changes_it_and_going_back_restores_it(page: Page, browser: Browser, address: str) -> None:
    type_context(page, "and god said")
    before = next_words(page)
    assert page.locator("#restore").is_disabled()
    page.locator("#text textarea").fill(TEXT)
    page.locator("#adapt").click()
    expect(page.locator("#shown .hr-changes")).to_be_visible(timeout=1000 * PATIENCE_S)
    figures = page.locator("#adapted")
    trained, learning = (
        float(figures.locator(f"[data-figure={name}]").inner_text().split()[0].replace(",", ""))
        for name in ("before", "learning")
    )
    assert learning < trained
    assert figures.locator(".hr-passage span").count() == len(TEXT.replace("\n", " <eos> ").split()) - 1
    assert next_words(page) == before
    assert next_words(page, 1) != before
    assert page.locator("#shown .hr-changes tbody tr").count() == 10
    with opened(browser, address) as (other, _):  # another tab stays with the trained weights
        other.locator("#shown table").first.wait_for(timeout=1000 * PATIENCE_S)
        assert other.locator("#shown .hr-changes").count() == 0
    page.locator("#restore").click()
    expect(page.locator("#shown .hr-changes")).to_have_count(0, timeout=1000 * PATIENCE_S)
    assert next_words(page) == before
    expect(page.locator("#adapted")).to_contain_text("trained weights again")
    expect(page.locator("#restore")).to_be_disabled()


def test_adapting_to_nothing_is_said(page: Page) -> None:
    page.locator("#adapt").click()
    expect(page.locator("#adapted .hr-message")).to_contain_text("no word", timeout=1000 * PATIENCE_S)


def test_it_fits_a_phone(page: Page) -> None:
    page.set_viewport_size(PHONE)
    type_context(page, "and god said " + "antidisestablishmentarianism" * 4)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


BRIGHTNESS = """colour => {
    const canvas = document.createElement("canvas").getContext("2d");
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return canvas.getImageData(0, 0, 1, 1).data.slice(0, 3).reduce((sum, part) => sum + part) / 765;
}"""


def test_dark_mode(browser: Browser, address: str) -> None:
    shades = {}
    for scheme in ("light", "dark"):
        with opened(browser, address, color_scheme=scheme) as (page, _):
            word = page.locator("#shown .hr-next th").first
            word.wait_for(timeout=1000 * PATIENCE_S)
            ink = word.evaluate("element => getComputedStyle(element).color")
            paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
            shades[scheme] = [page.evaluate(BRIGHTNESS, colour) for colour in (ink, paper)]
    assert shades["light"][0] < 0.3 < 0.7 < shades["light"][1]
    assert shades["dark"][1] < 0.3 < 0.7 < shades["dark"][0]


def status(address: str, path: str, **headers: str) -> int:
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=PATIENCE_S)
    try:
        connection.request("GET", path, headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


def test_without_the_token_there_is_nothing(address: str) -> None:
    path = urlsplit(address).path
    assert status(address, path) == 200
    assert len(path.strip("/")) >= 32
    wrong = path.strip("/")[:-1] + ("a" if path.strip("/")[-1] != "a" else "b")
    for other in ("/", f"/{wrong}/", f"/{wrong}/config", "/config", "/gradio_api/info", "/docs", "/openapi.json"):
        assert status(address, other) == 404, other


@pytest.mark.parametrize("name", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "0.0.0.0"])
def test_a_foreign_host_is_refused(address: str, name: str) -> None:
    """As after DNS rebinding: the name of someone else's page that was made to point at this machine."""
    assert status(address, urlsplit(address).path, Host=name) == 400


@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1:1", "null"])
def test_another_origin_is_refused(address: str, origin: str) -> None:
    assert status(address, urlsplit(address).path + "config", Origin=origin) == 403
    parts = urlsplit(address)
    assert status(address, parts.path + "config", Origin=f"http://{parts.netloc}") == 200
    assert status(address, parts.path, **{"Sec-Fetch-Site": "cross-site"}) == 403


def test_it_listens_on_loopback_alone(address: str) -> None:
    port = urlsplit(address).port
    assert urlsplit(address).hostname == "127.0.0.1"
    with socket.socket() as elsewhere:  # the port is free on another address of this machine
        elsewhere.bind(("127.0.0.2", port or 0))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_a_signal_ends_it(trained: Path, browser: Browser, number: signal.Signals, code: int) -> None:
    with explored(trained) as (address, process):
        with opened(browser, address) as (page, _):
            page.locator("#shown table").first.wait_for(timeout=1000 * PATIENCE_S)  # a page that holds connections
            process.send_signal(number)
            printed, said = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == code
        assert printed == said == ""


def refused(*arguments: str) -> str:
    """The one line that the command fails with."""
    command = [sys.executable, "-m", "highrank", "explore", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    return line


def test_a_port_in_use_is_named(trained: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert refused(str(trained), "--port", port).startswith(f"highrank: port {port} is in use")


def test_a_run_that_is_not_trained_is_refused(trained: Path, tmp_path: Path) -> None:
    for name in ("config.toml", "run.json", "vocabulary.txt"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    assert "no trained model yet" in refused(str(tmp_path))
    assert "stage 'finetune' has no model" in refused(str(trained), "--stage", "finetune")


def test_no_gradio_is_said(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gradio.py").write_text("raise ModuleNotFoundError('no gradio', name='gradio')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))
    assert "pip install 'highrank[explore]'" in refused(str(trained))


def test_gradio_sends_nothing_home(address: str) -> None:
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=PATIENCE_S)
    connection.request("GET", parts.path + "config")
    config = json.loads(connection.getresponse().read())
    connection.close()
    assert config["analytics_enabled"] is False
