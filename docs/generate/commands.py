"""The reference of the command line, from the parsers themselves."""

import argparse
from collections.abc import Iterator

from docs.generate.markdown import table
from highrank.cli.main import make_parser

__all__ = ["command_reference"]

ALWAYS = ("-h", "--help")


def command_reference() -> str:
    commands = list(_commands(make_parser()))
    listed = table(
        ["command", "what it does"], [[f"[`{name}`](#{name.replace(' ', '-')})", help] for name, help, _ in commands]
    )
    return "\n".join([listed, *(section for command in commands for section in _section(*command))])


def _commands(
    parser: argparse.ArgumentParser, name: str = "highrank"
) -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    """Name, one-line help and parser of every command that can be run, in the order of ``highrank --help``."""
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            continue
        helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
        for word, command in action.choices.items():
            inner = list(_commands(command, f"{name} {word}"))
            yield from inner or [(f"{name} {word}", helps.get(word, ""), command)]


def _section(name: str, help: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    actions = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    arguments = [action for action in actions if not action.option_strings]
    options = [action for action in actions if action.option_strings and "--help" not in action.option_strings]
    yield f"## {name}\n"
    required = [_required(option) for option in options if option.required]
    yield f"    {' '.join([name, *map(_place, arguments), *required, '[options]'])}\n"
    description = parser.description or help
    yield f"{description[:1].upper()}{description[1:].rstrip('.')}.\n"
    yield table(
        ["argument", "meaning"],
        [[f"`{_shown(action)}`", _meaning(parser, action)] for action in (*arguments, *options)],
    )


def _place(action: argparse.Action) -> str:
    name = _name(action)
    return {"*": f"[{name} ...]", "+": f"{name} ...", "?": f"[{name}]"}.get(str(action.nargs), name)


def _required(action: argparse.Action) -> str:
    return f"{action.option_strings[-1]} {_name(action)}"


def _name(action: argparse.Action) -> str:
    if isinstance(action.metavar, str):
        return action.metavar
    if action.choices is not None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return action.dest.upper()


def _shown(action: argparse.Action) -> str:
    if not action.option_strings:
        return _name(action)
    names = ", ".join(action.option_strings)
    if action.nargs == 0:
        return names
    return f"{names} [{_name(action)}]" if action.nargs == "?" else f"{names} {_name(action)}"


def _meaning(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """The help as --help prints it, with its defaults filled in."""
    text = parser._get_formatter()._expand_help(action) if action.help else ""
    return text.replace("<", "&lt;").replace("*", r"\*")
