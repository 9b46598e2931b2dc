"""Messages between the coordinator and the worker that makes a file of rows."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from core.federation.plan import RunSpec
from core.federation.values import MAX_BYTES, Frozen, Sha256
from core.receipts.receipt import MadeWith
from core.synthesis.request import MAX_ROWS, SynthesisRequest

# Bytes of a part, an object of the store: the worker holds no more of a file than this.
PART_BYTES = 16 * 2**20

# More than a file of MAX_ROWS rows ever has.
MAX_PARTS = 1_000_000


class Claim(Frozen):
    """A worker takes a job; ``made_with`` goes into the receipt."""

    made_with: MadeWith


class SynthesisJob(Frozen):
    """Everything that makes the file. ``receipt``: the signed opening one. Digests name objects."""

    job_id: str
    lease_token: str
    lease_s: float = Field(gt=0)
    spec: RunSpec
    frame: Sha256
    weights: Sha256
    request: SynthesisRequest
    seed: int
    format: str
    receipt: dict[str, Any]


class Part(Frozen):
    """The next part of the file, stored. ``rows``: how many rows are made by now."""

    number: int = Field(ge=0, le=MAX_PARTS)
    digest: Sha256
    size: int = Field(gt=0, le=MAX_BYTES)
    rows: int = Field(ge=0, le=MAX_ROWS)


class FileMade(Frozen):
    """All of it is stored."""

    parts: int = Field(ge=1, le=MAX_PARTS)
    size: int = Field(gt=0, le=MAX_BYTES)
