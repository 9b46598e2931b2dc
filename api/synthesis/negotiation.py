"""Which format an answer has: what the request names, else what `Accept` likes best."""

from __future__ import annotations

from api.negotiation import preferred
from core.synthesis.formats import FORMATS

DEFAULT = "json"


def chosen(named: str | None, accept: str | None) -> str:
    """A key of ``FORMATS``. Raises ``NotAcceptable`` if `Accept` allows none of them."""
    if named is not None:
        return named
    return preferred(accept, {kind: each.media for kind, each in FORMATS.items()}, DEFAULT, "rows")
