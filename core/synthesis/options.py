"""What a person types about rows, as a request. For command lines, online and offline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

_SUFFIXES = {"jsonl": "ndjson", "arrows": "arrow", "pq": "parquet"}

# Options of every command that makes rows, as typer reads them.
Rows = Annotated[int | None, typer.Option("--n", help="Number of rows.")]
Mode = Annotated[str, typer.Option(help="'blend': one code; 'sample': each row of one client.")]
Labels = Annotated[str, typer.Option(help="'model', 'uniform', or class=share,class=share.")]
Counts = Annotated[
    str | None, typer.Option(help="class=rows,class=rows, instead of --n and --labels.")
]
Seed = Annotated[int | None, typer.Option(help="Drawn, and told, when absent.")]
Temperature = Annotated[float, typer.Option(help="Scales spreads; 1 is the model.")]
Guidance = Annotated[str, typer.Option(help="'model', or 'none': without the trained classifier.")]
Dtype = Annotated[str, typer.Option(help="float16, float32 or float64.")]
Columns = Annotated[str, typer.Option(help="domain, code_id, or both.")]
Form = Annotated[
    str | None, typer.Option("--format", help="parquet, arrow, npz, npy, csv, json or ndjson.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace a file that is there.")]


class WrongOption(ValueError):
    """An option cannot be what was typed; the message names it."""


def mixture_of(text: str) -> Any:
    """``neutral``, one name, or name=weight,name=weight. Raises ``WrongOption``."""
    if text == "neutral":
        return text
    return numbers("mixture", text) if "=" in text or text.startswith("{") else {text: 1.0}


def labels_of(text: str) -> Any:
    """``model``, ``uniform``, or class=share,class=share. Raises ``WrongOption``."""
    return text if text in ("model", "uniform") else numbers("labels", text)


def numbers(option: str, text: str) -> dict[str, Any]:
    """``name=number,name=number``, or a JSON object where names hold commas."""
    if text.startswith("{"):
        try:
            found = json.loads(text)
        except ValueError:
            raise WrongOption(f"--{option}: {text!r} is not a JSON object.") from None
        return dict(found)
    found = {}
    for part in text.split(","):
        name, _, number = part.rpartition("=")
        if not name:
            raise WrongOption(f"--{option}: {part!r} is not of the form name=number.")
        if name in found:
            raise WrongOption(f"--{option}: {name!r} is named twice.")
        try:
            found[name] = int(number) if number.isdecimal() else float(number)
        except ValueError:
            raise WrongOption(f"--{option}: {number!r} is not a number.") from None
    return found


def format_by_name(out: Path) -> str:
    """The format that a file's name asks for; Parquet where it asks for none."""
    from core.synthesis.formats import FORMATS

    suffix = out.suffix.lower().removeprefix(".")
    kind = _SUFFIXES.get(suffix, suffix)
    return kind if kind in FORMATS else "parquet"


def request_of(
    *, out: Path, labels: str, counts: str | None, columns: str, form: str | None, **asked: Any
) -> Any:
    """A ``SynthesisRequest`` out of what was typed; ``asked`` are fields as the request has them.
    Raises ``WrongOption`` in the words of the options.
    """
    from pydantic import ValidationError

    from core.synthesis.request import SynthesisRequest

    typed = {
        **asked,
        "labels": labels_of(labels),
        "class_counts": None if counts is None else numbers("counts", counts),
        "columns": [name for name in columns.split(",") if name],
        "format": form or format_by_name(out),
    }
    options = {"class_counts": "counts"}
    try:
        return SynthesisRequest.model_validate(typed)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        name = str(fault["loc"][0]) if fault["loc"] else ""
        message = fault["msg"].removeprefix("Value error, ")
        where = f"--{options.get(name, name)}: " if name else ""
        for field, option in options.items():
            message = message.replace(field, option)
        raise WrongOption(f"{where}{message}") from None
