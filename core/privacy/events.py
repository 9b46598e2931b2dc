"""What was released, as data: the events that the ledger stores and the accountant composes.

Formal guarantee of one event, for neighbouring data sets that differ by adding or removing ONE
privacy unit (all records of one ``unit``):

* ``gaussian``: ``f(D) + N(0, (noise_multiplier * sensitivity)^2 I)``, L2 sensitivity as released.
* ``poisson-subsampled-gaussian``: the same over a batch that holds each unit independently with
  probability ``sample_rate``; ``steps`` such releases compose adaptively.
* ``discrete-gaussian`` and ``poisson-subsampled-discrete-gaussian``: exact noise on a public grid.
  Up to a factor within exp(+-1e-118) such a release is post-processing of the Gaussian one with
  this noise multiplier (theorem 1 of docs/discrete-noise.md), and is booked as that.

``collude``: of a secure sum. The guarantee then holds against a coordinator and so many clients of
the round, whoever looks at the sum among them, if the round's other clients keep to the protocol.

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

    mechanism: Literal[
        "gaussian",
        "poisson-subsampled-gaussian",
        "discrete-gaussian",
        "poisson-subsampled-discrete-gaussian",
    ]
    noise_multiplier: float = Field(gt=0, allow_inf_nan=False)
    sample_rate: float = Field(gt=0, le=1, allow_inf_nan=False)
    steps: int = Field(ge=1)
    relation: Relation = "add-remove-one-unit"
    unit: str = Field(min_length=1, max_length=64)
    collude: int | None = Field(
        default=None,
        ge=0,
        exclude_if=lambda value: value is None,
        description="Of a secure sum: clients that may work with the coordinator. Unset: the "
        "release is as safe by itself, whoever sees it.",
    )

    @model_validator(mode="after")
    def _full_batch_is_gaussian(self) -> PrivacyEvent:
        if self.mechanism in ("gaussian", "discrete-gaussian") and self.sample_rate != 1.0:
            raise ValueError(
                f"a {self.mechanism!r} event has sample_rate 1; use the subsampled mechanism"
            )
        return self


def release(
    *,
    noise_multiplier: float,
    sample_rate: float,
    unit: str,
    steps: int = 1,
    discrete: bool = False,
    collude: int | None = None,
) -> PrivacyEvent:
    """The event of one release, or of ``steps`` that each draw a batch and noise of their own.

    Full batches are booked as plain Gaussian (the exact curve).
    """
    full = sample_rate == 1.0
    if discrete:
        kind = "discrete-gaussian" if full else "poisson-subsampled-discrete-gaussian"
    else:
        kind = "gaussian" if full else "poisson-subsampled-gaussian"
    return PrivacyEvent(
        mechanism=kind,
        noise_multiplier=noise_multiplier,
        sample_rate=sample_rate,
        steps=steps,
        unit=unit,
        collude=collude,
    )
