"""Public values that plans are made of: immutable, canonical, and the embedding-space contract."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

ClipNorm = Annotated[float, Field(gt=0, le=1e6)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
# One line of text for people: no control characters, no line separators, nothing that turns the
# direction of what follows, so that what is shown is what is there, in a terminal as in a page.
Line = Annotated[
    str,
    Field(pattern=r"^[^\u0000-\u001f\u007f-\u009f\u2028\u2029\u202a-\u202e\u2066-\u2069]*$"),
]
MAX_ROUND_NUMBER = 100_000
MAX_UNITS = 10**9
MAX_BYTES = 2**44  # of a stored object: 16 TiB
Sha256 = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class Frozen(BaseModel):
    """Base of public values: immutable, unknown keys refused, NaN and infinity refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def digest_of(value: BaseModel | dict[str, Any]) -> str:
    """``sha256:...`` of the canonical JSON (sorted keys, no spaces) of a public value."""
    data = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


def omitted_if(default: Any) -> Callable[[Any], bool]:
    """For ``Field(exclude_if=...)`` of a field that came after plans were stored.

    With its default, such a field is left out of every dump: what was stored before keeps its
    digest, and sites of before, which refuse unknown keys, still read what they can carry out.
    The default can therefore never be changed.
    """
    return lambda value: bool(value == default)


class EmbeddingSpace(Frozen):
    """The contract that makes embeddings of several sites comparable.

    Two variants of one backbone differ in ``weights_digest`` or ``preprocessing`` and therefore
    in the contract's digest: their records never mix silently.
    """

    name: Name
    backbone: str = Field(min_length=1, max_length=200)
    weights_digest: Sha256
    preprocessing: str = Field(min_length=1, max_length=500)
    dim: int = Field(ge=2, le=65_536)
    classes: tuple[Annotated[str, Field(min_length=1, max_length=100)], ...] = Field(
        min_length=2, max_length=1_000
    )

    @model_validator(mode="after")
    def _classes_are_distinct(self) -> EmbeddingSpace:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes: each name may appear once")
        return self
