"""A client's part in the steps of a secure sum: what it is shown, and its one answer to each.

The coordinator checks what it can, and first of all signatures: a broken site should be named here
rather than make others refuse. What it cannot check, the sites do.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from api import audit
from api.auth import Principal
from api.context import Context
from api.db.engine import TOPIC_SWEEP, ring
from api.problems import NotFound, StepAnswered, StepClosed, StepRejected, WorkGone
from api.runs.specs import spec_of
from api.secure_sums import known, repository
from api.secure_sums.known import Known
from api.secure_sums.repository import STATE_OF, Asked
from core.secagg.collector import Rejected
from core.secagg.identity import is_signed
from core.secagg.messages import Confirmation
from core.wire.secure import StepAnswer, StepDecline, StepReceipt, SumStep

log = structlog.get_logger(__name__)
_POLL = "Poll for what comes next."


async def own(session: AsyncSession, who: Principal, step_id: UUID) -> Asked:
    """The step, if the caller may act on it: a client on its own, a worker on those of managed
    clients. To anybody else it does not exist.
    """
    asked = await repository.one(session, step_id)
    mine = asked is not None and (
        asked.client.managed if who.scope == "worker" else asked.client.id == who.client_id
    )
    if asked is None or not mine:
        raise NotFound("there is no such step, or it is not yours")
    return asked


async def step(ctx: Context, who: Principal, step_id: UUID) -> SumStep:
    """Raises ``WorkGone`` for a step that is over."""
    async with ctx.database.read() as session:
        asked = await own(session, who, step_id)
        if not asked.is_open:
            raise WorkGone(_over(asked), mend="Drop this message.")
        return await _shown(session, asked)


async def next_step(
    ctx: Context, who: Principal, client_id: UUID, run_id: UUID | None
) -> SumStep | None:
    """What a client should answer now (in one run)."""
    found = await ctx.database.glance(repository.NEXT, client_id=client_id, run_id=run_id)
    if not found:
        return None
    async with ctx.database.read() as session:
        asked = await own(session, who, found[0][0])
        return await _shown(session, asked) if asked.is_open else None


async def _shown(session: AsyncSession, asked: Asked) -> SumStep:
    row, run = asked.step, asked.run
    if asked.round.deadline is None:
        raise RuntimeError(f"step {row.id} has no deadline")
    fixed = await known.at(session, run.id, row.round_number, asked.name)
    return SumStep(
        step_id=str(row.id),
        run_id=str(run.id),
        client_id=str(asked.client.id),
        client=asked.client.name,
        round_number=row.round_number,
        step=asked.name,
        spec=spec_of(run),
        spec_digest=run.spec_digest,
        session=fixed.session,
        deadline=asked.round.deadline,
        roster=fixed.roster if asked.name == "shares" else (),
        survivors=fixed.survivors,
        attestations=fixed.attestations if asked.name == "confirm" else (),
        confirmations=fixed.confirmations,
    )


async def answer(
    ctx: Context, who: Principal, step_id: UUID, body: StepAnswer
) -> tuple[StepReceipt, bool]:
    """The receipt, and whether the answer is new. Raises ``StepAnswered``, ``StepClosed``,
    ``StepRejected``.
    """
    written = body.model_dump(mode="json", exclude_none=True)
    async with ctx.database.read() as session:
        asked = await own(session, who, step_id)
        if (receipt := _receipt(asked, written)) is not None:
            return receipt, False
        if body.step != asked.name:
            raise StepRejected(
                f"this step asks for {asked.name!r}, the answer is one to {body.step!r}"
            )
        fixed = await known.at(session, asked.run.id, asked.step.round_number, asked.name)
    try:
        _check(asked, fixed, body)
    except Rejected as error:
        raise StepRejected(
            str(error), mend="Compare the versions of the site's software, and its identity key."
        ) from None
    event = _told("sum-step-answered", who, asked)
    if await repository.settle(
        ctx.database, step_id, round_state=STATE_OF[asked.name], state="answered", body=written,
        reason="", event=event,
    ):  # fmt: skip
        log.info("sum_step_answered", step_id=str(step_id), step=asked.name)
        await _ring_if_last(ctx, asked)
        return StepReceipt(step_id=str(step_id), step=asked.name), True
    async with ctx.database.read() as session:
        asked = await own(session, who, step_id)
    if (receipt := _receipt(asked, written)) is not None:
        return receipt, False
    raise StepClosed("the step came and went meanwhile", mend=_POLL)


async def decline(ctx: Context, who: Principal, step_id: UUID, body: StepDecline) -> None:
    """Nobody waits for the client any more in this step. Repeating it changes nothing."""
    async with ctx.database.read() as session:
        asked = await own(session, who, step_id)
    if asked.step.state == "declined":
        return
    if asked.is_open and await repository.settle(
        ctx.database, step_id, round_state=STATE_OF[asked.name], state="declined", body=None,
        reason=body.code, event=_told("sum-step-declined", who, asked, code=body.code),
    ):  # fmt: skip
        log.info("sum_step_declined", step_id=str(step_id), step=asked.name, code=body.code)
        await _ring_if_last(ctx, asked)
        return
    async with ctx.database.read() as session:
        asked = await own(session, who, step_id)
    if asked.step.state == "answered":
        raise StepAnswered("the step was answered before", mend=_POLL)
    if asked.step.state != "declined":
        raise StepClosed(_over(asked), mend=_POLL)


def _receipt(asked: Asked, written: dict[str, Any]) -> StepReceipt | None:
    """Of an answer that was accepted before; None if the step is open."""
    row = asked.step
    if row.state == "answered":
        if row.body != written:
            raise StepAnswered(
                "another answer to this step was accepted before, and an answer is final",
                mend="Send what was sent: a site keeps its answer before it sends it.",
            )
        return StepReceipt(step_id=str(row.id), step=asked.name)
    if not asked.is_open:
        raise StepClosed(_over(asked), mend=_POLL)
    return None


def _over(asked: Asked) -> str:
    if asked.step.state != "asked":
        return f"the step was {asked.step.state}"
    return f"round {asked.round.number} is {asked.round.state}"


def _told(kind: str, who: Principal, asked: Asked, **detail: Any) -> dict[str, Any]:
    return audit.row(
        kind,
        who,
        run_id=asked.run.id,
        round_number=asked.step.round_number,
        client_id=asked.client.id,
        step=asked.name,
        **detail,
    )


def _check(asked: Asked, fixed: Known, body: StepAnswer) -> None:
    """Raises ``Rejected`` for an answer of which the sum would have no use."""
    name = asked.client.name
    if body.advert is not None:
        _of(body.advert.site, name)
        _signed(asked, body.advert.signature, body.advert.signed(fixed.session), "keys")
        if not body.advert.usable:
            raise Rejected(f"the keys of {name!r} are not of the curve")
    elif body.shares is not None:
        fixed.collector.must_take_shares(name, body.shares)
    elif body.confirmation is not None:
        _of(body.confirmation.site, name)
        fixed.collector.must_be_survivor(name)
        view = Confirmation.signed(fixed.session, fixed.roster, fixed.sharers, fixed.survivors)
        _signed(asked, body.confirmation.signature, view, "words on the list of vectors")
    elif body.opening is not None:
        _of(body.opening.site, name)
        fixed.collector.must_take_opening(body.opening)


def _of(site: str, name: str) -> None:
    if site != name:
        raise Rejected(f"{name!r} answers in the name of {site!r}")


def _signed(asked: Asked, signature: str, message: bytes, what: str) -> None:
    name, key = asked.client.name, asked.client.identity_key
    if key is None:
        raise Rejected(f"no identity key of {name!r} is known here")
    if not is_signed(bytes.fromhex(key), bytes.fromhex(signature), message):
        raise Rejected(
            f"the {what} of {name!r} are not signed with the identity key that it has here"
        )


async def _ring_if_last(ctx: Context, asked: Asked) -> None:
    """Wake the sweeper when nobody is left to wait for. Looked at after the commit, so that of two
    last answers at once the later one sees both.
    """
    about = {"run_id": asked.run.id, "number": asked.step.round_number, "step": asked.name}
    if not await ctx.database.glance(repository.STILL_ASKED, **about):
        async with ctx.database.write() as session:
            await ring(session, TOPIC_SWEEP)
