"""A published generator as one file, with its card and a signed receipt."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from api import audit
from api.auth import Principal
from api.context import Context
from api.receipts.keys import Keyring
from api.synthesis.models import Generators, Models, Published
from core.receipts.signing import SigningKey
from core.storage import sha256_of
from core.synthesis.export import pack
from core.synthesis.sampler import Generator


@dataclass(frozen=True)
class Exported:
    """The bytes, their digest, and of which round they are. The same model and signing key give
    the same bytes.
    """

    of: Published
    body: bytes
    digest: str

    @property
    def name(self) -> str:
        return f"{self.of.run.name}-round-{self.of.model.round}.safetensors"


async def export(
    ctx: Context,
    who: Principal,
    models: Models,
    generators: Generators,
    keyring: Keyring,
    run: str,
    number: int | None,
) -> Exported:
    """The model of a round (None: the newest), without what belongs to clients that have
    withdrawn. Raises ``NotFound``, ``NotPrivate``.
    """
    found = await models.published(ctx, who, run, number)
    key = await keyring.active()
    async with ctx.heavy:
        generator = await generators.get(ctx, found)
        return await asyncio.to_thread(_packed, found, generator, key, ctx.settings.model_licence)


def _packed(found: Published, generator: Generator, key: SigningKey, licence: str) -> Exported:
    body = pack(
        generator,
        found.facts,
        licence=licence,
        sign=key.sign,
        without=frozenset(found.facts.withdrawn),
        domains=found.model.domains,
    )
    return Exported(found, body, sha256_of(body))


async def recorded(ctx: Context, who: Principal, exported: Exported) -> None:
    """In the audit trail: who took which model away."""
    async with ctx.database.write() as session:
        await audit.record(
            session,
            "model-exported",
            who,
            run_id=exported.of.run.id,
            round_number=exported.of.model.round,
            weights=exported.of.model.weights.digest,
            file=exported.digest,
        )
