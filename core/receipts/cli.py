"""``fedhypevae verify``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from core.errors import DomainError
from core.privacy.premise import in_words
from core.receipts.checking import Findings, PublicKeys, check, read_keys, signed_of, summary
from core.receipts.reading import read_rows
from core.terminal import printable

verify_app = typer.Typer(add_completion=False)
_MARKS = {True: "ok     ", False: "WRONG  ", None: "unknown"}


def _stop(message: str, code: int = 2) -> NoReturn:
    typer.echo(f"fedhypevae: {message}", err=True)
    raise typer.Exit(code)


@verify_app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="An answer of /synthesize, or a receipt (JSON).")],
    keys: Annotated[
        Path | None,
        typer.Option(help="Public keys (GET /v1/receipt-keys): needed to check the signature."),
    ] = None,
    receipt: Annotated[
        Path | None, typer.Option(help="The receipt, where the file holds none or an early one.")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="An exported generator: make the rows again and compare the numbers."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Findings as JSON.")] = False,
) -> None:
    """Is a receipt genuine, and are rows those that it names? Needs no network.

    Exit code 0: signature and rows hold. 1: one of them does not, or could not be told. 2: a file
    cannot be read.

    fedhypevae verify rows.parquet --keys keys.json

    fedhypevae verify rows.parquet --keys keys.json --model wards.safetensors
    """
    try:
        rows = read_rows(file)
        signed = signed_of(rows.receipt if receipt is None else read_rows(receipt).receipt)
        known = None if keys is None else read_keys(keys)
        findings = check(rows, signed, known)
        if model is not None and rows.dtype:
            _make_again(findings, file, model, known)
    except DomainError as error:
        _stop(str(error))
    if as_json:
        typer.echo(json.dumps(summary(findings), indent=2))
    else:
        _show(findings)
    if not findings.good:
        raise typer.Exit(1)


def _make_again(findings: Findings, file: Path, model: Path, keys: PublicKeys | None) -> None:
    """What a hash could not tell, because the file is of float16, the comparison tells."""
    # Here, because they take a second that a check of a hash need not take.
    from core.receipts.proving import made_again
    from core.synthesis.export import load

    generator, card = load(model)
    if keys is not None:
        card.require_signature(keys)
    findings.checks["made again"] = made_again(read_rows(file), findings.receipt, generator, card)
    if findings.checks["rows"][0] is None:
        del findings.checks["rows"]


def _show(findings: Findings) -> None:
    for name, (holds, why) in findings.checks.items():
        typer.echo(f"{_MARKS[holds]}  {name}: {why}")
    receipt = findings.receipt
    model, asked = receipt.model, receipt.asked
    typer.echo(f"receipt   {receipt.id}")
    typer.echo(f"model     {model.run}, round {model.round}, weights {model.weights_digest}")
    mixture = asked.mixture if isinstance(asked.mixture, str) else json.dumps(asked.mixture)
    typer.echo(f"rows      {receipt.n:,}, {asked.mode} of {mixture}, seed {asked.seed}")
    for spent in receipt.per_client:
        typer.echo(
            f"privacy   {spent.client}: epsilon {spent.epsilon:.4g} at delta {spent.delta:.3g} "
            f"({receipt.relation}, one {spent.unit})"
        )
    if said := in_words(view.model_dump() for view in receipt.views):
        typer.echo(f"premise   {printable(said)}")
    if receipt.label:
        typer.echo(f"WARNING   {receipt.label}: {receipt.caveat}")
    for client in receipt.withdrawn:
        typer.echo(f"note      {client} has withdrawn since the model was trained")
