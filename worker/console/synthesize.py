"""``fedhypevae synthesize``: rows of a published run, into a file, with their receipt."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from core.privacy.premise import in_words
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
    numbers,
    request_of,
)
from core.terminal import printable, target
from worker.answers import JsonObject
from worker.client import CoordinatorClient
from worker.console.base import connected, stop, told
from worker.errors import ApiProblem, UnexpectedAnswer

synthesize_app = typer.Typer(
    add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False
)

# Tables without place for a receipt: their rows are not read back.
_PLAIN = frozenset({"csv", "ndjson", "npy"})
_HELP = """
Synthetic rows of a published run, into a file; the receipt says what they have cost whom.

FHV_COORDINATOR_URL says where, FHV_TOKEN who (scope scientist). Exit codes: 0 done, 1 failed or
refused, 2 wrong usage. So many rows that a worker has to make them take a while; Ctrl-C gives up.

    fedhypevae synthesize --run wards --n 1000 --out rows.parquet

    fedhypevae synthesize --run wards --n 1000 --labels uniform --domain north=0.7
        --domain south=0.3 --seed 7 --out rows.csv --receipt receipt.json

    fedhypevae synthesize --run wards --counts sick=500,well=500 --format ndjson --out - | head
"""


@synthesize_app.command(help=_HELP, no_args_is_help=True)
def synthesize(
    run: Annotated[str, typer.Option("--run", help="The run's name or id.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to; '-' is standard output.")],
    n: Rows = None,
    number: Annotated[
        int | None, typer.Option("--round", min=0, help="The newest model if absent.")
    ] = None,
    domain: Annotated[
        list[str] | None,
        typer.Option("--domain", metavar="NAME=WEIGHT", help="A domain or client; repeatable."),
    ] = None,
    mixture: Annotated[
        str | None, typer.Option(help="The same at once: 'neutral', or name=weight,name=weight.")
    ] = None,
    mode: Mode = "blend",
    labels: Labels = "model",
    counts: Counts = None,
    seed: Seed = None,
    temperature: Temperature = 1.0,
    guidance: Guidance = "model",
    dtype: Dtype = "float32",
    columns: Columns = "",
    form: Form = None,
    receipt: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the signed receipt here.")
    ] = None,
    force: Force = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="What was made, and the receipt, as one JSON document.")
    ] = False,
) -> None:
    """Exit codes: 0 done, 1 failed or refused, 2 wrong usage."""
    if domain and mixture is not None:
        stop("give --domain or --mixture, not both.", 2)
    if as_json and str(out) == "-":
        stop("--json and the rows cannot both go to standard output.", 2)
    if not force and str(out) != "-" and out.exists():
        stop(f"{out} is there already; give --force to replace it.", 2)
    try:
        request = request_of(
            run=run,
            round="latest" if number is None else number,
            mixture=_mixture(domain, mixture),
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
        stop(str(error), 2)
    body: JsonObject = request.model_dump(mode="json", exclude_none=True)
    with connected() as coordinator:
        receipt_id = _fetch(coordinator, body, request.size, out)
        signed = coordinator.receipt(receipt_id)
        checked = _checked(coordinator, signed, out, str(body["format"]))
        if receipt is not None:
            _keep(receipt, signed)
    _tell(out, signed, checked, as_json=as_json)


def _mixture(domain: list[str] | None, mixture: str | None) -> Any:
    if not domain:
        return mixture_of(mixture or "neutral")
    weighted = [each if "=" in each else f"{each}=1" for each in domain]
    return numbers("domain", ",".join(weighted))


def _fetch(coordinator: CoordinatorClient, body: JsonObject, rows: int, out: Path) -> str:
    """The rows into the file; the id of their receipt. Many are a job of a worker."""
    from core.synthesis.formats import FORMATS

    accept = f"{FORMATS[body['format']].media}, application/problem+json"
    try:
        with coordinator.streamed(
            "POST", "/v1/synthesize", json=body, headers={"Accept": accept}
        ) as answer:
            found = answer.headers.get("x-fhv-receipt")
            if found is None:
                raise UnexpectedAnswer("the rows came without X-FHV-Receipt")
            with target(out) as file, _bytes_shown() as progress:
                for chunk in answer.chunks:
                    file.write(chunk)
                    progress(len(chunk))
            return found
    except ApiProblem as problem:
        if problem.problem != "job-needed":
            raise
    return _by_a_worker(coordinator, body, rows, out)


def _by_a_worker(coordinator: CoordinatorClient, body: JsonObject, rows: int, out: Path) -> str:
    from worker.operations.base import path_part
    from worker.scientist import files

    with _rows_shown(rows) as progress:
        job = files.made(coordinator, coordinator.ask_file(body), progress)
    with target(out) as file:
        files.download(coordinator, f"/v1/synthesis-jobs/{path_part(job['id'])}/file", file)
    return str(job["receipt_id"])


def _checked(
    coordinator: CoordinatorClient, signed: JsonObject, out: Path, kind: str
) -> dict[str, tuple[bool | None, str]]:
    """Is the receipt genuine, and are the rows in the file those that it names?"""
    from core.receipts.checking import PublicKeys, check, signed_of
    from core.receipts.reading import RowsFile, read_rows

    keys = PublicKeys.model_validate(coordinator.receipt_keys())
    read = str(out) != "-" and kind not in _PLAIN
    file = read_rows(out) if read else RowsFile(signed, (), "")
    return check(file, signed_of(signed), keys).checks


def _keep(path: Path, signed: JsonObject) -> None:
    from core.files import whole_file

    with told(), whole_file(path) as file:
        file.write((json.dumps(signed, indent=2, sort_keys=True) + "\n").encode())


def _tell(
    out: Path,
    signed: JsonObject,
    checked: dict[str, tuple[bool | None, str]],
    *,
    as_json: bool,
) -> None:
    """The receipt for a person, on standard error where the rows went to standard output."""
    made = signed["receipt"]
    wrong = [name for name, (holds, _) in checked.items() if holds is False]
    if as_json:
        checks = {name: {"holds": holds, "why": why} for name, (holds, why) in checked.items()}
        typer.echo(json.dumps({"file": str(out), "checks": checks, **signed}, indent=2))
    else:
        where = "standard output" if str(out) == "-" else str(out)
        lines = [f"{made['n']:,} rows in {where}, seed {made['asked']['seed']}"]
        model = made["model"]
        lines.append(f"receipt   {signed['id']} (run {model['run']}, round {model['round']})")
        lines += [
            f"privacy   {each['client']}: epsilon {each['epsilon']:.4g} at delta "
            f"{each['delta']:.3g} for one {each['unit']}"
            for each in made["per_client"]
        ]
        if said := in_words(made.get("views", ())):
            lines.append(f"premise   {said}")
        marks = {True: "ok     ", False: "WRONG  ", None: "unknown"}
        lines += [f"{marks[holds]}   {name}: {why}" for name, (holds, why) in checked.items()]
        if made["label"]:
            lines.append(f"WARNING   {made['label']}: {made['caveat']}")
        lines += [f"note      {name} has withdrawn since" for name in made["withdrawn"]]
        for line in lines:
            typer.echo(printable(line), err=True)
    if wrong:
        stop(f"the rows are not those of their receipt ({', '.join(wrong)}).")


@contextmanager
def _bytes_shown() -> Iterator[Callable[[int], None]]:
    """What has come so far, on a terminal."""
    from rich.progress import DownloadColumn, TimeElapsedColumn

    with _progress(DownloadColumn(), TimeElapsedColumn()) as shown:
        task = shown.add_task("rows", total=None)
        yield lambda more: shown.advance(task, more)


@contextmanager
def _rows_shown(rows: int) -> Iterator[Callable[[int, int], None]]:
    from rich.progress import MofNCompleteColumn, TimeRemainingColumn

    with _progress(MofNCompleteColumn(), "rows", TimeRemainingColumn()) as shown:
        task = shown.add_task("rows", total=rows)
        yield lambda done, total: shown.update(task, completed=done, total=total)


def _progress(*columns: Any) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress

    return Progress(
        BarColumn(),
        *columns,
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
