"""Shell completion over all commands: ``fedhypevae --show-completion``, ``--install-completion``.

A shell asks with an environment variable and what was typed so far. Only the command that is being
typed is imported; the names of all of them are known without.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from typer._completion_shared import get_completion_script, install
from typer.core import TyperGroup

PROGRAM = "fedhypevae"
VARIABLE = "_FEDHYPEVAE_COMPLETE"
SHELLS = ("bash", "zsh", "fish")


class UnknownShell(Exception):
    """Completion is not known for this shell; the message says for which it is."""


def _shell(given: str | None) -> str:
    found = given or os.path.basename(os.environ.get("SHELL", ""))  # noqa: PTH119 (a name)
    if found not in SHELLS:
        raise UnknownShell(f"no completion for the shell {found!r}; name one: {', '.join(SHELLS)}")
    return found


def script(shell: str | None) -> str:
    """What the shell has to read. Without a name: the user's own shell."""
    return get_completion_script(prog_name=PROGRAM, complete_var=VARIABLE, shell=_shell(shell))


def installed(shell: str | None) -> str:
    """Write it where the shell reads it at its start; where that is."""
    name, path = install(shell=_shell(shell), prog_name=PROGRAM, complete_var=VARIABLE)
    return f"completion for {name} is in {path}; it works in new shells"


class _Commands(TyperGroup):
    """All commands; each is imported when something of it is asked for."""

    def __init__(self, summaries: Mapping[str, str], load: Callable[[str], Any]) -> None:
        super().__init__(name=PROGRAM)
        self._summaries = summaries
        self._load = load

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self._summaries)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return self._load(cmd_name) if cmd_name in self._summaries else None

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Without importing every command for its help."""
        from typer._click.shell_completion import CompletionItem

        return [
            CompletionItem(name, help=help_)
            for name, help_ in self._summaries.items()
            if name.startswith(incomplete)
        ]


def answer(summaries: Mapping[str, str], load: Callable[[str], Any]) -> None:
    """Answer the shell, if one asks: prints and ends the program; else nothing happens."""
    asked = os.environ.get(VARIABLE)
    if not asked:
        return
    from typer._completion_classes import completion_init
    from typer.completion import shell_complete

    completion_init()
    group = _Commands(summaries, load)
    raise SystemExit(shell_complete(group, {}, PROGRAM, VARIABLE, asked))
