"""Command ``fedhypevae sample``: rows from an exported generator, offline."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from core.errors import DomainError
from core.synthesis.options import (
    Columns,
    Counts,
    Dtype,
    Force,
    Form,
    Guidance,
    Labels,
    Mode,
    Rows,
    Seed,
    Temperature,
    WrongOption,
    mixture_of,
    request_of,
)
from core.terminal import printable, target

sample_app = typer.Typer(
    add_completion=False,
    help="Synthetic rows from an exported generator.",
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

_EXAMPLES = """
Synthetic rows from an exported generator (`GET /v1/runs/{run}/export`), without a network.

The same request and seed give the rows that the coordinator gives.

    fedhypevae sample --offline wards.safetensors --card

    fedhypevae sample --offline wards.safetensors --n 1000 --seed 7 --out rows.parquet

    fedhypevae sample --offline wards.safetensors --n 1000 --labels uniform \\
        --mixture hospital-a=0.7,hospital-b=0.3 --mode sample --columns domain --out rows.csv

    fedhypevae sample --offline wards.safetensors --counts sick=500,well=500 \\
        --format ndjson --out - | head
"""
_SHOWN_ROWS = 20_000  # more than that take long enough for a progress bar


@sample_app.command(help=_EXAMPLES, no_args_is_help=True)
def sample(
    offline: Annotated[
        Path, typer.Option("--offline", metavar="FILE", help="The exported generator.")
    ],
    n: Rows = None,
    mixture: Annotated[
        str, typer.Option(help="'neutral', a client or domain, or name=weight,name=weight.")
    ] = "neutral",
    mode: Mode = "blend",
    labels: Labels = "model",
    counts: Counts = None,
    seed: Seed = None,
    temperature: Temperature = 1.0,
    guidance: Guidance = "model",
    dtype: Dtype = "float32",
    columns: Columns = "",
    form: Form = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to; '-' is standard output.")
    ] = None,
    force: Force = False,
    show_card: Annotated[
        bool, typer.Option("--card", help="Print the model card, and stop.")
    ] = False,
    keys: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The answer of GET /v1/receipt-keys: check the signature first."
        ),
    ] = None,
) -> None:
    """Exit codes: 0 done, 1 failed, 2 wrong usage."""
    # Here, because they take a second that --help need not take.
    from core.receipts.checking import read_keys
    from core.synthesis import export
    from core.synthesis.offline import document, write

    with _told():
        generator, card = export.load(offline)
        if keys is not None:
            card.require_signature(read_keys(keys))
    if show_card:
        typer.echo(printable(card.markdown), nl=False)
        return
    if out is None:
        _stop("where to? Give --out FILE, or --out - for standard output.", 2)
    try:
        request = request_of(
            run=card.receipt.model.run,
            mixture=mixture_of(mixture),
            mode=mode,
            n=n,
            labels=labels,
            counts=counts,
            seed=seed,
            temperature=temperature,
            guidance=guidance,
            dtype=dtype,
            columns=columns,
            form=form,
            out=out,
        )
    except WrongOption as error:
        _stop(str(error), 2)
    if not force and str(out) != "-" and out.exists():
        _stop(f"{out} is there already; give --force to replace it.", 2)
    used = secrets.randbelow(2**63) if request.seed is None else request.seed
    with _told():
        made = document(generator, card, request, used)
        with target(out) as file, _progress(request.size) as progress:
            write(made, str(request.format), file, progress)
    where = "standard output" if str(out) == "-" else str(out)
    stamp = f" ({card.receipt.label}: {card.receipt.caveat})" if card.receipt.label else ""
    typer.echo(f"{request.size:,} rows in {where}, seed {used}{printable(stamp)}", err=True)


def _stop(message: str, code: int = 1) -> NoReturn:
    typer.echo(f"fedhypevae: {printable(message)}", err=True)
    raise typer.Exit(code)


@contextmanager
def _told() -> Iterator[None]:
    """Errors that a person can mend become one message. Exit 2: the request is at fault."""
    from core.errors import InvalidMixture, InvalidSynthesisRequest

    try:
        yield
    except (InvalidMixture, InvalidSynthesisRequest) as error:
        _stop(str(error), 2)
    except DomainError as error:
        _stop(str(error))
    except BrokenPipeError:
        sys.stderr.close()  # whoever reads has had enough, and Python would complain at exit
        raise typer.Exit(0) from None


@contextmanager
def _progress(rows: int) -> Iterator[Callable[[int], None] | None]:
    """A bar on a terminal, for many rows."""
    if rows < _SHOWN_ROWS or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    shown = Progress(
        BarColumn(), MofNCompleteColumn(), "rows", TimeRemainingColumn(),
        console=Console(stderr=True), transient=True,
    )  # fmt: skip
    with shown:
        task = shown.add_task("rows", total=rows)
        yield lambda made: shown.update(task, completed=made)
