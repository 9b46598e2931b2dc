"""Published models, ready to sample."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from api.auth import Principal
from api.context import Context
from api.db.run_models import Run
from api.problems import NotFound, NotPrivate
from api.receipts.service import facts_of
from api.rounds import service as rounds
from api.rounds.service import ModelView
from api.runs import repository as runs
from api.runs.specs import spec_of
from core.federation.plan import RunSpec
from core.receipts.opening import ModelFacts, caveat_of
from core.synthesis.sampler import Generator

_KEPT_GENERATORS = 8


@dataclass(frozen=True)
class Published:
    """A published round, and what receipts say of it."""

    run: Run
    model: ModelView
    spec: RunSpec
    facts: ModelFacts


class Generators:
    """Loaded models by their digests; the least recently used one goes."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str, str], Generator] = OrderedDict()

    async def get(self, ctx: Context, published: Published) -> Generator:
        """Raises ``NotPrivate`` for a model without a guarantee, unless the operator allows it."""
        model = published.model
        key = (model.frame.digest, model.weights.digest, model.spec_digest)
        found = self._kept.get(key)
        if found is None:
            found = await asyncio.to_thread(_load, ctx, published)
            self._kept[key] = found
        self._kept.move_to_end(key)
        while len(self._kept) > _KEPT_GENERATORS:
            self._kept.popitem(last=False)
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


async def published(
    session: AsyncSession, who: Principal, id_or_name: str, number: int | None
) -> Published:
    """The model of a round (None: the newest). Raises ``NotFound``."""
    run = await _run(session, id_or_name)
    model = await rounds.model(session, who, run, number)
    return Published(run, model, spec_of(run), facts_of(run.name, model))


async def _run(session: AsyncSession, id_or_name: str) -> Run:
    try:
        found = await runs.one(session, UUID(id_or_name))
    except ValueError:
        found = None
    found = found or await runs.by_name(session, id_or_name)
    if found is None:
        raise NotFound(f"there is no run {id_or_name!r}", field="run")
    return found
