"""``fedhypevae demo``: the whole job on this machine. See README.md."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from core.training.compute import Engine

# Plain tracebacks: decorated ones print local variables, which may hold tokens.
demo_app = typer.Typer(
    add_completion=False, help="The whole job on real images.", pretty_exceptions_enable=False
)


@demo_app.command()
def demo(
    small: Annotated[
        bool, typer.Option("--small", help="Made-up clusters and few rounds: a quick check.")
    ] = False,
    output: Annotated[
        Path, typer.Option(help="Where the synthetic tables and report.json go.")
    ] = Path("demo-output"),
    plan: Annotated[
        Path | None, typer.Option(help="Another plan (TOML) than the demo's own.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="The coordinator's; any free one if absent.")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the working folder (logs, state, databases).")
    ] = False,
    secure: Annotated[
        bool,
        typer.Option(
            "--secure", help="Secure sums: the coordinator sees no site's own update; less noise."
        ),
    ] = False,
    gradients: Annotated[
        Engine, typer.Option(help="How sites compute: ghost clipping, or opacus as the reference.")
    ] = "ghost",
) -> None:
    """Start every service, train over three sites, synthesize, and print what came out."""
    from benchmarks.demo.main import Options, run_demo
    from core.processes import ServiceError, Stopped

    console = Console()
    options = Options(
        small=small,
        output=output,
        plan=plan,
        port=port,
        keep=keep,
        gradients=gradients,
        secure=secure,
    )
    try:
        run_demo(options, console)
    except ServiceError as error:
        console.print(
            f"\n[bold red]The demo failed.[/bold red] {error}", soft_wrap=True, highlight=False
        )
        raise typer.Exit(1) from error
    except Stopped as stopped:
        console.print(f"\n{stopped}: every process has been stopped.", highlight=False)
        raise typer.Exit(128 + stopped.number) from stopped
