"""Values that several parts of a report are made of."""

from __future__ import annotations

from pydantic import Field

from core.federation.values import Frozen


class Estimate(Frozen):
    """``value``, and the standard error that its noise (and its sampling) gives it."""

    value: float
    se: float = Field(ge=0)
