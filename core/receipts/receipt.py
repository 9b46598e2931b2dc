"""The receipt of a set of synthetic rows: which model, which codes, which seed, at what privacy.

A receipt is a JSON object. What is signed are its canonical bytes: keys sorted, no spaces, UTF-8,
numbers as Python's ``json`` writes them (the shortest decimal that reads back as the same float64).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Literal

import numpy as np
from pydantic import Field

from core.federation.plan import Frozen
from core.synthesis.rows import Block

ALGORITHM: Literal["fhv-rows-1"] = "fhv-rows-1"
NOT_PRIVATE = "NOT PRIVATE"


class CodeUsed(Frozen):
    """A code that rows were made under, and its share of them."""

    domain: str
    share: float
    code_id: str


class Spent(Frozen):
    """What one client's population has paid for the model, whatever is sampled from it."""

    client: str
    epsilon: float
    delta: float
    unit: str


class MadeWith(Frozen):
    """What decides the last bits of rows: on another instruction set they may differ in them."""

    fedhypevae: str
    numpy: str
    instruction_set: str


class Content(Frozen):
    """The rows themselves. ``fhv-rows-1``: SHA-256 over, block by block of 4,096 rows, the
    embeddings as little-endian float32 in order of rows, then class ids, then the numbers of the
    codes, both as little-endian int32. The same for every format, number type and set of columns.
    """

    algorithm: Literal["fhv-rows-1"] = ALGORITHM
    digest: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")


class Receipt(Frozen):
    """``request``: what was asked for, with nothing left out, so that the rows can be made again.

    ``per_client``: epsilon at ``delta``, recomputed from the ledger's events, for adding or
    removing one ``unit`` (``relation``). ``label``: ``NOT_PRIVATE`` or empty. ``withdrawn``: who
    of the model's clients has withdrawn since. ``content`` is missing while rows are streamed.
    """

    version: Literal[1] = 1
    id: str
    issued_at: datetime
    run_id: str
    run: str
    round: int
    spec_digest: str
    frame_digest: str
    weights_digest: str
    request: dict[str, Any]
    seed: int
    n: int
    codes: tuple[CodeUsed, ...]
    labels_by: Literal["trained classifier", "generator"]
    per_client: tuple[Spent, ...]
    relation: str
    noise_mode: str
    label: str = ""
    caveat: str = ""
    withdrawn: tuple[str, ...] = ()
    made_with: MadeWith
    content: Content | None = None

    def canonical(self) -> bytes:
        """The bytes that are signed."""
        return canonical(self.model_dump(mode="json"))


def canonical(value: object) -> bytes:
    """JSON with sorted keys and no spaces. Raises ``ValueError`` for numbers that JSON has not."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


class RowsDigest:
    """``Content`` of rows that come block by block."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, block: Block) -> None:
        """Blocks in order."""
        for part, dtype in ((block.x, "<f4"), (block.y, "<i4"), (block.source, "<i4")):
            self._hash.update(np.ascontiguousarray(part, dtype).data)

    def content(self) -> Content:
        return Content(digest=f"sha256:{self._hash.hexdigest()}")


def content_of(blocks: Iterable[Block]) -> Content:
    digest = RowsDigest()
    for block in blocks:
        digest.add(block)
    return digest.content()
