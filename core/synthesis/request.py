"""What a data scientist asks for. Checked here once, for the API, jobs and command lines."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from core.federation.plan import Frozen, Name

# Rows of one answer; ask again with another seed for more.
MAX_ROWS = 50_000

_WEIGHTS_TOLERANCE = 1e-6


class SynthesisRequest(Frozen):
    """Labelled rows from the neutral code, one client's code or a blend of codes.

    Exactly one of ``n`` (labels follow the pooled noised class frequencies) and
    ``class_counts`` (rows per class name) is given.
    """

    run: str = Field(min_length=1, max_length=64, description="Run id or name.")
    round: Literal["latest"] | Annotated[int, Field(ge=0)] = "latest"
    mixture: Literal["neutral"] | dict[Name, float] = Field(
        default="neutral",
        description="'neutral', or client name -> weight; weights are >= 0 and sum to 1.",
    )
    n: int | None = Field(default=None, ge=1, le=MAX_ROWS)
    class_counts: dict[str, Annotated[int, Field(ge=0, le=MAX_ROWS)]] | None = None
    seed: int | None = Field(
        default=None, ge=0, lt=2**63, description="Drawn and echoed when absent."
    )
    guidance: Literal["model", "none"] = Field(
        default="model",
        description="'model': labels as the model was published to make them, by its trained "
        "classifier if it has one. 'none': the class from which each row was drawn.",
    )
    format: Literal["json", "parquet"] = "json"

    @field_validator("mixture")
    @classmethod
    def _weights(cls, mixture: str | dict[str, float]) -> str | dict[str, float]:
        if isinstance(mixture, str):
            return mixture
        if not mixture:
            raise ValueError("name at least one client, or write 'neutral'")
        negative = [name for name, weight in mixture.items() if weight < 0]
        if negative:
            raise ValueError(f"weights must not be negative ({', '.join(sorted(negative))})")
        total = math.fsum(mixture.values())
        if abs(total - 1.0) > _WEIGHTS_TOLERANCE:
            raise ValueError(f"weights must sum to 1, they sum to {total:.6g}")
        return mixture

    @model_validator(mode="after")
    def _one_size(self) -> SynthesisRequest:
        if (self.n is None) == (self.class_counts is None):
            raise ValueError("give exactly one of n and class_counts")
        if self.class_counts is not None:
            total = sum(self.class_counts.values())
            if not 1 <= total <= MAX_ROWS:
                raise ValueError(f"class_counts: must sum to 1..{MAX_ROWS}, they sum to {total}")
        return self
