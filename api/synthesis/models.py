"""Published models, ready to sample."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, replace
from uuid import UUID

from api.auth import Principal
from api.context import Context
from api.db.run_models import Run
from api.problems import NotFound, NotPrivate
from api.receipts.service import facts_of
from api.rounds import service as rounds
from api.rounds.service import ModelView
from api.runs import repository as runs
from api.runs.specs import spec_of
from api.synthesis import repository
from core.errors import UnknownMixtureClient
from core.federation.plan import RunSpec
from core.privacy.views import views_of_secure
from core.receipts.opening import ModelFacts, caveat_of
from core.recent import Recent
from core.synthesis.domains import must_allow, resolved
from core.synthesis.request import Mixture, SynthesisRequest
from core.synthesis.sampler import Generator

_KEPT_GENERATORS = 8
_KEPT_MODELS = 256


@dataclass(frozen=True)
class Published:
    """A published round, and what receipts say of it."""

    run: Run
    model: ModelView
    spec: RunSpec
    facts: ModelFacts

    def resolved(self, request: SynthesisRequest) -> SynthesisRequest:
        """With clients in place of domains. Raises ``ClientWithdrawn``,
        ``UnknownMixtureClient``.
        """
        if self.spec.plan.aggregation == "secure" and not isinstance(request.mixture, str):
            self._must_have_joined(request.mixture)
        return resolved(request, self.model.domains, self.facts.withdrawn)

    def _must_have_joined(self, names: Iterable[str]) -> None:
        """In secure sums there is nobody's own sketch: who has a code came by a join."""
        for name in names:
            if name not in self.model.clients and name not in self.model.domains:
                raise UnknownMixtureClient(
                    f"there is no code of {name!r}: the run's sums are secure, so nobody knows "
                    "what a single one of its clients has sent",
                    field=f"mixture.{name}",
                    mend="Ask for 'neutral', or name clients that have joined afterwards: "
                    f"{', '.join(self.model.clients) or 'nobody has, yet'}.",
                )

    def must_allow(self, mixture: Mixture) -> None:
        """Raises ``ClientWithdrawn`` for a mixture that names a revoked client, even with 0."""
        must_allow(mixture, self.facts.withdrawn)


class Generators:
    """Loaded models by their digests; the least recently used one goes."""

    def __init__(self) -> None:
        self._kept = Recent[tuple[str, str, str], Generator](_KEPT_GENERATORS)

    async def get(self, ctx: Context, published: Published) -> Generator:
        """Raises ``NotPrivate`` for a model without a guarantee, unless the operator allows it."""
        model = published.model
        key = (model.frame.digest, model.weights.digest, model.spec_digest)
        found = self._kept.get(key)
        if found is None:
            found = self._kept.keep(key, await asyncio.to_thread(_load, ctx, published))
        _may_be_served(ctx, published, found)
        return found


def _load(ctx: Context, published: Published) -> Generator:
    model = published.model
    frame, weights = ctx.store.get(model.frame.digest), ctx.store.get(model.weights.digest)
    return Generator.load(frame, weights, published.spec)


def _may_be_served(ctx: Context, published: Published, generator: Generator) -> None:
    caveat = caveat_of(published.spec, published.model.noise_mode, generator.caveat)
    if caveat and not ctx.settings.serve_not_private:
        raise NotPrivate(
            f"the model of run {published.run.name!r} is NOT PRIVATE: {caveat}",
            field="run",
            mend="Take another run. An operator may allow such models with "
            "FHV_SERVE_NOT_PRIVATE=true; their rows are then stamped.",
        )


class Models:
    """Published rounds, looked up once: they never change. Who has withdrawn since is asked each
    time, in the one statement that finds the round.
    """

    def __init__(self) -> None:
        self._kept = Recent[tuple[UUID, int], Published](_KEPT_MODELS)

    async def published(
        self, ctx: Context, who: Principal, id_or_name: str, number: int | None
    ) -> Published:
        """The model of a round (None: the newest). Raises ``NotFound``."""
        found = await repository.find(ctx.database, id_or_name, number)
        if found is None:
            raise NotFound(f"there is no run {id_or_name!r}", field="run")
        if found.round is None:
            which = "no round is" if number is None else f"round {number} is not"
            raise NotFound(f"{which} published yet", field="round")
        key = (found.run_id, found.round)
        kept = self._kept.get(key)
        if kept is None:
            kept = self._kept.keep(key, await _read(ctx, who, found.run_id, found.round))
        return replace(kept, facts=replace(kept.facts, withdrawn=found.withdrawn))


async def _read(ctx: Context, who: Principal, run_id: UUID, number: int) -> Published:
    async with ctx.database.read() as session:
        run = await runs.one(session, run_id)
        if run is None:
            raise NotFound(f"there is no run {run_id}", field="run")
        model = await rounds.model(session, who, run, number)
        founding = sum(seat.place.founding for seat in await runs.seats(session, run.id))
    spec = spec_of(run)
    views = await asyncio.to_thread(views_of_secure, spec, founding, model.round)
    return Published(run, model, spec, facts_of(run.name, model, views))
