"""What is fixed of a round's sum when a step of it is asked, read once.

Answers of a step are final when the next one is asked: the transaction that asks holds the round's
row, which every answer needs. What is kept here cannot be out of date, as long as it is read for a
step (or an order) that the reader has seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from api.rounds import repository as rounds
from api.secure_sums import repository
from core.recent import Recent
from core.secagg import masks
from core.secagg.collector import Collector
from core.secagg.messages import SIGNATURE_BYTES, Advert, Attestation, Confirmation, Session
from core.wire.secure import StepAnswer, StepName

Stage = StepName | Literal["order"]
_ORDER: tuple[Stage, ...] = ("keys", "shares", "order", "confirm", "open")
_MOST = 64
_sessions = Recent[tuple[UUID, int], Session](_MOST)
_kept = Recent[tuple[UUID, int, Stage], "Known"](_MOST)


class NoSum(LookupError):
    """The round has no session (yet)."""


@dataclass(frozen=True)
class Known:
    """``collector`` is asked only, never told. ``attested``: what each client signs of its masks,
    once the sharers are known.
    """

    session: Session
    roster: tuple[Advert, ...]
    sharers: tuple[str, ...]
    survivors: tuple[str, ...]
    attestations: tuple[Attestation, ...]
    confirmations: tuple[Confirmation, ...]
    collector: Collector
    attested: bytes


def sent_size(session: Session) -> int:
    """Bytes of a masked vector and what its client has signed of the masks."""
    return SIGNATURE_BYTES + session.length * masks.width(session.bits)


async def session_of(session: AsyncSession, run_id: UUID, number: int) -> Session | None:
    """The round's session, once it is committed; None before."""
    if (found := _sessions.get((run_id, number))) is not None:
        return found
    row = await repository.sum_of(session, run_id, number)
    if row is None:
        return None
    return _sessions.keep((run_id, number), Session.model_validate(row.session))


async def at(session: AsyncSession, run_id: UUID, number: int, stage: Stage) -> Known:
    """Raises ``NoSum``. ``stage`` must have been reached, in a transaction that is committed."""
    key = (run_id, number, stage)
    if (found := _kept.get(key)) is not None:
        return found
    return _kept.keep(key, await _read(session, *key))


async def _read(session: AsyncSession, run_id: UUID, number: int, stage: Stage) -> Known:
    asked = await session_of(session, run_id, number)
    if asked is None:
        raise NoSum(f"round {number} has no secure sum yet")
    reached = _ORDER.index(stage)

    def has(step: Stage) -> bool:
        return reached >= _ORDER.index(step)

    roster = await adverts(session, run_id, number) if has("shares") else ()
    sharers = await repository.sharers(session, run_id, number) if has("order") else []
    attestations = await attestations_of(session, run_id, number) if has("confirm") else ()
    survivors = tuple(each.site for each in attestations)
    confirmations: tuple[Confirmation, ...] = ()
    if has("open"):
        bodies = await repository.answers(session, run_id, number, "confirm")
        given = (StepAnswer.model_validate(body).confirmation for body in bodies.values())
        confirmations = tuple(each for each in given if each is not None)
    collector = Collector.before(asked, roster, sharers, survivors)
    if roster:
        collector.roster()
    attested = Attestation.signed(asked, roster, sharers)
    return Known(
        asked, roster, tuple(sharers), survivors, attestations, confirmations, collector, attested
    )


async def adverts(session: AsyncSession, run_id: UUID, number: int) -> tuple[Advert, ...]:
    """Of those who have sent keys, in the order of their names."""
    bodies = await repository.answers(session, run_id, number, "keys")
    given = (StepAnswer.model_validate(body).advert for body in bodies.values())
    return tuple(advert for advert in given if advert is not None)


async def attestations_of(
    session: AsyncSession, run_id: UUID, number: int
) -> tuple[Attestation, ...]:
    """Of those whose vectors are here, in the order of their names. One without (a program of
    before has taken it) is of nobody's key: its round ends, for the clients refuse it.
    """
    found = {name: update for update, name in await rounds.updates_of(session, run_id, number)}
    return tuple(
        Attestation(site=name, signature=found[name].attestation or "00" * SIGNATURE_BYTES)
        for name in sorted(found)
    )
