"""What was released, as data: the events that the ledger stores and the accountant composes.

Formal guarantee of one event, for neighbouring data sets that differ by adding or removing ONE
privacy unit (all records of one ``unit``):

* ``gaussian``: ``f(D) + N(0, (noise_multiplier * sensitivity)^2 I)``, L2 sensitivity as released.
* ``poisson-subsampled-gaussian``: the same over a batch that holds each unit independently with
  probability ``sample_rate``; ``steps`` such releases compose adaptively.

Events are persisted instead of epsilon, so that epsilon can always be recomputed.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Relation = Literal["add-remove-one-unit"]


class PrivacyEvent(BaseModel):
    """One release (or ``steps`` identical adaptive ones) on one site's records.

    ``noise_multiplier`` is the noise's standard deviation over the L2 sensitivity (no unit).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mechanism: Literal["gaussian", "poisson-subsampled-gaussian"]
    noise_multiplier: float = Field(gt=0, allow_inf_nan=False)
    sample_rate: float = Field(gt=0, le=1, allow_inf_nan=False)
    steps: int = Field(ge=1)
    relation: Relation = "add-remove-one-unit"
    unit: str = Field(min_length=1, max_length=64)

    @model_validator(mode="after")
    def _full_batch_is_gaussian(self) -> PrivacyEvent:
        if self.mechanism == "gaussian" and self.sample_rate != 1.0:
            raise ValueError("a 'gaussian' event has sample_rate 1; use the subsampled mechanism")
        return self


def release(
    *, noise_multiplier: float, sample_rate: float, unit: str, steps: int = 1
) -> PrivacyEvent:
    """The event of one release, or of ``steps`` that each draw a batch and noise of their own.

    Full batches are booked as plain Gaussian (the exact curve).
    """
    return PrivacyEvent(
        mechanism="gaussian" if sample_rate == 1.0 else "poisson-subsampled-gaussian",
        noise_multiplier=noise_multiplier,
        sample_rate=sample_rate,
        steps=steps,
        unit=unit,
    )
