"""The console script ``fedhypevae``: finds the commands that other packages register.

``api``, ``worker`` and ``benchmarks`` add typer apps through the entry-point group
``fedhypevae.commands``; core imports none of them. Only the command that is called is imported, so
``fedhypevae --help`` stays fast and one broken package does not take the others with it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points, version
from pathlib import Path
from typing import Any, NoReturn

import typer

GROUP = "fedhypevae.commands"

# Help lines of the known commands: the list is printed without importing their packages.
SUMMARIES = {
    "up": "Start all services on this machine, in the background.",
    "down": "Stop them; data stay.",
    "status": "Do they run?",
    "doctor": "Check this machine, its settings and what it reaches; says how to mend.",
    "admin": "Clients, enrolments, tokens, embedding spaces and the audit trail of a coordinator.",
    "run": "Create, start, watch, pause, cancel and report runs.",
    "synthesize": "Synthetic rows of a published run, into a file.",
    "serve": "Run the coordinator (HTTP API).",
    "token": "Create, list and revoke bearer tokens (on the coordinator's machine).",
    "keys": "List, rotate and revoke the keys that sign receipts.",
    "db": "Upgrade or inspect the coordinator's database.",
    "backup": "Copy the coordinator's database and objects into a folder.",
    "restore": "Put such a copy into an empty database and store.",
    "worker": "Run a Celery worker of the queue train or coordinator.",
    "agent": "Run, check or audit a site's agent; approve or refuse runs.",
    "embed": "Turn images into the file of embeddings that an agent reads.",
    "sample": "Synthetic rows from an exported generator. Works offline.",
    "verify": "Is a receipt genuine, and are rows those that it names? Works offline.",
    "demo": "The whole job on real images, with real processes on this machine.",
}


def prefer_checkout() -> None:
    """Put the folder that holds this ``core`` first on the import path.

    One of the dependencies installs a top-level package ``benchmarks`` of its own, which would
    otherwise hide ours when the console script of an editable install is called.
    """
    root = str(Path(__file__).resolve().parent.parent)
    if sys.path[:1] != [root]:
        sys.path.insert(0, root)


def commands() -> dict[str, EntryPoint]:
    """The registered commands by name, in the order of ``SUMMARIES``, unknown ones last."""
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    order = [name for name in SUMMARIES if name in found]
    return {name: found[name] for name in [*order, *sorted(set(found) - set(order))]}


def _stop(message: str, code: int) -> NoReturn:
    print(f"fedhypevae: {message}", file=sys.stderr)
    raise SystemExit(code)


def _overview(found: dict[str, EntryPoint]) -> str:
    width = max((len(name) for name in found), default=0)
    lines = [
        "Usage: fedhypevae COMMAND [ARGS]...",
        "",
        "Differentially private generators of embeddings, trained over several sites.",
        "",
        "Options:",
        "  --help     Show this text (fedhypevae COMMAND --help for one command).",
        "  --version  Show the version.",
        "  --install-completion [SHELL], --show-completion [SHELL]",
        "             Completion for bash, zsh or fish; without a name for your own shell.",
        "",
        "Commands:",
    ]
    lines += [f"  {name:<{width}}  {SUMMARIES.get(name, '')}".rstrip() for name in found]
    return "\n".join(lines)


def load(entry: EntryPoint) -> Callable[..., Any]:
    """The callable of one command; a package that cannot be imported ends the program with 1."""
    try:
        app = entry.load()
    except (ImportError, AttributeError) as error:
        _stop(
            f"the command {entry.name!r} ({entry.value}) cannot be loaded: {error}. "
            "Install the locked packages (make install).",
            1,
        )
    if not isinstance(app, typer.Typer):
        _stop(f"the command {entry.name!r} ({entry.value}) is not a typer application.", 1)
    return typer.main.get_command(app)


def _completion(option: str, rest: Sequence[str]) -> NoReturn:
    from core import completion

    if len(rest) > 1:
        _stop(f"{option} takes one shell at most", 2)
    shell = rest[0] if rest else None
    try:
        show = option == "--show-completion"
        print(completion.script(shell) if show else completion.installed(shell))
    except completion.UnknownShell as error:
        _stop(str(error), 2)
    raise SystemExit(0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command. Exit codes: 0 done, 1 failed, 2 wrong usage (or a port already taken)."""
    prefer_checkout()
    given = list(sys.argv[1:] if arguments is None else arguments)
    found = commands()
    if os.environ.get("_FEDHYPEVAE_COMPLETE"):
        from core import completion

        summaries = {name: SUMMARIES.get(name, "") for name in found}
        completion.answer(summaries, lambda name: load(found[name]))
    if not found:
        _stop("not installed: call 'make install' (or pip install --no-deps -e .) first.", 1)
    if not given or given[0] in ("--help", "-h", "help"):
        print(_overview(found))
        raise SystemExit(0 if given else 2)
    if given[0] == "--version":
        print(f"fedhypevae {version('fedhypevae')}")
        raise SystemExit(0)
    name, *rest = given
    if name in ("--install-completion", "--show-completion"):
        _completion(name, rest)
    if name not in found:
        _stop(f"no such command {name!r}. There are: {', '.join(found)}.", 2)
    load(found[name])(args=rest, prog_name=f"fedhypevae {name}")


if __name__ == "__main__":
    main()
