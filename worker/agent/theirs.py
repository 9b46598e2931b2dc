"""The coordinator's ledger of an account, read as values that the site can judge.

Nothing in it is believed: what cannot be, by the rules of a ledger, is a fault and is reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core.privacy.events import PrivacyEvent
from worker.agent.records import AttemptKey
from worker.answers import JsonObject
from worker.errors import UnexpectedAnswer

Outcome = Literal["open", "commit", "lost"]


@dataclass(frozen=True)
class TheirAttempt:
    """A reservation of the coordinator's ledger and what became of it there."""

    key: AttemptKey
    event: PrivacyEvent
    standing: Outcome


@dataclass(frozen=True)
class TheirLedger:
    """``faults``: one line for each entry that breaks a ledger's rules. ``epsilon_total`` is what
    the coordinator says; it is compared with what its own events give.
    """

    client: str
    population: str
    unit: str
    delta: float
    epsilon_total: float
    attempts: Mapping[AttemptKey, TheirAttempt]
    faults: tuple[str, ...]


class _Message(BaseModel):
    """Newer coordinators may say more; what is needed must be there."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class _Account(_Message):
    population: str
    unit: str


class _Entry(_Message):
    id: str
    kind: Literal["reserve", "commit", "lost"]
    client: str
    event: dict[str, Any] | None
    reserve_id: str | None
    run_id: str
    round: int = Field(ge=0)
    attempt: int = Field(ge=1)

    @property
    def key(self) -> AttemptKey:
        return AttemptKey(self.run_id, self.round, self.attempt, self.client)


class _Ledger(_Message):
    client: str
    account: _Account
    delta: float
    epsilon_total: float
    entries: tuple[_Entry, ...]


def read_ledger(raw: JsonObject) -> TheirLedger:
    """From the answer of ``GET /v1/clients/{id}/ledger``. Raises ``UnexpectedAnswer``."""
    try:
        ledger = _Ledger.model_validate(raw)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise UnexpectedAnswer(
            f"the coordinator's ledger cannot be read ({where}).",
            mend="Compare the versions of site and coordinator.",
        ) from None
    faults: list[str] = []
    reserved: dict[str, tuple[AttemptKey, PrivacyEvent]] = {}
    seen: set[AttemptKey] = set()
    for entry in ledger.entries:
        if entry.kind == "reserve":
            _reserve(entry, reserved, seen, faults)
    outcomes = _outcomes(ledger, reserved, faults)
    return TheirLedger(
        client=ledger.client,
        population=ledger.account.population,
        unit=ledger.account.unit,
        delta=ledger.delta,
        epsilon_total=ledger.epsilon_total,
        attempts={
            key: TheirAttempt(key, event, outcomes.get(entry_id, "open"))
            for entry_id, (key, event) in reserved.items()
        },
        faults=tuple(faults),
    )


def _reserve(
    entry: _Entry,
    reserved: dict[str, tuple[AttemptKey, PrivacyEvent]],
    seen: set[AttemptKey],
    faults: list[str],
) -> None:
    try:
        event = PrivacyEvent.model_validate(entry.event)
    except ValidationError:
        faults.append(f"{_name(entry.key)}: its reservation carries no event that is one")
        return
    if entry.id in reserved or entry.key in seen:
        faults.append(f"{_name(entry.key)}: reserved twice")
        return
    seen.add(entry.key)
    reserved[entry.id] = (entry.key, event)


def _outcomes(
    ledger: _Ledger, reserved: Mapping[str, tuple[AttemptKey, PrivacyEvent]], faults: list[str]
) -> dict[str, Outcome]:
    found: dict[str, Outcome] = {}
    for entry in ledger.entries:
        if entry.kind == "reserve":
            continue
        reservation = reserved.get(entry.reserve_id or "")
        if reservation is None or entry.reserve_id is None:
            faults.append(f"{_name(entry.key)}: {entry.kind} without a reservation")
        elif reservation[0] != entry.key:
            faults.append(f"{_name(entry.key)}: {entry.kind} of another attempt's reservation")
        elif entry.reserve_id in found:
            faults.append(f"{_name(entry.key)}: has two outcomes")
        else:
            found[entry.reserve_id] = entry.kind
    return found


def _name(key: AttemptKey) -> str:
    return f"run {key.run_id} round {key.round_number} attempt {key.attempt} of {key.client}"
