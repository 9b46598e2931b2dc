"""The receipt of a set of synthetic rows: which model, which codes, which seed, at what privacy.

A receipt is a JSON object. What is signed are its canonical bytes: keys sorted, no spaces, UTF-8,
numbers as Python's ``json`` writes them (the shortest decimal that reads back as the same float64).
It holds no time and no number of the request: the same rows of the same model have one receipt,
whoever asks for them and whenever.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from core.federation.values import Frozen, Sha256, omitted_if
from core.privacy.premise import View
from core.receipts.content import Content
from core.synthesis.request import ClassCounts, Labels, Mixture, SynthesisRequest

NOT_PRIVATE = "NOT PRIVATE"
_ID_DIGITS = 32


class Signable(Frozen):
    """What can be signed: ``canonical`` are the bytes, ``id`` is a digest of them. No signature of
    one kind is one of another: each has its own ``context``.
    """

    context: ClassVar[bytes]

    def canonical(self) -> bytes:
        """The bytes that are signed."""
        return canonical(self.model_dump(mode="json"))

    @property
    @abstractmethod
    def id(self) -> str:
        """Names it; begins with what kind it is of."""


class CodeUsed(Frozen):
    """A code that rows were made under, and its share of them."""

    domain: str
    share: float
    code_id: str


class Spent(Frozen):
    """What one client's population has paid for the model, whatever is sampled from it: epsilon at
    ``delta``, recomputed from the ledger's events, for adding or removing one ``unit``.
    """

    client: str
    epsilon: float
    delta: float
    unit: str


Version = Annotated[str, Field(max_length=100)]


class MadeWith(Frozen):
    """What decides the last bits of rows: on another instruction set they may differ in them."""

    fedhypevae: Version
    numpy: Version
    instruction_set: Version


class Model(Frozen):
    """The published round: its run, and the digests of its specification (with the plan) and of
    its two files.
    """

    run_id: str
    run: str
    round: int
    plan_digest: str
    frame_digest: str
    weights_digest: str


class Asked(Frozen):
    """All that decides the rows, so that they can be made again. ``mixture`` is normalised."""

    mixture: Mixture
    mode: Literal["blend", "sample"]
    n: int | None
    labels: Labels
    class_counts: ClassCounts | None
    temperature: float
    guidance: Literal["model", "none"]
    seed: int


class Receipt(Signable):
    """``relation``: what is neighbouring in every epsilon of ``per_client``. ``label``:
    ``NOT_PRIVATE`` or empty; then ``caveat`` says why. ``withdrawn``: clients whose releases are in
    the shared weights, and who have withdrawn. ``content`` is missing until all rows are made.
    """

    context: ClassVar[bytes] = b"fedhypevae receipt 1\n"

    version: Literal[1] = 1
    model: Model
    asked: Asked
    n: int
    codes: tuple[CodeUsed, ...]
    labels_by: Literal["trained classifier", "generator"]
    per_client: tuple[Spent, ...]
    relation: str
    noise_mode: str
    label: Literal["NOT PRIVATE", ""] = ""
    caveat: str = ""
    withdrawn: tuple[str, ...] = ()
    views: tuple[View, ...] = Field(
        default=(),
        exclude_if=omitted_if(()),
        description="Of a run with secure sums: what one founding client's releases up to this "
        "round, if no attempt was lost, cost against whom, and on which premise.",
    )
    made_with: MadeWith
    content: Content | None = Field(default=None)

    @property
    def request(self) -> SynthesisRequest:
        """What makes the rows again, with ``asked.seed``."""
        asked = self.asked.model_dump(exclude={"seed"})
        return SynthesisRequest.model_validate(asked | {"run": self.model.run_id})

    @property
    def id(self) -> str:
        """The same before and after the rows are made: a digest of all but ``content``."""
        return "rcp_" + digits_of(self.model_copy(update={"content": None}))


class ModelReceipt(Signable):
    """The receipt of a published model that is taken away as a file: ``tensors`` and ``card`` are
    digests of what the file holds (``core.synthesis.export``); the rest is as in ``Receipt``.
    ``domains``: label -> clients that it stands for in mixtures. ``licence``: what the operator
    allows, an SPDX expression if it can be one.
    """

    context: ClassVar[bytes] = b"fedhypevae model 1\n"
    prefix: ClassVar[str] = "mdl_"

    version: Literal[1] = 1
    model: Model
    per_client: tuple[Spent, ...]
    relation: str
    noise_mode: str
    label: Literal["NOT PRIVATE", ""] = ""
    caveat: str = ""
    withdrawn: tuple[str, ...] = ()
    views: tuple[View, ...] = Field(
        default=(),
        exclude_if=omitted_if(()),
        description="Of a run with secure sums: what one founding client's releases up to this "
        "round, if no attempt was lost, cost against whom, and on which premise.",
    )
    domains: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    licence: str
    tensors: Sha256
    card: Sha256

    @property
    def id(self) -> str:
        return self.prefix + digits_of(self)


def digits_of(value: Signable) -> str:
    """The beginning of the SHA-256 of what is signed."""
    return hashlib.sha256(value.canonical()).hexdigest()[:_ID_DIGITS]


def canonical(value: object) -> bytes:
    """JSON with sorted keys and no spaces. Raises ``ValueError`` for numbers that JSON has not."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()
