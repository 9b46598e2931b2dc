"""Which format an answer has: what the request names, else what `Accept` likes best."""

from __future__ import annotations

from api.problems import NotAcceptable
from core.synthesis.formats import FORMATS

DEFAULT = "json"


def chosen(named: str | None, accept: str | None) -> str:
    """A key of ``FORMATS``. Raises ``NotAcceptable`` if `Accept` allows none of them (RFC 9110,
    12.5.1: the highest quality, then the more exact range, then the order of the header).
    """
    if named is not None:
        return named
    if not (accept or "").strip():
        return DEFAULT
    best: tuple[float, int] = (0.0, 0)
    kind = None
    for part in (accept or "").split(","):
        media, _, rest = part.partition(";")
        quality = _quality(rest)
        found = _matching(media.strip().lower())
        exact = 2 if "*" not in media else 1 if media.strip() != "*/*" else 0
        if found is not None and quality > 0 and (quality, exact) > best:
            best, kind = (quality, exact), found
    if kind is None:
        served = ", ".join(each.media for each in FORMATS.values())
        raise NotAcceptable(f"rows are served as {served}", field="Accept")
    return kind


def _matching(media: str) -> str | None:
    if media in ("*/*", "application/*"):
        return DEFAULT
    return next((kind for kind, each in FORMATS.items() if each.media == media), None)


def _quality(parameters: str) -> float:
    for parameter in parameters.split(";"):
        name, _, value = parameter.strip().partition("=")
        if name.lower() == "q":
            try:
                return max(0.0, min(1.0, float(value)))
            except ValueError:
                return 0.0
    return 1.0
