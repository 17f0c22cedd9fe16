"""The page on an ``Explorer``, in Gradio. Imported only where the page is made: Gradio takes seconds to load."""

import os
from pathlib import Path
from typing import Any

# Read when Gradio is imported: no telemetry, no look for a newer version, nothing recorded.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import gradio as gr
from fastapi import FastAPI

from highrank.errors import UserError
from highrank.explore import markup
from highrank.explore.explorer import LONGEST_TEXT, Explorer

__all__ = ["make_page", "mount_page"]

CONTEXTS = ("the company said it", "and the lord said unto", "the first of the")
MOST_WORDS = 30

SYSTEM_FONTS = ("ui-sans-serif", "system-ui", "sans-serif")
MONO_FONTS = ("ui-monospace", "Consolas", "monospace")
# How the page is mounted: nothing from other hosts, no footer of links, no run history in the browser.
MOUNT: dict[str, Any] = {
    "theme": gr.themes.Default(primary_hue="blue", font=SYSTEM_FONTS, font_mono=MONO_FONTS).set(
        block_info_text_color="*neutral_500", block_info_text_color_dark="*neutral_400"
    ),
    "css": (Path(__file__).parent / "page.css").read_text(encoding="utf-8"),
    "footer_links": [],
    "run_history": False,
    "ssr_mode": False,
    "pwa": False,
    "mcp_server": False,
    "enable_monitoring": False,
    "show_error": True,
    "max_file_size": 0,
}


def mount_page(app: FastAPI, explorer: Explorer, path: str) -> None:
    """Let ``app`` answer with the page below ``path``."""
    gr.mount_gradio_app(app, make_page(explorer), path, **MOUNT)


def make_page(explorer: Explorer) -> gr.Blocks:
    """Context in, distribution and components out, live; beside it, a text to adapt to."""
    page = gr.Blocks(title=f"highrank explore: {explorer.run.path.name}", analytics_enabled=False, fill_width=True)
    with page:
        _html(markup.header_html(explorer))
        with gr.Row(elem_classes="hr-page"):  # side by side, or on a narrow screen one below the other
            with gr.Column(elem_classes="hr-controls"):
                context = gr.Textbox(
                    _first_context(explorer),
                    label="Context",
                    info="What comes next? Write words as the training text has them, separated by spaces.",
                    lines=2,
                    elem_id="context",
                )
                temperature = gr.Slider(
                    0.1,
                    3,
                    1,
                    step=0.05,
                    label="Temperature",
                    info="Divides the mixture's log-probabilities: below 1 sharper, above 1 flatter.",
                    elem_id="temperature",
                )
                top = gr.Slider(1, MOST_WORDS, 10, step=1, label="Words shown", elem_id="top")
            with gr.Column(elem_classes="hr-shown"):
                shown = _html(elem_id="shown")
            with gr.Column(elem_classes="hr-adapt"):
                text = gr.Textbox(
                    label="Adapt to a text",
                    info="Dynamic evaluation: the model reads the text a few words at a time, is scored on them, and "
                    f"only then learns from them. Up to {LONGEST_TEXT:,} words.",
                    placeholder="Paste a text here",
                    lines=4,
                    max_lines=8,
                    elem_id="text",
                )
                with gr.Row():
                    adapt = gr.Button("Adapt to this text", variant="primary", size="md", elem_id="adapt")
                    restore = gr.Button("Back to the trained weights", size="md", interactive=False, elem_id="restore")
                adapted = _html(elem_id="adapted", min_height=160)

        def show(context: str, temperature: float, top: float, request: gr.Request) -> str:
            try:
                view = explorer.predict(_session(request), context, top=int(top), temperature=temperature)
            except UserError as error:
                return markup.message_html(str(error))
            return markup.view_html(view, explorer.vocabulary, explorer.model.head, temperature)

        def learn(
            text: str,
            request: gr.Request,
            progress: gr.Progress = gr.Progress(),  # noqa: B008 - how Gradio is asked for it
        ) -> tuple[str, gr.Button]:
            session = _session(request)
            try:
                said = markup.adapted_html(explorer.adapt(session, text, display=_PageDisplay(progress)))
            except UserError as error:
                said = markup.message_html(str(error))
            return said, gr.Button(interactive=explorer.adapted(session) is not None)

        def go_back(request: gr.Request) -> tuple[str, gr.Button]:
            explorer.restore(_session(request))
            return markup.message_html("These are the trained weights again."), gr.Button(interactive=False)

        def leave(request: gr.Request) -> None:
            explorer.restore(_session(request))

        inputs = [context, temperature, top]
        gr.on(
            [page.load, context.change, temperature.change, top.change],
            show,
            inputs,
            shown,
            show_progress="hidden",
            trigger_mode="always_last",
            queue=False,  # one short request for each change
        )
        after_learning = adapt.click(learn, text, [adapted, restore], show_progress_on=adapted)
        after_going_back = restore.click(go_back, None, [adapted, restore], queue=False)
        for happened in (after_learning, after_going_back):
            happened.then(show, inputs, shown, show_progress="hidden", queue=False)
        page.unload(leave)
    page.queue(default_concurrency_limit=4)
    return page


class _PageDisplay:
    """Progress of long work as Gradio shows it, over the place where the result will stand."""

    def __init__(self, progress: gr.Progress) -> None:
        self._progress = progress

    def progress(
        self, task: str, done: int, total: int | None, loss_nats: float | None = None, *, unit: str = "tokens"
    ) -> None:
        said = "reading the training text for the step sizes (once)" if task == "gradient statistics" else task
        self._progress((done, total), desc=said, unit=unit)

    def message(self, text: str) -> None:
        gr.Info(text)


def _html(value: str = "", *, elem_id: str | None = None, min_height: int | None = None) -> gr.HTML:
    return gr.HTML(
        value, elem_id=elem_id, elem_classes="hr", apply_default_css=False, js_on_load=None, min_height=min_height
    )


def _session(request: gr.Request) -> str:
    assert request.session_hash is not None
    return request.session_hash


def _first_context(explorer: Explorer) -> str:
    """Something to see at once, in words of this vocabulary."""
    index = explorer.vocabulary.index
    return next((context for context in CONTEXTS if all(word in index for word in context.split())), "")
