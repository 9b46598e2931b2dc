"""What a person types about rows, as a request. For command lines, online and offline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_SUFFIXES = {"jsonl": "ndjson", "arrows": "arrow", "pq": "parquet"}


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


def request_of(asked: dict[str, Any]) -> Any:
    """A ``SynthesisRequest``. Raises ``WrongOption`` in the words of the options."""
    from pydantic import ValidationError

    from core.synthesis.request import SynthesisRequest

    options = {"class_counts": "counts"}
    try:
        return SynthesisRequest.model_validate(asked)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        name = str(fault["loc"][0]) if fault["loc"] else ""
        message = fault["msg"].removeprefix("Value error, ")
        where = f"--{options.get(name, name)}: " if name else ""
        for field, option in options.items():
            message = message.replace(field, option)
        raise WrongOption(f"{where}{message}") from None
