"""Masked vectors as they arrive: all that can be checked of one, before it counts."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from api.clients import repository as clients
from api.secure_sums import known
from core.errors import UpdateUnattested, UpdateWrongShape
from core.secagg.collector import parted
from core.secagg.identity import is_signed


@dataclass(frozen=True)
class MaskedTarget:
    """``size``: bytes of what is sent (0: nobody can send a vector yet). ``attested``: what the
    client signs of its masks, with the identity key ``key``; empty where it has no order.
    """

    size: int
    attested: bytes = b""
    key: str | None = None

    def check(self, body: bytes) -> str:
        """The attestation in hexadecimal. Raises ``UpdateRejected``.

        Of the vector nothing can be checked but its length; the sum is, once it is opened. A wrong
        signature would make every other client refuse, and nobody could say why.
        """
        if len(body) != self.size:
            raise UpdateWrongShape(
                f"a masked vector of this round has {self.size} bytes, this one {len(body)}"
            )
        signature, _ = parted(body)
        key = bytes.fromhex(self.key or "")
        if not is_signed(key, signature, self.attested):
            raise UpdateUnattested(
                "what the client says of its masks is not signed with the identity key that it has "
                "here, or it has masked by other lists than it was given",
                mend="Compare the versions of the site's software, and its identity key.",
            )
        return signature.hex()


async def target(
    session: AsyncSession, run_id: UUID, number: int, client_id: UUID, *, ordered: bool
) -> MaskedTarget:
    """``ordered``: the client has an order of this round, so that its lists are fixed."""
    asked = await known.session_of(session, run_id, number)
    if asked is None:
        return MaskedTarget(0)
    size = known.sent_size(asked)
    if not ordered:
        return MaskedTarget(size)
    fixed = await known.at(session, run_id, number, "order")
    client = await clients.one(session, client_id)
    return MaskedTarget(size, fixed.attested, None if client is None else client.identity_key)
