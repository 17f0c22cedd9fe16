"""The report in a real browser: it draws, answers to mouse and keyboard, fits, prints, and reads without a script."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tests.browser import PHONE, WIDE, opened
from tests.report.conftest import HOSTILE, Made

DRAWN = "document.querySelectorAll('figure:not([hidden]):not([data-drawn])').length === 0"
LUMINANCE = """() => {
  const [r, g, b] = getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number);
  return (r + g + b) / 3;
}"""


@pytest.fixture(scope="module")
def page(browser: Browser, made: Made) -> Iterator[Page]:
    """The report on a wide screen; at the end of the module nothing may have gone wrong in it."""
    with opened(browser, made.page.as_uri(), viewport=WIDE) as (page, wrong):
        page.wait_for_function(DRAWN)
        yield page
        assert wrong == []


def visible_marks(page: Page, name: str) -> int:
    """Points and pieces of lines of a plot that is shown."""
    return page.locator(f'figure[data-figure="{name}"]:not([hidden]) svg.marks .role-mark path').count()


def test_nothing_is_fetched(page: Page) -> None:
    assert page.evaluate("performance.getEntriesByType('resource').map(entry => entry.name)") == []


def test_every_plot_is_drawn(page: Page) -> None:
    assert page.locator("figure:not([hidden])").count() >= 6
    for name in ("perplexity-by-epoch", "spectrum", "prior-entropy-by-line-position", "gain-by-frequency"):
        assert visible_marks(page, name) > 2, name


def test_loss_and_perplexity_by_epoch_tokens_and_time(page: Page) -> None:
    for place in ("tokens", "time", "epoch"):
        for measure in ("loss", "perplexity"):
            page.locator(f'label[for="measure-{measure}"]').click()
            page.locator(f'label[for="place-{place}"]').click()
            page.wait_for_function(DRAWN)
            shown = page.locator('figure[data-group="training"]:not([hidden])')
            assert shown.count() == 1
            assert shown.get_attribute("data-figure") == f"{measure}-by-{place}"
            assert visible_marks(page, f"{measure}-by-{place}") > 2
            text = shown.locator("svg.marks").text_content() or ""
            assert "averaged SGD" in text
            assert "fine-tuning" in text


def test_choices_can_be_made_by_keyboard(page: Page) -> None:
    page.locator("#place-epoch").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator('figure[data-group="training"]:not([hidden])').get_attribute("data-figure") == (
        "perplexity-by-tokens"
    )
    page.keyboard.press("ArrowLeft")


def detail(page: Page) -> str:
    return page.locator(".of-run:not([hidden]) .detail").inner_text()


def test_hover_shows_the_components_before_and_after_dynamic_evaluation(page: Page) -> None:
    words = page.locator(".of-run:not([hidden]) .w")
    words.nth(5).hover()
    first = detail(page)
    assert f"“{words.nth(5).text_content()}”" in first
    assert "before dynamic evaluation" in first.lower()
    assert "after dynamic evaluation" in first.lower()
    rows = page.locator(".of-run:not([hidden]) .detail tbody tr")
    assert rows.count() == 2 * 3, "three components, before and after"
    assert re.search(r"\d%", rows.first.inner_text())
    words.nth(9).hover()
    assert detail(page) != first


def test_the_keyboard_goes_from_word_to_word(page: Page) -> None:
    words = page.locator(".of-run:not([hidden]) .w")
    words.nth(0).focus()
    for key, number in (
        ("ArrowRight", 1),
        ("ArrowDown", 11),
        ("ArrowLeft", 10),
        ("End", words.count() - 1),
        ("Home", 0),
    ):
        page.keyboard.press(key)
        focused = page.evaluate("[...document.querySelectorAll('.w')].indexOf(document.activeElement)")
        assert focused == number, key
        assert (words.nth(number).text_content() or "").replace("¶", "<eos>") in detail(page)
    stops = page.locator('.of-run:not([hidden]) .w[tabindex="0"]').count()
    assert stops == 1, "the passage is one stop of the Tab key"


def test_words_are_coloured_by_what_is_chosen(page: Page) -> None:
    words = page.locator(".of-run:not([hidden]) .w")

    def shades() -> list[str]:
        return [words.nth(n).evaluate("w => w.style.getPropertyValue('--s')") for n in range(12)]

    before = shades()
    page.locator('label[for="colour-0-after"]').click()
    assert shades() != before
    page.locator('label[for="colour-0-before"]').click()
    assert [float(shade) for shade in shades()] == pytest.approx([float(shade) for shade in before], abs=2e-3)


def test_another_run_can_be_read(page: Page) -> None:
    page.locator('label[for="passage-run-1"]').click()
    shown = page.locator(".of-run:not([hidden])")
    assert shown.count() == 1
    shown.locator(".w").nth(3).hover()
    said = detail(page)
    assert "after" not in said.lower(), "of the softmax there are no statistics"
    assert page.locator(".of-run:not([hidden]) .detail table").count() == 0, "one softmax has no components"
    page.locator('label[for="passage-run-0"]').click()


def test_hostile_words_are_only_words(page: Page) -> None:
    shown = page.locator(".of-run:not([hidden]) .w").all_text_contents()
    assert set(HOSTILE) <= set(shown)
    words = page.locator(".of-run:not([hidden]) .w")
    for hostile in HOSTILE:
        words.nth(shown.index(hostile)).hover()
        assert f"“{hostile}”" in detail(page)
    assert page.locator("img, b b, main script").count() == 0


@pytest.mark.parametrize("viewport", [PHONE, WIDE], ids=["phone", "wide"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_in_light_and_dark(browser: Browser, made: Made, viewport: dict[str, int], scheme: str) -> None:
    with opened(browser, made.page.as_uri(), viewport=viewport, color_scheme=scheme) as (page, wrong):
        page.wait_for_function(DRAWN)
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        too_wide = (
            f"[...document.querySelectorAll('.plot svg')].filter(s => s.clientWidth > {viewport['width']}).length"
        )
        assert page.evaluate(too_wide) == 0
        is_light = page.evaluate(LUMINANCE) > 128
        assert is_light == (scheme == "light")
        page.locator("#theme").click()
        assert (page.evaluate(LUMINANCE) > 128) != is_light
        assert wrong == []


def test_it_reads_without_a_script(browser: Browser, made: Made) -> None:
    with opened(browser, made.page.as_uri(), viewport=PHONE, java_script_enabled=False) as (page, wrong):
        text = page.locator("main").inner_text()
        for expected in ("mixture of 3 softmaxes", "one softmax", "numerical rank", "words it prefers", "train.epochs"):
            assert expected in text
        assert page.locator("figure svg").count() == page.locator("figure").count()
        colours = page.locator(".w").evaluate_all("words => words.map(w => getComputedStyle(w).backgroundColor)")
        assert len(set(colours)) > 10
        assert page.locator(".choices").first.is_hidden()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        assert wrong == []


def test_it_prints_in_light_without_controls(browser: Browser, made: Made, tmp_path: Path) -> None:
    with opened(browser, made.page.as_uri(), viewport=WIDE, color_scheme="dark") as (page, wrong):
        page.wait_for_function(DRAWN)
        page.emulate_media(media="print", color_scheme="dark")
        assert page.evaluate(LUMINANCE) == 255
        for control in ("nav", "#theme", ".choices", ".detail"):
            assert page.locator(control).first.is_hidden(), control
        pdf = page.pdf(prefer_css_page_size=True)
        assert pdf.startswith(b"%PDF")
        assert 2 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 12
        assert wrong == []


def test_it_stands_alone_and_is_small(made: Made) -> None:
    text = made.page.read_text(encoding="utf-8")
    assert made.page.stat().st_size < 8_000_000
    assert text.count("<script") == 3, "the data, the library once, the page's own"
    outside_scripts = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r'<(?:link|img)[^>]*(?:src|href)="(?!data:)', outside_scripts)
    assert "@import" not in outside_scripts
    assert "url(http" not in outside_scripts
