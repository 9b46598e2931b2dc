"""Forecasts of budgets: a plan, its participants, and how far their accounts would carry it.

Reads only. Numbers of several clients' ledgers are for those who oversee them; a client may ask
about itself, and a scientist about the plan's price, which is in no ledger.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.ext.asyncio import AsyncSession

from api import spaces
from api.auth import Principal
from api.clients import repository as clients
from api.clients.service import Budget
from api.context import Context
from api.db.models import Client
from api.ledger import service as ledger
from api.problems import Forbidden, InvalidRequest
from api.runs import admission as runs
from api.runs.specs import views_of
from core.federation.plan import EmbeddingSpace, Name, Noise, Plan, RoundKind, RunSpec
from core.federation.planner import MOST_ROUNDS, Forecast, Needed, Purse, forecast
from core.federation.privacy_plan import MAX_STEPS
from core.privacy.events import PrivacyEvent
from core.privacy.premise import View, premise

# Each account is some seconds of work; more of them is more requests.
_MOST_CLIENTS = 16
_MOST_QUESTIONS = 4
Rounds = Annotated[int, Field(ge=0, le=MOST_ROUNDS)]


class PlannerRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    plan: Plan
    clients: list[Name] = Field(
        default=[], max_length=_MOST_CLIENTS, description="Whose accounts are asked about."
    )
    participants: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="How many clients the run would have. Unset: those named, at least the quorum.",
    )
    rounds: list[Rounds] | None = Field(
        default=None,
        min_length=1,
        max_length=_MOST_QUESTIONS,
        description="Numbers T of training rounds for which noise is wanted. Unset: the plan's.",
    )


class PriceView(BaseModel):
    """The plan by itself: what it costs a client that loses no attempt."""

    epsilon: float
    delta: float
    rounds: int
    participations: int = Field(description="Training rounds of one client at most.")
    participants: int
    noise: Noise
    views: list[View] = Field(
        default_factory=list,
        description="Of a plan with secure sums: what it costs one client, against whom, and on "
        "which premise. The booked view is epsilon.",
    )


class NoiseView(BaseModel):
    """``train_multiplier``: the smallest that fits; null if T is 0 or nothing helps (``why``)."""

    rounds: int
    participations: int
    possible: bool = Field(description="Whether T rounds fit with any noise at all.")
    train_multiplier: float | None
    why: str


class OverallNoise(NoiseView):
    """The largest of all clients': with it, T rounds fit everybody. ``limited_by``: whose it is."""

    limited_by: str | None


class ClientForecast(BaseModel):
    client: str
    budget: Budget
    epsilon_spent: float = Field(description="Worst case so far, at the client's delta.")
    epsilon_after: float = Field(description="With the whole plan, if no attempt is lost.")
    fits: bool
    rounds_left: int | None = Field(
        description="Training rounds with the plan's noise beside its other rounds, up to 10,000. "
        "Null: not even the others fit, or the plan does not train."
    )
    lost_attempts: dict[RoundKind, int] = Field(
        description="Per kind of round, how many lost attempts of that kind alone still fit, up to "
        "100."
    )
    noise: list[NoiseView]
    premise: str = Field(
        description="Who must keep to the protocol for epsilon_spent and epsilon_after to hold, "
        "where secure sums are among them; else 'none'."
    )


class PlannerView(BaseModel):
    plan: PriceView
    fits: bool | None = Field(description="Whether the plan fits everybody; null without clients.")
    clients: list[ClientForecast]
    noise: list[OverallNoise]


@dataclass(frozen=True)
class _Asked:
    """What is read of the database, before the work begins."""

    space: EmbeddingSpace
    members: list[tuple[str, Purse]]


async def plan(ctx: Context, who: Principal, body: PlannerRequest) -> PlannerView:
    """The forecast. Creates and reserves nothing."""
    participants = body.participants or max(len(body.clients), body.plan.round.quorum)
    _check(body, participants)
    async with ctx.database.read() as session:
        await _may(session, who, body)
        asked = await _read(session, body)
    spec, price = await runs.specify(ctx, body.plan, asked.space, participants)
    async with ctx.heavy:
        views = await views_of(spec, participants)
    rounds = list(dict.fromkeys(body.rounds or [body.plan.privacy.rounds]))
    made: dict[Purse, Forecast] = {}
    for _, purse in asked.members:  # clients that have spent alike are worked out once
        if purse not in made:
            async with ctx.heavy:
                made[purse] = await asyncio.to_thread(forecast, spec, purse, rounds, participants)
    shown = [_client(name, purse, made[purse], spec) for name, purse in asked.members]
    return PlannerView(
        plan=_price(spec, price, participants, views),
        fits=all(client.fits for client in shown) if shown else None,
        clients=shown,
        noise=_overall(shown, rounds),
    )


def _check(body: PlannerRequest, participants: int) -> None:
    """What can be refused before anything is read."""
    runs.check_plan(body.plan, body.clients, participants)
    if len(body.clients) > participants:
        raise InvalidRequest(
            f"{len(body.clients)} clients are named, more than the run would have",
            field="participants",
            mend="Leave it out, or count all clients of the run.",
        )
    steps = body.plan.privacy.local_steps
    for position, number in enumerate(body.rounds or []):
        if number * steps > MAX_STEPS:
            raise InvalidRequest(
                f"{number} rounds of {steps} local steps are more than {MAX_STEPS:,} releases",
                field=f"rounds.{position}",
                mend="Ask for fewer rounds, or lower plan.privacy.local_steps.",
            )


async def _may(session: AsyncSession, who: Principal, body: PlannerRequest) -> None:
    if who.scope in ("admin", "auditor") or not body.clients:
        return
    own = await clients.one(session, who.client_id) if who.client_id is not None else None
    if own is None or body.clients != [own.name]:
        mend = "Leave clients out: the plan's price is in no ledger."
        if own is not None:
            mend = f"Ask for [{own.name!r}] alone, and say in participants how many there would be."
        raise Forbidden(
            f"a token of scope {who.scope!r} may not see these clients' ledgers",
            field="clients",
            mend=mend,
        )


async def _read(session: AsyncSession, body: PlannerRequest) -> _Asked:
    if not body.clients:
        space = await spaces.by_name(session, body.plan.space)
        if space is None:
            raise InvalidRequest(
                f"there is no embedding space {body.plan.space!r}", field="plan.space"
            )
        return _Asked(EmbeddingSpace.model_validate(space.body), [])
    space, members = await runs.participants(session, body.plan, body.clients)
    sharing = Counter(client.account_id for client in members)
    purses = [
        (client.name, await _purse(session, client, sharing[client.account_id]))
        for client in members
    ]
    return _Asked(EmbeddingSpace.model_validate(space.body), purses)


async def _purse(session: AsyncSession, client: Client, sharing: int) -> Purse:
    spent = await ledger.worst_case(session, client)
    return Purse(
        spent=tuple(sorted(spent, key=PrivacyEvent.model_dump_json)),  # equal for equal accounts
        epsilon=client.budget_epsilon,
        delta=client.budget_delta,
        sharing=sharing,
    )


def _price(spec: RunSpec, epsilon: float, participants: int, views: Sequence[View]) -> PriceView:
    return PriceView(
        epsilon=epsilon,
        delta=spec.plan.privacy.delta,
        rounds=spec.plan.privacy.rounds,
        participations=spec.participations,
        participants=participants,
        noise=spec.noise,
        views=list(views),
    )


def _client(name: str, purse: Purse, found: Forecast, spec: RunSpec) -> ClientForecast:
    return ClientForecast(
        client=name,
        budget=Budget(epsilon=purse.epsilon, delta=purse.delta),
        epsilon_spent=found.epsilon_spent,
        epsilon_after=found.epsilon_after,
        fits=found.fits,
        rounds_left=found.rounds_left,
        lost_attempts=found.lost_attempts,
        noise=[_noise(needed) for needed in found.noise],
        premise=premise(event.collude for event in (*purse.spent, *spec.events())),
    )


def _noise(needed: Needed) -> NoiseView:
    return NoiseView(
        rounds=needed.rounds,
        participations=needed.participations,
        possible=needed.possible,
        train_multiplier=needed.train_multiplier,
        why=needed.why,
    )


def _overall(shown: Sequence[ClientForecast], rounds: Sequence[int]) -> list[OverallNoise]:
    """Per T: the client that needs most; one that no noise helps decides for all."""
    found = []
    for place, number in enumerate(rounds if shown else ()):
        needs = [(client.noise[place], client.client) for client in shown]
        stuck = [pair for pair in needs if pair[0].train_multiplier is None]
        worst, name = stuck[0] if stuck else max(needs, key=_multiplier)
        helpless = [pair for pair in stuck if not pair[0].possible]
        if helpless:
            worst, name = helpless[0]
        limited_by = name if number > 0 or helpless else None
        found.append(OverallNoise(**worst.model_dump(), limited_by=limited_by))
    return found


def _multiplier(pair: tuple[NoiseView, str]) -> float:
    return pair[0].train_multiplier or 0.0
