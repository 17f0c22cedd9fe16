"""The reference of a recipe's settings, from the configuration's own types."""

import typing

import msgspec

from docs.generate.markdown import table
from highrank.runs.config import Config

__all__ = ["settings_reference"]


def settings_reference() -> str:
    sections = []
    for field in msgspec.structs.fields(Config):
        section = field.type
        words = " ".join((section.__doc__ or "").replace("``", "`").split())
        rows = [
            [f"`{field.name}.{setting.name}`", _meaning(setting.type), _kind(setting.type), _default(setting)]
            for setting in msgspec.structs.fields(section)
        ]
        sections.append(f"## [{field.name}]\n\n{words}\n\n" + table(["setting", "meaning", "value", "default"], rows))
    return "\n".join(sections)


def _default(setting: msgspec.structs.FieldInfo) -> str:
    if setting.default is msgspec.NODEFAULT:
        return "has to be given"
    return f"`{str(setting.default).lower() if isinstance(setting.default, bool) else setting.default}`"


def _meaning(kind: object) -> str:
    return next(meta.description for meta in typing.get_args(kind)[1:] if meta.description is not None)


def _kind(kind: object) -> str:
    base, *limits = typing.get_args(kind)
    if typing.get_origin(base) is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in typing.get_args(base))
    names = {int: "integer", float: "number", bool: "`true` or `false`", str: "text"}
    bounds = [words for limit in limits if isinstance(limit, msgspec.Meta) for words in _bounds(limit)]
    return ", ".join([names[base], *bounds])


def _bounds(limit: msgspec.Meta) -> list[str]:
    """The bounds that a person might meet; the upper ends of sizes only keep them within 64 bits."""
    said = []
    if limit.ge is not None:
        said.append(f"at least {limit.ge}")
    if limit.gt is not None:
        said.append(f"above {limit.gt}")
    if limit.lt is not None:
        said.append(f"below {limit.lt}")
    return said
