"""Terms of a plan's secure sums (``aggregation: secure``)."""

from __future__ import annotations

from pydantic import Field

from core.federation.values import Frozen


class SecurePlan(Frozen):
    """Against whom, and in spite of whom, a sum keeps its promise.

    Each of the M clients of a round adds the noise of 1 / (M - drop - collude) of the variance that
    the plan's multiplier asks for, so that the sum carries all of it for whoever knows the noise of
    ``collude`` clients, also when ``drop`` clients are missing from the sum.
    """

    drop: int = Field(
        default=0,
        ge=0,
        le=100_000,
        description="Clients of a round that may be missing from its sum. With more the round "
        "fails, and nothing of it can be opened.",
    )
    collude: int = Field(
        default=1,
        ge=0,
        le=100_000,
        description="Clients that may work with the coordinator, or with one another. Whoever "
        "looks at the sum and knows its own noise is one of them, so a production plan has one at "
        "least.",
    )
    step_s: float = Field(
        default=300.0,
        gt=0,
        le=86_400,
        description="Seconds that clients have for each step of the protocol that touches no "
        "records: keys, shares, confirming and opening.",
    )
