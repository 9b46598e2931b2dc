"""Which version of the wire a request speaks; see ``core.wire.protocol``."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from starlette.datastructures import Headers

from api.problems import UnsupportedProtocol
from core.wire.protocol import PROTOCOL_HEADER, RANGE_HEADER, SPOKEN, read

SCOPE_KEY = "fhv.protocol"


def negotiated(headers: Headers) -> int:
    """The newest version that both sides speak. Raises ``UnsupportedProtocol``.

    A caller without the headers (a browser, curl) knows nothing of versions: it is answered as the
    oldest one that is spoken here, which expects the least.
    """
    span = str(SPOKEN)
    facts = {"protocol_oldest": SPOKEN.oldest, "protocol_newest": SPOKEN.newest}
    try:
        theirs = read(headers.get(PROTOCOL_HEADER), headers.get(RANGE_HEADER))
    except ValueError as error:
        raise UnsupportedProtocol(
            str(error),
            field=RANGE_HEADER if RANGE_HEADER in headers else PROTOCOL_HEADER,
            mend=f"Send a version that is spoken here ({span}), or leave the header out.",
            **facts,
        ) from None
    if theirs is None:
        return SPOKEN.oldest
    used = SPOKEN.common(theirs)
    if used is not None:
        return used
    too_old = theirs.newest < SPOKEN.oldest
    said = str(theirs) if theirs.oldest < theirs.newest else str(theirs.newest)
    raise UnsupportedProtocol(
        f"protocol {said} is not spoken here, only {span}",
        field=PROTOCOL_HEADER,
        mend="Upgrade this worker or agent to the coordinator's version."
        if too_old
        else "Upgrade the coordinator, or use a worker or agent of its version.",
        **facts,
    )


async def _used(request: Request) -> int:
    return int(request.scope[SCOPE_KEY])


ProtocolUsed = Annotated[int, Depends(_used)]
