"""A run's plan: what is trained, at which privacy price, under which rules of the round.

A plan is public. It holds targets (epsilon, delta); ``calibrate`` turns them into noise
multipliers and the result, with the embedding-space contract, is the immutable ``RunSpec`` to
which every work order, update and model refers by digest.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from core.federation.regulariser import RegulariserPlan
from core.models.architecture import Activation, Conditioning, Form, Prior, from_plan
from core.privacy import accounting
from core.privacy.events import PrivacyEvent, release

PROTOCOL_VERSION = 1
# Coordinates of one update at most, in any round: 32 MB on the wire, and no plan by which a site
# would run out of memory (when, would depend on its batch).
MAX_COORDINATES = 8_000_000
# Join rounds of one run at most. A number, so that every round's number has a bound; what a
# client pays is bounded by its budget.
MAX_JOINS = 10_000
# Releases of one client's training at most: what the accountant composes in seconds.
MAX_STEPS = 100_000
ClipNorm = Annotated[float, Field(gt=0, le=1e6)]
RoundKind = Literal["sketch", "spread", "train", "validate", "join"]
# What everything says that was made in the mode ``paper``.
NO_GUARANTEE = "no record-level guarantee"

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
Sha256 = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class Frozen(BaseModel):
    """Base of public values: immutable, unknown keys refused, NaN and infinity refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def digest_of(value: BaseModel | dict[str, Any]) -> str:
    """``sha256:...`` of the canonical JSON (sorted keys, no spaces) of a public value."""
    data = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


class EmbeddingSpace(Frozen):
    """The contract that makes embeddings of several sites comparable.

    Two variants of one backbone differ in ``weights_digest`` or ``preprocessing`` and therefore
    in the contract's digest: their records never mix silently.
    """

    name: Name
    backbone: str = Field(min_length=1, max_length=200)
    weights_digest: Sha256
    preprocessing: str = Field(min_length=1, max_length=500)
    dim: int = Field(ge=2, le=65_536)
    classes: tuple[Annotated[str, Field(min_length=1, max_length=100)], ...] = Field(
        min_length=2, max_length=1_000
    )

    @model_validator(mode="after")
    def _classes_are_distinct(self) -> EmbeddingSpace:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes: each name may appear once")
        return self


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
    n_max: int = Field(ge=1, description="Public upper bound on the units of one client.")
    unit: Literal["record", "patient"] = "record"
    mode: Literal["joint", "paper"] = Field(
        default="joint",
        description="joint: one clip and noise over all that is trained. paper, for comparison in "
        "simulations only: codes and encoders are trained without noise as private state of their "
        "clients. It has no record-level guarantee, and coordinators and sites refuse it.",
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
    def refinement(self) -> float:
        """``refine_share`` of a resolved plan of two steps. Raises ``ValueError`` for another."""
        if self.refine_share is None:
            raise ValueError("refine_share was not chosen: see core.federation.rule")
        return self.refine_share


class ModelPlan(Frozen):
    """Sizes of the hypernetwork CVAE (see docs/model.md). All public."""

    form: Form = Field(
        default="film",
        description="What is generated for a client: film, scale and shift of hidden units; "
        "lowrank, a low-rank change of every layer; full, every weight of the decoder.",
    )
    code_dim: int = Field(default=16, ge=1, le=1_024)
    codes: Literal["sketch", "trained"] = Field(
        default="sketch",
        description="sketch: a client's code is a fixed map of its released sketch. trained: the "
        "hypernetwork sees that code plus an offset, which is trained like everything else.",
    )
    trunk_width: int = Field(default=8, ge=1, le=4_096)
    trunk_layers: int = Field(default=1, ge=1, le=8)
    latent_dim: int = Field(default=8, ge=1, le=1_024)
    hidden: int = Field(default=32, ge=1, le=8_192, description="Width of the decoder's layers.")
    hidden_layers: int = Field(default=1, ge=1, le=8)
    encoder: Literal["shared", "local"] = Field(
        default="shared",
        description="local: each client keeps an encoder of its own, made of its noised gradient "
        "sums, which it does not post.",
    )
    encoder_hidden: int = Field(default=32, ge=1, le=8_192)
    encoder_layers: int = Field(default=1, ge=1, le=8)
    lowrank: int = Field(
        default=4, ge=1, le=1_024, description="Rank of a layer's change in the form lowrank."
    )
    activation: Activation = "tanh"
    conditioning: Conditioning = Field(
        default="concat",
        description="How encoder and decoder are told the class: one-hot, or a trained vector.",
    )
    conditioning_dim: int = Field(
        default=8, ge=1, le=1_024, description="Width of that trained vector."
    )
    classifier: Literal["linear", "none"] = Field(
        default="linear",
        description="An auxiliary classifier of whole embeddings, trained in the same rounds; it "
        "guides the labels of samples.",
    )
    prior: Prior = Field(
        default="class",
        description="Of latent vectors: class, trained for each class and shifted by the code; "
        "standard, N(0, I) for every class and code.",
    )
    basis_rank: int = Field(
        default=32, ge=1, le=8_192, description="Residuals live in this many directions."
    )
    beta: float = Field(default=1.0, gt=0, le=1e6)
    code_dropout: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="Chance that a unit is trained under the neutral code.",
    )


class SketchPlan(Frozen):
    """Block weights of step 1, whose sensitivity is the root of the sum of their squares, and the
    radius R of step 2, whose blocks are in units of R and R^2 and have sensitivity 1 together.
    """

    count_weight: float = Field(default=0.3, ge=1e-3, le=1e3)
    mean_weight: float = Field(default=1.0, ge=1e-3, le=1e3)
    residual_radius: float = Field(
        default=0.7, gt=0, le=2, description="Residuals of directions are clipped to this length."
    )
    projected_weight: float = Field(
        default=0.0,
        ge=0,
        le=1e3,
        description="Second moment in public random directions; for runs whose second step has "
        "no moments. 0: not released.",
    )
    projected_rank: int = Field(default=32, ge=1, le=4_096, description="How many directions.")
    projected_radius: float = Field(
        default=1.0, gt=0, le=1, description="Projected directions are clipped to this length."
    )
    feature_weight: float = Field(
        default=0.0,
        ge=0,
        le=1e3,
        description="Class sums of random Fourier features: MMD targets. 0: not released.",
    )
    feature_pairs: int = Field(
        default=64, ge=1, le=65_536, description="Pairs of cosine and sine, a feature vector."
    )

    @property
    def bound(self) -> float:
        """S, the norm of one record's vector at most."""
        blocks = (
            self.count_weight, self.mean_weight, self.projected_weight, self.feature_weight,
        )  # fmt: skip
        return math.hypot(*blocks)


class OptimiserPlan(Frozen):
    """The server's optimiser over the noised sums."""

    kind: Literal["adam", "momentum"] = "adam"
    learning_rate: float = Field(default=0.01, gt=0, le=1e3)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    ema_decay: float = Field(default=0.9, ge=0, lt=1)
    classifier_momentum: float = Field(default=0.9, ge=0, lt=1)
    classifier_noise: float = Field(
        default=0.5,
        gt=0,
        le=10,
        description="Sets the classifier's step size: how far noise may move it over the whole "
        "run, in lengths of the classifier that the sketch gives.",
    )


class GuidancePlan(Frozen):
    """What samplers do with the auxiliary classifier: post-processing, hence free."""

    labels: Literal["relabel", "none"] = Field(
        default="relabel",
        description="relabel: a row's label is what the classifier says of it. none: the class "
        "from whose part of the generator it was drawn.",
    )
    widen: float = Field(
        default=2.0,
        ge=0,
        le=100,
        description="How far proposals spread in the classifier's directions, in units of the "
        "spread of the class means there: wide enough to cross boundaries.",
    )


class RoundPlan(Frozen):
    """Rules of one round, in the coordinator's clock."""

    quorum: int = Field(default=1, ge=1, le=100_000)
    deadline_s: float = Field(default=3_600.0, gt=0, le=30 * 86_400)
    extension_s: float = Field(default=0.0, ge=0, le=30 * 86_400)
    lease_s: float = Field(default=600.0, gt=0, le=86_400)
    max_attempts: int = Field(default=3, ge=1, le=100)


class Plan(Frozen):
    """What an operator writes. Post it to ``/v1/runs`` or keep it in a TOML file."""

    name: Name
    space: Name
    privacy: PrivacyPlan
    model: ModelPlan = ModelPlan()
    sketch: SketchPlan = SketchPlan()
    optimiser: OptimiserPlan = OptimiserPlan()
    guidance: GuidancePlan = GuidancePlan()
    regulariser: RegulariserPlan = RegulariserPlan()
    round: RoundPlan = RoundPlan()
    aggregation: Literal["plain"] = "plain"
    joining: Literal["invited", "open"] = Field(
        default="invited",
        description="Who may add a client to the completed run: 'invited', the administrator; "
        "'open', an enrolled client itself as well.",
    )
    seed: int = Field(
        default=0, ge=0, lt=2**63, description="Public: initial weights and projections only."
    )
    purpose: Literal["production", "simulation"] = Field(
        default="production",
        description="'simulation' relaxes the delta rule, allows seeded noise, is never served.",
    )

    @model_validator(mode="after")
    def _clip_norms_have_blocks(self) -> Plan:
        groups = from_plan(self.model, dim=2, classes=2).groups  # the same in every space
        for group in self.privacy.block_clip_norms.given:
            if group not in groups:
                raise ValueError(
                    f"privacy.block_clip_norms.{group}: a model of form {self.model.form!r} with "
                    f"conditioning {self.model.conditioning!r}, codes {self.model.codes!r} and "
                    f"prior {self.model.prior!r} has "
                    "no such blocks; leave it out"
                )
        return self

    @model_validator(mode="after")
    def _rounds_train_something(self) -> Plan:
        if self.privacy.rounds and self.model.classifier == "none" and not self.privacy.clip_norm:
            raise ValueError(
                "privacy.clip_norm: 0 without a classifier leaves rounds nothing to train; "
                "set model.classifier = 'linear' or rounds = 0"
            )
        return self

    @model_validator(mode="after")
    def _paper_mode_is_simulated(self) -> Plan:
        privacy, model = self.privacy, self.model
        if privacy.mode != "paper":
            return self
        if self.purpose != "simulation":
            raise ValueError(
                f"privacy.mode: 'paper' has {NO_GUARANTEE}: codes and encoders are trained without "
                "noise, and every other record's gradient depends on them; set purpose = "
                "'simulation' to compare with it, or mode = 'joint'"
            )
        if (model.codes, model.encoder, model.classifier) != ("trained", "local", "none"):
            raise ValueError(
                f"privacy.mode: 'paper' ({NO_GUARANTEE}) trains codes and encoders at the clients "
                "and has no classifier; set model.codes = 'trained', model.encoder = 'local' and "
                "model.classifier = 'none'"
            )
        own = sorted({"encoder", "code"} & set(privacy.block_clip_norms.given))
        if own:
            raise ValueError(
                f"privacy.block_clip_norms.{own[0]}: mode 'paper' does not clip this block, it "
                "never leaves the client; leave it out"
            )
        if privacy.rounds == 0 or privacy.local_steps != 1:
            raise ValueError(
                "privacy.mode: 'paper' is about training rounds of one release each; set "
                "rounds > 0 and local_steps = 1"
            )
        return self

    @model_validator(mode="after")
    def _validation_has_a_choice(self) -> Plan:
        from core.models.candidates import candidates  # needs this module's types

        if self.privacy.validates and len(candidates(self)) < 2:
            raise ValueError(
                "privacy.validation_share: this plan makes one generator only, so there is nothing "
                "to choose; leave it out or set 0"
            )
        return self

    @model_validator(mode="after")
    def _free_terms_can_act(self) -> Plan:
        feature_weight, rounds = self.sketch.feature_weight, self.privacy.rounds
        self.regulariser.require(feature_weight=feature_weight, rounds=rounds)
        return self

    @model_validator(mode="after")
    def _delta_rule(self) -> Plan:
        limit = 1.0 / (10.0 * self.privacy.n_max)
        if self.purpose == "production" and self.privacy.delta >= limit:
            raise ValueError(
                f"privacy.delta: must be below 1 / (10 * n_max) = {limit:.3g}; "
                "lower delta or declare a smaller n_max"
            )
        return self


class Noise(Frozen):
    """Calibrated noise multipliers: standard deviation over sensitivity."""

    sketch_multiplier: float = Field(gt=0)
    spread_multiplier: float | None = Field(default=None, gt=0)
    train_multiplier: float | None = Field(default=None, gt=0)
    validate_multiplier: float | None = Field(default=None, gt=0)

    @property
    def join_multiplier(self) -> float:
        """The one sketch of who joins later costs what both steps cost a founding client."""
        if self.spread_multiplier is None:
            return self.sketch_multiplier
        return 1.0 / math.hypot(1.0 / self.sketch_multiplier, 1.0 / self.spread_multiplier)


class RunSpec(Frozen):
    """The immutable public description of a run, named by its digest everywhere."""

    protocol: Literal[1] = 1
    run_id: str = Field(min_length=1, max_length=64)
    plan: Plan
    space: EmbeddingSpace
    noise: Noise

    @model_validator(mode="after")
    def _split_is_chosen(self) -> RunSpec:
        if not self.plan.privacy.is_resolved:
            raise ValueError("plan.privacy: the split of the sketch must be chosen by now")
        return self

    @model_validator(mode="after")
    def _updates_are_of_bounded_size(self) -> RunSpec:
        from core.models.layout import largest_update  # needs this module's types

        kind, size = largest_update(self)
        if size > MAX_COORDINATES:
            field = "plan.privacy.sketch_steps" if kind == "spread" else "plan.model"
            raise ValueError(
                f"{field}: a {kind} round would release {size:,} coordinates, more than "
                f"{MAX_COORDINATES:,}"
            )
        return self

    @property
    def digest(self) -> str:
        return digest_of(self)

    @property
    def sketch_rounds(self) -> int:
        """Rounds 0 .. sketch_rounds - 1 are sketches; training rounds follow."""
        return self.plan.privacy.sketch_steps or 1  # a specification has chosen

    @property
    def last_round(self) -> int:
        """Behind it come joins only."""
        return self.last_training_round + int(self.plan.privacy.validates)

    @property
    def last_training_round(self) -> int:
        return self.sketch_rounds + self.plan.privacy.rounds - 1

    def kind(self, round_number: int) -> RoundKind:
        """What a round releases: the plan's rounds, then join rounds.

        Raises ``ValueError`` for a number beyond ``MAX_JOINS`` of them.
        """
        if self.last_round < round_number <= self.last_round + MAX_JOINS:
            return "join"
        if not 0 <= round_number <= self.last_round:
            raise ValueError(
                f"the plan has rounds 0 to {self.last_round} and {MAX_JOINS} joins, "
                f"not {round_number}"
            )
        if round_number > self.last_training_round:
            return "validate"
        if round_number >= self.sketch_rounds:
            return "train"
        return "sketch" if round_number == 0 else "spread"

    def event(self, round_number: int) -> PrivacyEvent:
        """The event of one client's release in this round. Sketches are of full batches.

        Raises ``ValueError`` for a training round of the mode ``paper``: what it posts is bounded
        by no event, and no epsilon may be computed for it.
        """
        privacy = self.plan.privacy
        kind = self.kind(round_number)
        if kind == "train" and privacy.caveat:
            raise ValueError(f"round {round_number} (mode {privacy.mode!r}) has {privacy.caveat}")
        multiplier = {
            "sketch": self.noise.sketch_multiplier,
            "spread": self.noise.spread_multiplier,
            "train": self.noise.train_multiplier,
            "validate": self.noise.validate_multiplier,
            "join": self.noise.join_multiplier,
        }[kind]
        if multiplier is None:
            raise ValueError(f"the run has no noise multiplier for round {round_number} ({kind})")
        return release(
            noise_multiplier=multiplier,
            sample_rate=privacy.sample_rate if kind == "train" else 1.0,
            unit=privacy.unit,
            steps=privacy.local_steps if kind == "train" else 1,
        )

    def events(self) -> list[PrivacyEvent]:
        """Every event of a founding client if no attempt is lost. Who joins later has one."""
        return [self.event(n) for n in range(self.last_round + 1)]


def calibrate(privacy: PrivacyPlan) -> Noise:
    """Noise multipliers whose composition spends at most ``epsilon`` at ``delta`` (PLD).

    The sketch alone is calibrated to ``sketch_share * epsilon``; the training noise is then the
    smallest with which sketch and the E local steps of all T rounds together stay within
    ``epsilon``. Two sketch steps split the precision 1 / z^2 of one: Gaussian releases of full
    batches compose to exactly that. Raises ``ValueError`` for a plan whose split was not chosen.
    """
    alone = privacy.rounds == 0
    share = 1.0 if alone else privacy.sketch_share

    if share is None or not privacy.split_is_chosen:
        raise ValueError("the split of the sketch was not chosen: see core.federation.rule")
    first_share = privacy.mean_share

    def split(whole: float) -> tuple[float, float | None]:
        if first_share is None:
            return whole, None
        return whole / math.sqrt(first_share), whole / math.sqrt(1.0 - first_share)

    def sketches(whole: float) -> list[PrivacyEvent]:
        return [
            release(noise_multiplier=sigma, sample_rate=1.0, unit=privacy.unit)
            for sigma in split(whole)
            if sigma is not None
        ]

    # On the events that will be booked: two discretised releases come out a shade above one.
    target = share * privacy.epsilon
    whole = accounting.calibrate(sketches, target=target, delta=privacy.delta)
    sketch, spread = split(whole)
    if alone:
        return Noise(sketch_multiplier=sketch, spread_multiplier=spread)
    first = sketches(whole)

    steps = privacy.rounds * privacy.local_steps
    # Precision of T steps at rate q, roughly: T q^2 / z^2.
    of_validation = privacy.sample_rate * math.sqrt(steps * privacy.validation_precision)

    def composed(sigma: float) -> list[PrivacyEvent]:
        rounds = release(
            noise_multiplier=sigma, sample_rate=privacy.sample_rate, unit=privacy.unit, steps=steps
        )
        if not privacy.validates:
            return [*first, rounds]
        validation = release(
            noise_multiplier=sigma / of_validation, sample_rate=1.0, unit=privacy.unit
        )
        return [*first, rounds, validation]

    train = accounting.calibrate(composed, target=privacy.epsilon, delta=privacy.delta)
    return Noise(
        sketch_multiplier=sketch,
        spread_multiplier=spread,
        train_multiplier=train,
        validate_multiplier=train / of_validation if privacy.validates else None,
    )
