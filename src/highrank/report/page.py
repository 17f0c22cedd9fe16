"""The report as one HTML file: everything inside, nothing fetched, all text escaped."""

import html
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import altair as alt
import jinja2
import vl_convert
from markupsafe import Markup

from highrank import __version__
from highrank.duration import duration
from highrank.evaluate.paper import PAPER, PAPER_RANKS, SOURCE
from highrank.report.figure import Figure
from highrank.report.gather import Subject
from highrank.report.passage_view import passage_data, passage_words
from highrank.report.results import paper_of, result_rows
from highrank.report.training_figures import MEASURES, PLACES
from highrank.runs import to_toml
from highrank.runs.config import differing_settings
from highrank.runs.listing import tempered_figures
from highrank.runs.measured import Components, RankFigures
from highrank.runs.records import STAGE_TITLES, corpus_name

__all__ = ["render", "vegalite_version"]

STATIC_WIDTH = 640  # of a plot where there is no script


def render(subjects: Sequence[Subject], figures: Sequence[Figure], *, date: str, command: str) -> str:
    """The whole page. ``command`` made it, on ``date``."""
    groups: dict[str, list[Figure]] = {}
    for figure in figures:
        groups.setdefault(figure.group, []).append(figure)
    training, spectrum = groups.pop("training", []), groups.pop("spectrum", [])
    ranks = {subject.label: subject.rank for subject in subjects if subject.rank is not None}
    spectra = {label: f"{rank.contexts:,} contexts of the {rank.split} text" for label, rank in ranks.items()}
    components = {subject.label: subject.components for subject in subjects if subject.components is not None}
    texts = {label: f"the {found.split} text" for label, found in components.items()}
    rows = result_rows(subjects)
    cells = [cell for row in rows for cell in row.cells.values()]
    read = [subject for subject in subjects if subject.passage is not None]
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(_part("page.html")).render(
        title=", ".join(subject.label for subject in subjects),
        subtitle=_subtitle(subjects),
        version=__version__,
        date=date,
        report_command=command,
        source=SOURCE,
        css=Markup(_part("page.css")),
        js=Markup(_part("page.js")),
        vega=Markup(_inside_script(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vegalite_version()))),
        data=Markup(_embedded(_data(read, figures))),
        static={figure.name: _static(figure) for figure in figures},
        subjects=subjects,
        stages=STAGE_TITLES,
        duration=duration,
        rows=rows,
        any_best=any(cell.best for cell in cells),
        any_in_training=any(cell.in_training for cell in cells),
        result_notes=_result_notes(subjects),
        training=training,
        measures=[(measure, measure) for measure in MEASURES],
        places=[(place, place) for place in PLACES if _has(training, place)],
        validations=[(one.label, point) for one in subjects for point in one.history.validations],
        training_notes=[
            f"{subject.label}: no record of its training (an imported model has none)"
            for subject in subjects
            if not subject.history.points
        ],
        spectrum=spectrum,
        ranks=ranks,
        thresholds=_common_thresholds(list(ranks.values())),
        above=_above,
        paper_ranks=PAPER_RANKS if paper_of(subjects) is PAPER["penn"] else (),
        rank_notes=_notes(subjects, "rank") + _differing("The spectra", spectra),
        components=components,
        component_plots=[figure for group in groups.values() for figure in group],
        dead_names=_dead_names,
        component_notes=_notes(subjects, "components") + _differing("The components", texts),
        passages=[_passage(subject) for subject in read],
        passage_choices=[(str(number), subject.label) for number, subject in enumerate(read)],
        passage_notes=_notes(subjects, "passage") + _notes(read, "dynamic"),
        differences=differing_settings([subject.run.config for subject in subjects]),
        machines=[_machine(subject) for subject in subjects],
    )


def vegalite_version() -> str:
    """The Vega-Lite that Altair writes, as vl-convert names it."""
    return ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])


def _part(name: str) -> str:
    return files("highrank.report").joinpath("page", name).read_text(encoding="utf-8")


def _data(read: Sequence[Subject], figures: Sequence[Figure]) -> dict[str, Any]:
    return {
        "figures": {figure.name: figure.specification("page") for figure in figures},
        "passages": [
            passage_data(subject.passage, subject.run.vocabulary) for subject in read if subject.passage is not None
        ],
    }


def _embedded(value: object) -> str:
    """JSON that ends no script element, whatever words it holds."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _inside_script(code: str) -> str:
    """In a string or a regular expression of JavaScript ``\\/`` is a slash."""
    return code.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _static(figure: Figure) -> Markup:
    svg = vl_convert.vegalite_to_svg(
        figure.specification("page", width=STATIC_WIDTH if figure.paper_width > 400 else figure.paper_width),
        vl_version=vegalite_version(),
    )
    # Names of clipping paths must be unique in the page. Vega has escaped all text.
    name = html.escape(figure.name)
    return Markup(svg.replace('id="clip', f'id="{name}-clip').replace("url(#clip", f"url(#{name}-clip"))


def _has(training: Sequence[Figure], place: str) -> bool:
    return any(figure.name.endswith(f"-by-{place}") for figure in training)


def _subtitle(subjects: Sequence[Subject]) -> str:
    names = {corpus_name(subject.run.facts, subject.run.config) for subject in subjects}
    runs = "one run" if len(subjects) == 1 else f"{len(subjects)} runs"
    return f"{runs} on {', '.join(sorted(names))}, {len(subjects[0].run.vocabulary):,} words"


def _result_notes(subjects: Sequence[Subject]) -> list[str]:
    notes = []
    limits = {subject.run.config.data.heldout_tokens for subject in subjects}
    if paper_of(subjects):
        notes.append(f"The paper: {SOURCE}. Its code counts one prediction too few, so its figures are a little low.")
        if any(limits):
            notes.append("The paper scored the whole text, these runs a part of it: not to be set side by side.")
    tests = {_fact(subject, "corpus", "sha256", "test") for subject in subjects}
    if len(tests) > 1 or len(limits) > 1:
        notes.append("These runs were not all scored on the same text: their perplexities cannot be set side by side.")
    return notes + [note for subject in subjects for note in _tempered_notes(subject)]


def _tempered_notes(subject: Subject) -> Iterator[str]:
    """What the table leaves out: perplexities at a softmax temperature."""
    results = subject.run.results
    for stage, title in STAGE_TITLES.items():
        found = tempered_figures(results.get(stage, {}))
        if found is None:
            continue
        splits = {"valid": found.valid_perplexity, "test": found.test_perplexity}
        if said := ", ".join(f"{split} {value:.2f}" for split, value in splits.items() if value is not None):
            yield f"{subject.label}, {title}, at a softmax temperature of {found.how}: {said}."


def _notes(subjects: Sequence[Subject], part: str) -> list[str]:
    return [f"{subject.label}: {note}" for subject in subjects if (note := subject.notes.get(part)) is not None]


def _differing(what: str, measured_on: Mapping[str, str]) -> list[str]:
    """A note where runs, by their labels, were not all measured on the same."""
    if len(set(measured_on.values())) < 2:
        return []
    each = ", ".join(f"of {label} on {text}" for label, text in measured_on.items())
    return [f"{what} were not all measured on the same contexts ({each}): they cannot be set side by side."]


def _passage(subject: Subject) -> dict[str, Any]:
    assert subject.passage is not None
    read = subject.passage
    said = f"{len(read.words)} words from position {read.start:,} of the test text; all the text before was read too"
    if subject.settings is not None:
        chosen = subject.settings
        said += (
            f". After: weights that have learnt from that text segment by segment (dynamic evaluation, "
            f"lr {chosen.lr:g}, lamb {chosen.lamb:g}, segments of {chosen.bptt})"
        )
    return {
        "label": subject.label,
        "said": f"{said}.",
        "has_after": read.after is not None,
        "words": passage_words(read, subject.run.vocabulary),
    }


def _common_thresholds(ranks: Sequence[RankFigures]) -> list[float]:
    listed = [[each.relative_threshold for each in rank.ranks] for rank in ranks]
    return [threshold for threshold in (listed[0] if listed else []) if all(threshold in each for each in listed)][:3]


def _above(rank: RankFigures, threshold: float) -> str:
    return next(f"{each.rank:,}" for each in rank.ranks if each.relative_threshold == threshold)


def _dead_names(found: Components) -> str:
    return ", ".join(str(component + 1) for component in found.dead)


def _machine(subject: Subject) -> dict[str, Any]:
    run = subject.run
    facts = [
        ("run folder", str(run.path.resolve())),
        ("begun", _fact(subject, "created")),
        ("highrank", _fact(subject, "versions", "highrank")),
        ("PyTorch", _fact(subject, "versions", "torch")),
        ("Python", _fact(subject, "versions", "python")),
        ("machine", _fact(subject, "machine", "platform")),
        ("cores", _fact(subject, "machine", "cores")),
        ("threads", _fact(subject, "machine", "torch_threads")),
        ("corpus", _fact(subject, "corpus", "name")),
        ("training text, SHA-256", _fact(subject, "corpus", "sha256", "train")),
        ("test text, SHA-256", _fact(subject, "corpus", "sha256", "test")),
        ("parameters", f"{subject.parameters:,}"),
    ]
    command = run.facts.get("command")
    said = ""
    if isinstance(command, list) and len(command) > 1 and all(isinstance(word, str) for word in command):
        said = _command(command)
    results = run.results
    whole = "finetune" in results or "dynamic" in results
    again = ["highrank", "run" if whole else "train", str(run.path / "config.toml"), "--out", "NEW-FOLDER"]
    folder = _fact(subject, "corpus", "folder")
    return {
        "label": subject.label,
        "facts": [(name, value) for name, value in facts if value],
        "command": said,
        "again": shlex.join([*again, *(["--data", folder] if folder else [])]),
        "toml": to_toml(run.config).strip(),
    }


def _command(words: Sequence[str]) -> str:
    """As one would type it: the words of a process begin with the file of its program."""
    program = Path(words[0])
    if program.stem == "highrank" or program.parts[-2:] == ("highrank", "__main__.py"):
        return shlex.join(["highrank", *words[1:]])
    return shlex.join(["python", *words] if program.suffix == ".py" else words)


def _fact(subject: Subject, *path: str) -> str:
    """What run.json says there, as text; nothing if it does not."""
    value: Any = subject.run.facts
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return str(value) if isinstance(value, str | int) else ""
