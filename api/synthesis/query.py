"""The request as a query string, for tools that read from a URL."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core.synthesis.request import SynthesisRequest

_DIGITS = 20  # more are no number that any of these may be
_LISTED = "name:number, separated by commas"


class SynthesisQuery(BaseModel):
    """Each parameter as in the body of the POST; maps are written ``name:number,name:number``."""

    model_config = ConfigDict(extra="forbid")

    run: str = Field(min_length=1, max_length=64)
    round: str = "latest"
    mixture: str = Field(default="neutral", description=f"'neutral', or {_LISTED}.")
    mode: str = "blend"
    n: str | None = None
    labels: str = Field(default="model", description=f"'model', 'uniform', or {_LISTED}.")
    class_counts: str | None = Field(default=None, description=f"{_LISTED}.")
    seed: str | None = None
    temperature: str = "1"
    guidance: str = "model"
    format: str | None = None
    dtype: str = "float32"
    columns: str = Field(default="", description="Separated by commas.")

    def request(self) -> SynthesisRequest:
        """Raises ``RequestValidationError``, which names the parameter."""
        given: dict[str, Any] = self.model_dump(exclude_none=True)
        for name in ("mixture", "labels", "class_counts"):
            if ":" in given.get(name, ""):
                given[name] = _map_of(given[name], name)
        given["columns"] = [part for part in self.columns.split(",") if part]
        for name in ("n", "seed", "round"):
            if given.get(name, "").isdecimal() and len(given[name]) <= _DIGITS:
                given[name] = int(given[name])
        try:
            return SynthesisRequest.model_validate(given | {"temperature": self.temperature})
        except ValidationError as error:
            raise RequestValidationError(
                [{**item, "loc": ("query", *item["loc"])} for item in error.errors()]
            ) from None


def _map_of(text: str, field: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in text.split(","):
        name, colon, number = part.rpartition(":")
        if not colon or not name or name in found:
            raise RequestValidationError(
                [
                    {
                        "type": "value_error",
                        "loc": ("query", field),
                        "msg": f"write {_LISTED}, each name once; {part!r} is not so. Names with "
                        "commas: send a POST",
                        "input": text,
                    }
                ]
            )
        found[name] = number
    return found


Asked = Annotated[SynthesisQuery, Query()]
