"""The reference of the console script, from the typer applications themselves."""

from __future__ import annotations

import inspect
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from core import cli
from handbook.text import cell, code, fence, table

_HEAD = """# Commands

`fedhypevae COMMAND --help` prints the same. Exit codes: 0 done, 1 failed (what was wrong and how to
mend it is on standard error), 2 wrong usage. Secrets are read from the environment or from files,
never from a command line; [settings](settings.md) lists them.
"""


def page() -> str:
    """All commands that are registered, in the order of ``fedhypevae --help``."""
    found = cli.commands()
    rows = [(f"[`{name}`](#{name})", cell(cli.SUMMARIES.get(name, ""))) for name in found]
    parts = [_HEAD, table(("command", ""), rows)]
    for name, entry in found.items():
        parts += _command(("fedhypevae", name), cli.load(entry), depth=2)
    return "\n".join(parts)


def _command(path: tuple[str, ...], command: Any, depth: int) -> list[str]:
    anchor = "-".join(path[1:])
    parts = [f"{'#' * depth} {' '.join(path[1:])} {{#{anchor}}}\n"]
    inner: dict[str, Any] = getattr(command, "commands", None) or {}
    help_text = inspect.cleandoc(command.help or "").replace("\f", "")
    if help_text:
        parts.append(_help(help_text, path[0]))
    own = [param for param in command.params if not getattr(param, "hidden", False)]
    if not inner or own:
        parts.append(fence("text", _usage(path, command)))
        parts.append(_params(own))
    for name in sorted(inner):
        if not inner[name].hidden:
            parts += _command((*path, name), inner[name], min(depth + 1, 4))
    return parts


def _help(text: str, program: str) -> str:
    """Paragraphs; those that are calls are shown as such."""
    lines = []
    for paragraph in text.split("\n\n"):
        if paragraph.strip().startswith(f"{program} "):
            lines.append(fence("text", " ".join(paragraph.split())))
        else:
            lines.append(cell(paragraph) + "\n")
    return "\n".join(lines)


def _usage(path: tuple[str, ...], command: Any) -> str:
    words = [*path, "[OPTIONS]"] if _options(command.params) else [*path]
    for param in command.params:
        if param.param_type_name == "argument":
            name = param.name.upper()
            words.append(name if param.required else f"[{name}]")
    return " ".join([*words, "COMMAND"] if getattr(command, "commands", None) else words)


def _options(params: list[Any]) -> list[Any]:
    return [param for param in params if param.param_type_name == "option"]


def _params(params: list[Any]) -> str:
    rows = []
    for param in params:
        if param.param_type_name == "argument":
            name = code(param.name.upper())
        else:
            name = ", ".join(code(opt) for opt in [*param.opts, *param.secondary_opts])
        if param.required:
            preset = "**required**"
        elif param.default is None or param.default is False or callable(param.default):
            preset = ""
        else:
            preset = code(param.default)
        rows.append((name, cell(_type(param)), preset, cell(getattr(param, "help", "") or "")))
    return table(("", "type", "default", ""), rows)


def _type(param: Any) -> str:
    """``float (≥ 1)``, or the words that may be given."""
    annotation = param.type_descriptor.annotation
    if annotation is bool:
        return "flag"
    given = [each for each in get_args(annotation) if each is not NoneType]
    if get_origin(annotation) is Literal:
        return ", ".join(map(str, given))
    kind = given[0] if get_origin(annotation) in (Union, UnionType) else annotation
    if get_origin(kind) is Literal:
        return ", ".join(map(str, get_args(kind)))
    low, high = getattr(param, "min", None), getattr(param, "max", None)
    parts = [f"≥ {low:g}"] if low is not None else []
    parts += [f"≤ {high:g}"] if high is not None else []
    name = str(getattr(kind, "__name__", kind)).lower()
    return f"{name} ({', '.join(parts)})" if parts else name
