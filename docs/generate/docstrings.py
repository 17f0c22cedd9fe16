"""Docstrings as Markdown: this project writes them to be read in an editor, where an asterisk is a shape."""

import re

from griffe import Extension, Object

# A line that begins so is a paragraph of its own.
PARAGRAPHS = re.compile(r"\n+(?=(?:Shape|Returns|Memory|Raises|Source|Gradients|Equal|The mean)\b)")
ARGUMENT = re.compile(r"^([a-z][\w\\]*(?:, [a-z][\w\\]*)*): ", re.MULTILINE)  # ``name: what it is``


def as_markdown(text: str) -> str:
    text = text.replace("``", "`")
    parts = text.split("`")  # every second one is code, where nothing has to be escaped
    parts[::2] = [part.replace("*", r"\*").replace("_", r"\_").replace("<", r"\<") for part in parts[::2]]
    text = PARAGRAPHS.sub("\n\n", "`".join(parts))
    first = True

    def item(found: re.Match[str]) -> str:
        nonlocal first
        begin, first = "\n" if first else "", False
        return f"{begin}- **{found[1]}**: "

    return ARGUMENT.sub(item, text)


class Docstrings(Extension):
    def on_object(self, *, obj: Object, **kwargs: object) -> None:
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)
