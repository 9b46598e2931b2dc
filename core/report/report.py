"""The report of a published model, as data. The HTML page is made of this and of nothing else.

Everything in it is a released value, post-processing of released values, or the ledger. A part that
would need records, and for which no budget was set aside, is ``Missing`` and says why.
"""

from __future__ import annotations

import hashlib
from typing import Literal

from pydantic import Field

from core.federation.plan import RoundKind
from core.federation.values import Frozen, omitted_if
from core.privacy.premise import View
from core.receipts.receipt import Model, canonical
from core.report.measured import Measured
from core.report.values import Estimate

Source = Literal["ledger", "released with noise", "post-processing", "public", "missing"]


class Space(Frozen):
    name: str
    backbone: str
    preprocessing: str
    dim: int
    classes: tuple[str, ...]


class Spending(Frozen):
    """Epsilon of everything that a run had reserved of an account up to a round."""

    round: int
    kind: RoundKind
    epsilon: float


class ClientSpending(Frozen):
    """``epsilon`` at the plan's delta of all reservations for this model: an upper bound.
    ``curve``: how it grew, at some rounds; the last point is ``epsilon``.
    """

    client: str
    unit: str
    epsilon: float
    reservations: int
    lost: int = Field(description="Reservations without an accepted update. Spent all the same.")
    curve: tuple[Spending, ...]


class Privacy(Frozen):
    """``epsilon_target``: what the plan promises of each founding client if no attempt is lost."""

    epsilon_target: float
    delta: float
    relation: str
    noise_mode: str
    accountant: str
    accountant_version: str
    clients: tuple[ClientSpending, ...]
    views: tuple[View, ...] = Field(
        default=(),
        exclude_if=omitted_if(()),
        description="Of a run with secure sums: what one founding client's releases up to this "
        "round, if no attempt was lost, cost against whom, and on which premise.",
    )


class Member(Frozen):
    """A client of the run. ``state`` is of now, the rest of the model."""

    client: str
    domain: str | None
    state: Literal["taking-part", "left", "quarantined", "revoked"]
    why: str
    accepted: int = Field(description="Updates of this client in the model.")
    has_code: bool = Field(description="A mixture may name it.")


class Sized(Frozen):
    """How many units a client's sketch released, with the noise's standard error."""

    client: str
    units: Estimate


class Released(Frozen):
    """Noised sums of the sketch round. ``classes`` in the order of the space: shares of units."""

    classes: tuple[Estimate, ...]
    sizes: tuple[Sized, ...]
    floor: float = Field(description="A client's units are never shown below this.")


class Point(Frozen):
    """A synthetic row in the plane: class and client (-1: the neutral code) by their places."""

    x: float
    y: float
    label: int
    client: int


class Projection(Frozen):
    """``explained``: share of the synthetic rows' variance along each axis."""

    explained: tuple[float, float]
    clients: tuple[str, ...]
    points: tuple[Point, ...]


class Balance(Frozen):
    """Labels of ``n`` rows of the neutral code with ``labels: model``, as shares of the classes."""

    n: int
    shares: tuple[float, ...]


class Differences(Frozen):
    """How far the class means under two clients' codes are apart; 1 is the typical distance of
    two classes. ``values`` [M][M]; only clients that still may be named.
    """

    clients: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    left_out: int = Field(description="Clients that are not shown, so that it can be read.")


class Synthetic(Frozen):
    seed: int
    labels_by: Literal["trained classifier", "generator"]
    balance: Balance
    projection: Projection
    differences: Differences


class Part(Frozen):
    """Where a part of the report comes from. ``price``: what it has cost, in words; ``why``: what
    is missing and why, or what limits it.
    """

    title: str
    source: Source
    price: str
    why: str = ""


class Report(Frozen):
    version: Literal[1] = 1
    label: Literal["NOT PRIVATE", ""]
    caveat: str
    model: Model
    space: Space
    rounds: tuple[RoundKind, ...] = Field(description="The rounds of the plan, in order.")
    joins: int
    privacy: Privacy
    members: tuple[Member, ...]
    released: Released
    synthetic: Synthetic
    measured: Measured | None = Field(
        description="On held-out records, in a report round. null: the plan paid for none."
    )
    parts: tuple[Part, ...]

    def canonical(self) -> bytes:
        return canonical(self.model_dump(mode="json"))

    @property
    def digest(self) -> str:
        """Of everything in it: equal reports have equal digests."""
        return "sha256:" + hashlib.sha256(self.canonical()).hexdigest()
