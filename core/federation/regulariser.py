"""A plan's free terms: what the server adds to the gradient of a training round by itself.

They read released values only (``core.training.free_terms``), so no value here changes what a run
costs in privacy.
"""

from __future__ import annotations

from pydantic import Field

from core.federation.values import Frozen


class RegulariserPlan(Frozen):
    """Weights of the free terms; 0 leaves a term out."""

    mmd_weight: float = Field(
        default=0.0,
        ge=0,
        le=1e6,
        description="Of the squared MMD between what the generator makes and the released class "
        "means of random features; needs sketch.feature_weight > 0.",
    )
    mmd_rows: int = Field(
        default=64,
        ge=2,
        le=1_024,
        description="Synthetic rows a class and round under the neutral code, and as many under "
        "the released codes.",
    )
    lipschitz_weight: float = Field(
        default=0.0,
        ge=0,
        le=1e6,
        description="Of the squared excess of |h(v) - h(v')| / |v - v'| over lipschitz_limit, at "
        "released codes, the neutral one and points between them.",
    )
    lipschitz_limit: float = Field(
        default=1.0, gt=0, le=1e6, description="That ratio is free of penalty up to here."
    )

    @property
    def active(self) -> bool:
        """Whether any term has weight."""
        return self.mmd_weight > 0.0 or self.lipschitz_weight > 0.0

    def require(self, *, feature_weight: float, rounds: int) -> None:
        """Raise ``ValueError``, with field and mend, for a term that the run could not apply."""
        if rounds == 0:
            for name in ("mmd_weight", "lipschitz_weight"):
                if getattr(self, name) > 0.0:
                    raise ValueError(
                        f"regulariser.{name}: acts in training rounds only; set privacy.rounds "
                        "above 0 or leave it out"
                    )
        if self.mmd_weight > 0.0 and feature_weight == 0.0:
            raise ValueError(
                "regulariser.mmd_weight: needs released targets; set sketch.feature_weight above "
                "0 or leave it out"
            )
