"""Synthetic rows from a published model, each answer with its receipt.

Sampling is post-processing of released values and costs no privacy; the receipt says what the
model itself has cost whom.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from api import audit
from api.auth import Principal
from api.context import Context
from api.receipts import service as receipts
from api.receipts.keys import Keyring
from api.synthesis import repository
from api.synthesis.models import Generators, Models, Published
from core.errors import InvalidSynthesisRequest
from core.receipts.content import Content
from core.receipts.opening import opening
from core.receipts.receipt import Receipt
from core.receipts.signing import SigningKey
from core.synthesis.codes import Code
from core.synthesis.formats import FORMATS, Document, whole
from core.synthesis.formats.document import Receipt as Written
from core.synthesis.request import SynthesisRequest
from core.synthesis.sampler import Generator

# JSON spells every number: about 12 characters each. More than this belongs into other formats.
MAX_JSON_NUMBERS = 8_000_000


class Receipting:
    """Opens the receipt of a request when its codes are known, and closes it when its rows are."""

    def __init__(
        self,
        found: Published,
        generator: Generator,
        request: SynthesisRequest,
        seed: int,
        key: SigningKey,
    ) -> None:
        self._found, self._generator, self._request = found, generator, request
        self._seed, self._key = seed, key
        self._now: Receipt | None = None

    def open(self, codes: tuple[Code, ...]) -> Written:
        self._now = opening(self._found.facts, self._generator, self._request, self._seed, codes)
        return self._signed(self._now)

    def close(self, content: Content) -> Written:
        self._now = self.receipt.model_copy(update={"content": content})
        return self._signed(self._now)

    def _signed(self, receipt: Receipt) -> Written:
        return self._key.sign(receipt).model_dump(mode="json")

    @property
    def receipt(self) -> Receipt:
        """As it is now."""
        if self._now is None:
            raise RuntimeError("the receipt is opened with the codes of the request")
        return self._now


@dataclass(frozen=True)
class Draft:
    """An answer whose rows are made when they are read."""

    of: Published
    document: Document
    kind: str
    seed: int
    receipting: Receipting

    @property
    def receipt(self) -> Receipt:
        return self.receipting.receipt

    @property
    def etag(self) -> str:
        """Equal for equal bytes: of the same rows, in the same form."""
        columns = "+".join(self.document.columns)
        return f'"{self.receipt.id}.{self.kind}.{self.document.dtype}.{columns}"'


def _must_fit(request: SynthesisRequest, dim: int, kind: str) -> None:
    if kind == "json" and request.size * dim > MAX_JSON_NUMBERS:
        raise InvalidSynthesisRequest(
            f"{request.size} rows of {dim} numbers are too many for one JSON document",
            field="n" if request.n else "class_counts",
            mend="Ask for format 'parquet', 'arrow', 'npz' or 'ndjson'.",
        )


async def drafted(
    ctx: Context,
    who: Principal,
    models: Models,
    generators: Generators,
    keyring: Keyring,
    request: SynthesisRequest,
    kind: str,
) -> Draft:
    """What will be answered. Without a seed in the request one is drawn, and told."""
    number = None if request.round == "latest" else request.round
    found = await models.published(ctx, who, request.run, number)
    request = found.resolved(request)
    _must_fit(request, found.spec.space.dim, kind)
    seed = secrets.randbelow(2**63) if request.seed is None else request.seed
    key = await keyring.active()
    async with ctx.heavy:
        generator = await generators.get(ctx, found)
        return await asyncio.to_thread(_draft, found, generator, request, seed, kind, key)


def _draft(
    found: Published,
    generator: Generator,
    request: SynthesisRequest,
    seed: int,
    kind: str,
    key: SigningKey,
) -> Draft:
    receipting = Receipting(found, generator, request, seed, key)
    document = generator.document(request, seed, receipting.open, receipting.close)
    return Draft(found, document, kind, seed, receipting)


async def _recorded(ctx: Context, who: Principal, draft: Draft) -> None:
    event = audit.row(
        "synthesis-served",
        who,
        run_id=draft.of.run.id,
        round_number=draft.of.model.round,
        n=draft.document.n,
        weights=draft.of.model.weights.digest,
        receipt=draft.receipt.id,
    )
    await repository.record(ctx.database, draft.receipt, event)
    ctx.meters.rows.labels(draft.kind, "answer").inc(draft.document.n)


async def at_once(ctx: Context, who: Principal, draft: Draft) -> bytes:
    """All bytes of a short answer; recorded before they are sent."""
    async with ctx.heavy:
        body = await asyncio.to_thread(whole, draft.kind, draft.document)
    await _recorded(ctx, who, draft)
    return body


async def streamed(ctx: Context, who: Principal, draft: Draft) -> AsyncIterator[bytes]:
    """The bytes of a long answer, a block of rows at a time; between blocks others have their
    turn. The receipt is recorded before the first one, its content before the last.
    """
    await _recorded(ctx, who, draft)
    return _pieces(ctx, draft)


async def _pieces(ctx: Context, draft: Draft) -> AsyncIterator[bytes]:
    """One piece is made while the one before is sent."""
    pieces: Iterator[bytes] = FORMATS[draft.kind].pieces(draft.document)
    is_closed = False

    async def make() -> bytes | None:
        async with ctx.heavy:
            return await asyncio.to_thread(next, pieces, None)

    following = asyncio.create_task(make())
    try:
        # Shielded: if the caller goes meanwhile, the thread is still inside of the generator.
        while (piece := await asyncio.shield(following)) is not None:
            following = asyncio.create_task(make())
            content = draft.receipt.content
            if content is not None and not is_closed:
                await receipts.close(ctx, draft.receipt, content)
                is_closed = True
            if piece:
                yield piece
    finally:
        _drop(pieces, following)


_dropping: set[asyncio.Task[None]] = set()


def _drop(pieces: Iterator[bytes], last: asyncio.Task[bytes | None]) -> None:
    """A caller may have gone: what is in the making is made, then its thread ends."""

    async def drop() -> None:
        await asyncio.wait([last])
        await asyncio.to_thread(pieces.close)  # type: ignore[attr-defined]

    task = asyncio.create_task(drop())
    _dropping.add(task)
    task.add_done_callback(_dropping.discard)
