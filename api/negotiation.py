"""Content negotiation: the form of an answer by `Accept`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from api.problems import NotAcceptable

Kind = TypeVar("Kind", bound=str)


def preferred(accept: str | None, media: Mapping[Kind, str], default: Kind, what: str) -> Kind:
    """The kind that `Accept` likes best (RFC 9110, 12.5.1: the highest quality, then the more
    exact range, then the order of the header); ``default`` where it leaves that open. Raises
    ``NotAcceptable`` if it allows none of them; ``what`` is served, in the plural.
    """
    if not (accept or "").strip():
        return default
    plain = {kind: one.partition(";")[0] for kind, one in media.items()}
    best: tuple[float, int] = (0.0, 0)
    found: Kind | None = None
    for part in (accept or "").split(","):
        wanted, _, rest = part.partition(";")
        wanted = wanted.strip().lower()
        quality = _quality(rest)
        kind = _matching(wanted, plain, default)
        exact = 2 if "*" not in wanted else 1 if wanted != "*/*" else 0
        if kind is not None and quality > 0 and (quality, exact) > best:
            best, found = (quality, exact), kind
    if found is None:
        raise NotAcceptable(f"{what} are served as {', '.join(plain.values())}", field="Accept")
    return found


def _matching(wanted: str, media: Mapping[Kind, str], default: Kind) -> Kind | None:
    if wanted in ("*/*", media[default].partition("/")[0] + "/*"):
        return default
    return next((kind for kind, one in media.items() if one == wanted), None)


def _quality(parameters: str) -> float:
    for parameter in parameters.split(";"):
        name, _, value = parameter.strip().partition("=")
        if name.lower() == "q":
            try:
                return max(0.0, min(1.0, float(value)))
            except ValueError:
                return 0.0
    return 1.0
