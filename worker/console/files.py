"""Plans and embedding spaces out of files: YAML, TOML or JSON, by the file's name."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from worker.errors import ConfigError

M = TypeVar("M", bound=BaseModel)
_LARGEST = 1 << 20  # bytes


def read(kind: type[M], path: Path, what: str) -> M:
    """The file's content as a model. Raises ``ConfigError`` with a line for every fault."""
    raw = _parsed(path, what)
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(part) for part in fault['loc']) or what}: {_words(fault)}"
            for fault in error.errors(include_url=False)
        ]
        raise ConfigError(
            f"{path} is no {what}:", field=problems[0].partition(":")[0], problems=problems
        ) from None


def _words(fault: Any) -> str:
    if fault["type"] == "missing":
        return "missing. Add this key."
    if fault["type"] == "extra_forbidden":
        return "no such key. Remove it or check its spelling."
    text = str(fault["msg"]).removeprefix("Value error, ")
    value = fault["input"]
    return text if isinstance(value, dict | list) else f"{text} (found {value!r})"


def _parsed(path: Path, what: str) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            body = file.read(_LARGEST + 1)
        if len(body) > _LARGEST:
            raise ValueError("it is larger than 1 MiB")
        text = body.decode("utf-8")
        match path.suffix.lower():
            case ".toml":
                found: Any = tomllib.loads(text)
            case ".json":
                found = json.loads(text)
            case _:
                found = yaml.safe_load(text)
        if not isinstance(found, dict):
            raise ValueError("it holds no keys and values")
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror or error}.",
            field=what,
            mend=f"Give a {what} as a YAML, TOML or JSON file.",
        ) from None
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        said = " ".join(str(error).split())
        raise ConfigError(
            f"cannot read {path}: {said}.",
            field=what,
            mend="Mend the file; its ending says which of YAML, TOML and JSON it is.",
        ) from None
    return found
