"""What a data scientist asks for. Checked here once, for the API, jobs and command lines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from core.federation.values import MAX_ROUND_NUMBER, Frozen, Name

MAX_ROWS = 10_000_000  # of one answer; ask again with another seed for more

Weight = Annotated[float, Field(ge=0.0, le=1e9, allow_inf_nan=False)]
Mixture = (
    Literal["neutral"]
    | Annotated[dict[Name, Weight], Field(json_schema_extra={"additionalProperties": False})]
)
Labels = Literal["model", "uniform"] | dict[str, Weight]
ClassCounts = dict[str, Annotated[int, Field(ge=0, le=MAX_ROWS)]]


class SynthesisRequest(Frozen):
    """Labelled rows from the neutral code, or from clients' codes with weights.

    Exactly one of ``n`` (labels as ``labels`` says) and ``class_counts`` (rows per class name) is
    given.
    """

    run: str = Field(min_length=1, max_length=64, description="Run id or name.")
    round: Literal["latest"] | Annotated[int, Field(ge=0, le=MAX_ROUND_NUMBER)] = "latest"
    mixture: Mixture = Field(
        default="neutral",
        description="'neutral', or client or domain -> weight. Weights are >= 0; they are divided "
        "by their sum, and echoed so. A domain stands for its clients in equal parts.",
    )
    mode: Literal["blend", "sample"] = Field(
        default="blend",
        description="'blend': one generator from the weighted code. 'sample': each row from the "
        "generator of one client, drawn by weight.",
    )
    n: int | None = Field(default=None, ge=1, le=MAX_ROWS)
    labels: Labels = Field(
        default="model",
        description="How n rows are labelled. 'model': each drawn by the pooled noised class "
        "frequencies. 'uniform', or class -> share: exactly, to the nearest row.",
    )
    class_counts: ClassCounts | None = None
    seed: int | None = Field(
        default=None, ge=0, lt=2**63, description="Drawn and echoed when absent."
    )
    temperature: float = Field(
        default=1.0,
        gt=0.0,
        le=4.0,
        allow_inf_nan=False,
        description="Scales the standard deviations around class means; 1 is the model.",
    )
    guidance: Literal["model", "none"] = Field(
        default="model",
        description="'model': labels as the model was published to make them, by its trained "
        "classifier if it has one. 'none': the class from which each row was drawn.",
    )
    format: Literal["json", "ndjson", "csv", "parquet", "arrow", "npz", "npy"] | None = Field(
        default=None, description="Absent: what `Accept` names first, JSON if it names nothing."
    )
    dtype: Literal["float16", "float32", "float64"] = Field(
        default="float32", description="Number type of the embeddings; rows are made in float32."
    )
    columns: tuple[Literal["domain", "code_id"], ...] = Field(
        default=(),
        description="More about each row: 'domain', whose code made it; 'code_id', which code.",
    )

    @field_validator("mixture", "labels")
    @classmethod
    def _normalised(cls, weights: str | dict[str, float]) -> str | dict[str, float]:
        if isinstance(weights, str):
            return weights
        total = math.fsum(weights.values())
        if not total > 0:
            raise ValueError("at least one weight must be above 0")
        return {name: weight / total for name, weight in weights.items()}

    @field_validator("columns")
    @classmethod
    def _each_once(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(columns)) < len(columns):
            raise ValueError("name each column once")
        return columns

    def with_clients(self, domains: Mapping[str, Sequence[str]]) -> SynthesisRequest:
        """The same with clients in place of domains (label -> clients), in equal parts each."""
        if isinstance(self.mixture, str) or not set(self.mixture) & set(domains):
            return self
        weights: dict[str, float] = {}
        for name, weight in self.mixture.items():
            members = domains.get(name, (name,))
            for member in members:
                weights[member] = weights.get(member, 0.0) + weight / len(members)
        return self.model_copy(update={"mixture": weights})

    @property
    def size(self) -> int:
        """Number of rows."""
        return self.n if self.n is not None else sum((self.class_counts or {}).values())

    @model_validator(mode="after")
    def _one_size(self) -> SynthesisRequest:
        if (self.n is None) == (self.class_counts is None):
            raise ValueError("give exactly one of n and class_counts")
        if self.class_counts is not None:
            if self.labels != "model":
                raise ValueError("labels: class_counts says already how many rows each class gets")
            total = sum(self.class_counts.values())
            if not 1 <= total <= MAX_ROWS:
                raise ValueError(f"class_counts: must sum to 1..{MAX_ROWS}, they sum to {total}")
        if self.mode == "sample" and self.mixture == "neutral":
            raise ValueError("mode: 'sample' draws among clients, so it needs a mixture of them")
        return self
