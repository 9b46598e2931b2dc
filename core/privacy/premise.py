"""On whom epsilon rests: a number of secure sums is true under a premise, and is never said alone.

The numbers are made in ``core.privacy.views``; nothing is computed here, so programs that only
print numbers can import this quickly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import Field

from core.federation.values import Frozen

Who = Literal["booked", "coordinator", "client", "everybody"]
NONE = "none"
ONLOOKERS: Mapping[Who, str] = {
    "booked": "the coordinator and the clients that the plan allows for, together: this is what "
    "is booked",
    "coordinator": "the coordinator alone",
    "client": "one other client, which knows its own noise",
    "everybody": "everybody else together",
}


class View(Frozen):
    """Epsilon for one reader, for adding or removing one unit, at the delta that was asked for.

    ``booked``: the coordinator and ``secure.collude`` clients together, which the ledger charges.
    ``coordinator``: it alone. ``client``: one other client, which knows its own noise.
    ``everybody``: all others together. Of runs without secure sums all are the same number.
    """

    who: Who
    epsilon: float
    premise: str = Field(description="Who must keep to the protocol for this number to hold.")


def premise(collude: Iterable[int | None]) -> str:
    """Of the booked epsilon of releases with these ``collude``: who must keep to the protocol.
    ``NONE`` where all are None: each of these is private by itself.
    """
    allowed = sorted({each for each in collude if each is not None})
    if not allowed:
        return NONE
    few = " or ".join(f"{each}" for each in allowed)
    return f"no more than {few} of a round's other clients work with the coordinator"


def resting(collude: Iterable[int | None]) -> str:
    """The same for the end of a sentence about an account; empty where it rests on nobody."""
    found = premise(collude)
    return "" if found == NONE else f"; secure sums among it: epsilon holds while {found}"


def in_words(views: Iterable[Mapping[str, Any]]) -> str:
    """Of views as JSON has them: the premise of a founding client's booked number, and what the
    plan's is without it. Empty where there is no premise. They may be anybody's, so what is missing
    or unknown is passed over.
    """
    seen = {str(view.get("who")): view for view in views}
    holds = str(seen.get("booked", {}).get("premise", NONE))
    if holds == NONE:
        return ""
    worst = seen.get("everybody", {}).get("epsilon")
    if not isinstance(worst, int | float):
        return f"epsilon of founding clients holds while {holds}"
    return (
        f"epsilon of founding clients holds while {holds}; against everybody else together the "
        f"plan's is {worst:.4g} if nothing is lost"
    )
