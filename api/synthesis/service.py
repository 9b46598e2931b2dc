"""Synthetic rows from a published model, each answer with its receipt.

Sampling is post-processing of released values and costs no privacy; the receipt says what the
model itself has cost whom.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from api import audit
from api.auth import Principal
from api.context import Context
from api.db.run_models import Run
from api.problems import NotFound
from api.rounds import service as rounds
from api.rounds.service import ModelView
from api.runs import repository as runs
from api.runs.specs import spec_of
from core.errors import InvalidSynthesisRequest
from core.federation.plan import RunSpec
from core.synthesis.formats import FORMATS, Document
from core.synthesis.request import SynthesisRequest
from core.synthesis.sampler import Generator

_KEPT_GENERATORS = 8
# JSON spells every number: about 12 characters each. More than this belongs into other formats.
MAX_JSON_NUMBERS = 8_000_000


@dataclass(frozen=True)
class Synthesised:
    document: Document
    seed: int
    model: ModelView


class Generators:
    """Loaded models by their digests; the least recently used one goes."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str, str], Generator] = OrderedDict()

    async def get(self, ctx: Context, model: ModelView, spec: RunSpec) -> Generator:
        key = (model.frame.digest, model.weights.digest, model.spec_digest)
        found = self._kept.get(key)
        if found is None:
            found = await asyncio.to_thread(_load, ctx, model, spec)
            self._kept[key] = found
        self._kept.move_to_end(key)
        while len(self._kept) > _KEPT_GENERATORS:
            self._kept.popitem(last=False)
        return found


def _load(ctx: Context, model: ModelView, spec: RunSpec) -> Generator:
    frame, weights = ctx.store.get(model.frame.digest), ctx.store.get(model.weights.digest)
    return Generator.load(frame, weights, spec)


async def _run(session: AsyncSession, id_or_name: str) -> Run:
    try:
        found = await runs.one(session, UUID(id_or_name))
    except ValueError:
        found = None
    found = found or await runs.by_name(session, id_or_name)
    if found is None:
        raise NotFound(f"there is no run {id_or_name!r}", field="run")
    return found


def _receipt(
    run: Run, model: ModelView, generator: Generator, request: SynthesisRequest, seed: int
) -> dict[str, Any]:
    return {
        "run_id": str(run.id),
        "run": run.name,
        "round": model.round,
        "spec_digest": model.spec_digest,
        "frame_digest": model.frame.digest,
        "weights_digest": model.weights.digest,
        "n": request.size,
        "mixture": request.mixture,
        "mode": request.mode,
        "codes": [
            {"domain": code.domain, "share": code.share, "code_id": code.id}
            for code in generator.codes(request)
        ],
        "temperature": request.temperature,
        "seed": seed,
        "labels": "trained classifier" if generator.guides(request) else "generator",
        "per_client": [spent.model_dump(mode="json") for spent in model.per_client],
        "relation": model.relation,
        "noise_mode": model.noise_mode,
        "not_private": False,
    }


async def synthesise(
    ctx: Context, who: Principal, generators: Generators, request: SynthesisRequest, kind: str
) -> Synthesised:
    """Rows that are made when they are read, and their receipt. Without a seed in the request one
    is drawn, and told.
    """
    async with ctx.database.read() as session:
        run = await _run(session, request.run)
        number = None if request.round == "latest" else request.round
        model = await rounds.model(session, who, run, number)
    spec = spec_of(run)
    if kind == "json" and request.size * spec.space.dim > MAX_JSON_NUMBERS:
        raise InvalidSynthesisRequest(
            f"{request.size} rows of {spec.space.dim} numbers are too many for JSON",
            field="n" if request.n else "class_counts",
            mend="Ask for format 'parquet', 'arrow' or 'npz'.",
        )
    seed = secrets.randbelow(2**63) if request.seed is None else request.seed
    async with ctx.heavy:
        generator = await generators.get(ctx, model, spec)
        receipt = _receipt(run, model, generator, request, seed)
        document = await asyncio.to_thread(generator.document, request, seed, receipt)
    async with ctx.database.write() as session:
        await audit.record(
            session,
            "synthesis-served",
            who,
            run_id=run.id,
            round_number=model.round,
            n=request.size,
            weights=model.weights.digest,
        )
    return Synthesised(document, seed, model)


async def written(ctx: Context, document: Document, kind: str) -> AsyncIterator[bytes]:
    """The bytes, a block of rows at a time; between blocks others have their turn."""
    pieces = FORMATS[kind].pieces(document)
    while True:
        async with ctx.heavy:
            piece = await asyncio.to_thread(next, pieces, None)
        if piece is None:
            return
        if piece:
            yield piece
