"""What a plan promises and at which price: targets, clip norms, rounds and their noise's budget."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from core.federation.values import MAX_UNITS, ClipNorm, Frozen, omitted_if

# Releases of one client's training at most: what the accountant composes in seconds.
MAX_STEPS = 100_000
DEFAULT_HOLDOUT = 0.1
# What everything says that was made in the mode ``paper``.
NO_GUARANTEE = "no record-level guarantee"


class BlockClipNorms(Frozen):
    """Groups of blocks that are clipped apart, each to its own C (``core.models.architecture``)."""

    trunk: ClipNorm | None = None
    heads: ClipNorm | None = None
    prior: ClipNorm | None = None
    conditioning: ClipNorm | None = None
    decoder: ClipNorm | None = None
    encoder: ClipNorm | None = None
    code: ClipNorm | None = None

    @property
    def given(self) -> dict[str, float]:
        """Group -> its C, for the groups that have one."""
        return {name: norm for name, norm in self if norm is not None}


class PrivacyPlan(Frozen):
    """Targets and mechanism parameters. Neighbouring: add or remove one ``unit`` of one site."""

    epsilon: float = Field(gt=0, le=100)
    delta: float = Field(gt=0, lt=1)
    n_max: int = Field(
        ge=1, le=MAX_UNITS, description="Public upper bound on the units of one client."
    )
    unit: Literal["record", "patient"] = "record"
    mode: Literal["joint", "paper"] = Field(
        default="joint",
        description="joint: one clip and noise over all that is trained. paper, for comparison in "
        "simulations only: codes and encoders are trained without noise as private state of their "
        "clients. It has no record-level guarantee, and coordinators and sites refuse it.",
    )
    noise: Literal["continuous", "discrete"] = Field(
        default="continuous",
        exclude_if=omitted_if("continuous"),
        description="continuous: float64 Gaussian draws, whose floating-point form is not the "
        "Gaussian of the theorem. discrete: exact discrete Gaussians on a public grid, from random "
        "bits alone, at the same epsilon for half a percent more noise "
        "(docs/discrete-noise.md). Secure sums are always discrete.",
    )
    clip_norm: float = Field(
        default=0.25,
        ge=0,
        le=1e6,
        description="C: L2 bound of one unit's gradient of the generator. 0: the generator stays "
        "as the sketch made it, and only the classifier is trained.",
    )
    classifier_clip_norm: float = Field(
        default=2.0,
        ge=0,
        le=1e6,
        description="C of the auxiliary classifier's gradient, which is clipped apart. 0: it stays "
        "as the sketch made it.",
    )
    clipping: Literal["fixed", "automatic"] = Field(
        default="fixed",
        description="fixed: longer gradients are cut to C. automatic: every gradient gets nearly "
        "the length C.",
    )
    automatic_gamma: float = Field(
        default=0.01, gt=0, le=1e6, description="gamma of automatic clipping, C g / (|g| + gamma)."
    )
    block_clip_norms: BlockClipNorms = Field(
        default=BlockClipNorms(),
        description="Groups of blocks that are clipped apart, each to its own C; clip_norm is for "
        "the rest. One unit then moves the sum by sqrt of the sum of all C^2.",
    )
    sample_rate: float = Field(default=1.0, gt=0, le=1, description="q: Poisson inclusion.")
    rounds: int = Field(default=20, ge=0, le=10_000, description="Training rounds T.")
    local_steps: int = Field(
        default=1,
        ge=1,
        le=64,
        description="E: DP-SGD steps of a site in one training round, each with a batch and noise "
        "of its own and each paid for.",
    )
    local_learning_rate: float = Field(
        default=0.1,
        gt=0,
        le=1e3,
        description="Between local steps: weights move by this times the noised mean gradient.",
    )
    sketch_steps: Literal[1, 2] | None = Field(
        default=None,
        description="1: class counts and sums. 2: then sums and second moments of residuals "
        "around the released means. Unset: chosen by a public rule "
        "(docs/decisions/0014-budget-rule.md), as are the two shares below.",
    )
    mean_share: float | None = Field(
        default=None, gt=0, lt=1, description="The first of two steps' share of the precision."
    )
    refine_share: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Of the second step's precision, the share that refines the class means; the "
        "rest measures how records spread.",
    )
    units_expected: int | None = Field(
        default=None,
        ge=1,
        le=MAX_UNITS,
        description="Public guess at the units of all clients together; steers that rule and "
        "nothing else. Unset: a third of n_max for each client.",
    )
    sketch_share: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="The sketch alone spends sketch_share * epsilon; rounds get the rest. Unset: "
        "half of the precision (docs/decisions/0017-gradient-rounds-that-pay.md).",
    )

    validation_share: float | None = Field(
        default=None,
        ge=0,
        le=0.5,
        description="Chance that a unit is kept out of everything but the last round, which helps "
        "the server to choose what to publish. 0: no such round. Unset: 0.1 where noise lets that "
        "round tell a point of accuracy, else 0.",
    )
    validation_precision: float = Field(
        default=0.05,
        gt=0,
        le=1,
        description="Precision of the validation round, as a share of that of training.",
    )
    report_precision: float = Field(
        default=0.0,
        ge=0,
        le=1,
        exclude_if=omitted_if(0.0),
        description="Precision of the report round, as a share of that of training (of the sketch "
        "where rounds is 0): noised statistics of what the model is worth on held-out units, and "
        "of an attack on those that trained it. 0: no such round.",
    )
    report_holdout: float = Field(
        default=DEFAULT_HOLDOUT,
        gt=0,
        le=0.5,
        exclude_if=omitted_if(DEFAULT_HOLDOUT),
        description="Chance that a unit is held out of everything but the report round, by a "
        "public coin of the client. Belongs to report_precision above 0.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> PrivacyPlan:
        if self.rounds > 0 and self.sketch_share == 1.0:
            raise ValueError("sketch_share: must be below 1 when rounds > 0 (nothing is left)")
        if self.rounds > 0 and self.clip_norm == self.classifier_clip_norm == 0.0:
            raise ValueError(
                "clip_norm: with classifier_clip_norm = 0, too, rounds would train nothing; "
                "give one of them or set rounds = 0"
            )
        if self.rounds * self.local_steps > MAX_STEPS:
            raise ValueError(
                f"local_steps: {self.local_steps} steps in each of {self.rounds} rounds are more "
                f"than {MAX_STEPS:,} releases; lower local_steps or rounds"
            )
        if self.sketch_steps == 1:
            for name in ("mean_share", "refine_share"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name}: belongs to sketch_steps = 2; leave it out")
        if not self.reports and self.report_holdout != DEFAULT_HOLDOUT:
            raise ValueError(
                "report_holdout: belongs to report_precision > 0, without which no unit is held "
                "out; leave it out"
            )
        return self

    @property
    def caveat(self) -> str:
        """What must be said with everything that such a plan makes; empty if it keeps its word."""
        return NO_GUARANTEE if self.mode == "paper" else ""

    @property
    def split_is_chosen(self) -> bool:
        """Whether the budget's split was chosen (``core.federation.rule``)."""
        two = self.mean_share is not None and self.refine_share is not None
        parts = self.rounds == 0 or self.sketch_share is not None
        return parts and (self.sketch_steps == 1 or (self.sketch_steps == 2 and two))

    @property
    def is_resolved(self) -> bool:
        """Whether nothing is left to that rule."""
        validation = self.rounds == 0 or self.validation_share is not None
        return validation and self.split_is_chosen

    @property
    def validates(self) -> bool:
        """Whether a validation round follows the training rounds (of a resolved plan)."""
        return self.rounds > 0 and bool(self.validation_share)

    @property
    def reports(self) -> bool:
        """Whether a report round is the plan's last."""
        return self.report_precision > 0.0

    @property
    def refinement(self) -> float:
        """``refine_share`` of a resolved plan of two steps. Raises ``ValueError`` for another."""
        if self.refine_share is None:
            raise ValueError("refine_share was not chosen: see core.federation.rule")
        return self.refine_share
