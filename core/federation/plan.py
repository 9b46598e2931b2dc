"""A run's plan: what is trained, at which privacy price, under which rules of the round.

A plan is public. It holds targets (epsilon, delta); ``calibrate`` turns them into noise
multipliers and the result, with the embedding-space contract, is the immutable ``RunSpec`` to
which every work order, update and model refers by digest.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from pydantic import Field, model_validator

from core.federation import plan_rules
from core.federation.calibration import Noise as Noise
from core.federation.calibration import calibrate as calibrate
from core.federation.model_plan import GuidancePlan as GuidancePlan
from core.federation.model_plan import ModelPlan as ModelPlan
from core.federation.model_plan import OptimiserPlan as OptimiserPlan
from core.federation.model_plan import SketchPlan as SketchPlan
from core.federation.privacy_plan import NO_GUARANTEE as NO_GUARANTEE
from core.federation.privacy_plan import BlockClipNorms as BlockClipNorms
from core.federation.privacy_plan import PrivacyPlan as PrivacyPlan
from core.federation.regulariser import RegulariserPlan
from core.federation.robust import DEFAULT_TRIM_SHARE
from core.federation.secure_plan import SecurePlan as SecurePlan
from core.federation.selection import cohort_size, participations
from core.federation.values import EmbeddingSpace as EmbeddingSpace
from core.federation.values import Frozen as Frozen
from core.federation.values import Name as Name
from core.federation.values import Sha256 as Sha256
from core.federation.values import digest_of as digest_of
from core.federation.values import omitted_if
from core.models.architecture import from_plan
from core.privacy.events import PrivacyEvent, release

# Coordinates of one update at most, in any round: 32 MB on the wire, and no plan by which a site
# would run out of memory (when, would depend on its batch).
MAX_COORDINATES = 8_000_000
# Join rounds of one run at most. A number, so that every round's number has a bound; what a
# client pays is bounded by its budget.
MAX_JOINS = 10_000
RoundKind = Literal["sketch", "spread", "train", "validate", "report", "join"]


class RoundPlan(Frozen):
    """Rules of one round, in the coordinator's clock."""

    quorum: int = Field(default=1, ge=1, le=100_000)
    deadline_s: float = Field(default=3_600.0, gt=0, le=30 * 86_400)
    extension_s: float = Field(default=0.0, ge=0, le=30 * 86_400)
    lease_s: float = Field(default=600.0, gt=0, le=86_400)
    max_attempts: int = Field(default=3, ge=1, le=100)
    client_fraction: float = Field(
        default=1.0,
        gt=0,
        le=1,
        exclude_if=omitted_if(1.0),
        description="Share of the founding clients that each training round takes, by a public, "
        "balanced choice: max(quorum, ceil(client_fraction * clients)). Noise is calibrated for "
        "the client that is chosen most often; the choice is public and gives no privacy of its "
        "own. Rounds of other kinds are of all clients.",
    )


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
    aggregation: Literal["plain", "trimmed-mean", "secure"] = Field(
        default="plain",
        description="How training rounds sum the clients' noised updates. 'trimmed-mean': in each "
        "coordinate without the smallest and the largest trim_share of them, so that a few clients "
        "cannot carry the model away. The noise is in each update before, so every client's "
        "epsilon and delta are the same; what it costs is accuracy where sites differ. The "
        "coordinator must see each client's noised update. Other rounds are summed plainly. "
        "'secure': the coordinator learns the sum and no client's own update, and the sum carries "
        "the noise once; the guarantee then holds against the coordinator and up to "
        "secure.collude clients.",
    )
    secure: SecurePlan = Field(
        default=SecurePlan(),
        exclude_if=omitted_if(SecurePlan()),
        description="Of aggregation 'secure': whom the sum may lack, and whom it need not trust.",
    )
    trim_share: float = Field(
        default=DEFAULT_TRIM_SHARE,
        gt=0,
        lt=0.5,
        exclude_if=omitted_if(DEFAULT_TRIM_SHARE),
        description="Of aggregation 'trimmed-mean': floor(trim_share * updates) at each end.",
    )
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
    def _parts_agree(self) -> Plan:
        plan_rules.paper_mode(self)
        plan_rules.client_selection(self)
        plan_rules.trimming(self)
        plan_rules.report(self)
        plan_rules.secure_sums(self)
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


class RunSpec(Frozen):
    """The immutable public description of a run, named by its digest everywhere."""

    protocol: Literal[1] = 1  # of this format; the wire has its own (core.wire.protocol)
    run_id: str = Field(min_length=1, max_length=64)
    plan: Plan
    space: EmbeddingSpace
    noise: Noise
    founding_clients: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        exclude_if=omitted_if(None),
        description="How many clients the run began with; given where each training round takes a "
        "share of them only.",
    )

    founding_names: tuple[Name, ...] | None = Field(
        default=None,
        min_length=1,
        max_length=100_000,
        exclude_if=omitted_if(None),
        description="Of a run of secure sums: its founding clients. Nobody else is in its sums.",
    )

    @model_validator(mode="after")
    def _names_are_of_secure_sums(self) -> RunSpec:
        names = self.founding_names
        if names is None:
            return self
        if self.plan.aggregation != "secure" or len(set(names)) != len(names):
            raise ValueError("founding_names: distinct names, of a run of secure sums")
        return self

    @model_validator(mode="after")
    def _selection_is_among_somebody(self) -> RunSpec:
        selects = self.plan.round.client_fraction < 1.0
        if selects != (self.founding_clients is not None):
            raise ValueError(
                "founding_clients: goes with a plan whose round.client_fraction is below 1"
            )
        if self.founding_clients is not None:
            cohort_size(self.plan.round, self.founding_clients)
        return self

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
        privacy = self.plan.privacy
        return self.last_training_round + int(privacy.validates) + int(privacy.reports)

    @property
    def report_round(self) -> int | None:
        """The plan's last round if it has one for the report."""
        return self.last_round if self.plan.privacy.reports else None

    @property
    def last_training_round(self) -> int:
        return self.sketch_rounds + self.plan.privacy.rounds - 1

    def is_secure(self, round_number: int) -> bool:
        """Whether the round's sum is a secure one. Who joins later is alone: there is no sum."""
        return self.plan.aggregation == "secure" and self.kind(round_number) != "join"

    @property
    def participations(self) -> int:
        """Training rounds of one founding client at most (``core.federation.selection``)."""
        rounds = self.plan.privacy.rounds
        if self.founding_clients is None:
            return rounds
        return participations(self.plan.round, rounds, self.founding_clients)

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
        if round_number == self.report_round:
            return "report"
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
            "report": self.noise.report_multiplier,
            "join": self.noise.join_multiplier,
        }[kind]
        if multiplier is None:
            raise ValueError(f"the run has no noise multiplier for round {round_number} ({kind})")
        secure = self.is_secure(round_number)
        return release(
            noise_multiplier=multiplier,
            sample_rate=privacy.sample_rate if kind == "train" else 1.0,
            unit=privacy.unit,
            steps=privacy.local_steps if kind == "train" else 1,
            discrete=secure or privacy.noise == "discrete",
            collude=self.plan.secure.collude if secure else None,
        )

    def events(self, done: Collection[int] = ()) -> list[PrivacyEvent]:
        """Every event of a founding client if no attempt is lost: of the one that is chosen most
        often, where rounds take a share of the clients. Who joins later has one.

        ``done``: rounds that it has executed; then what is left.
        """
        others = [n for n in range(self.last_round + 1) if self.kind(n) != "train"]
        training = range(self.sketch_rounds, self.last_training_round + 1)
        room = max(0, self.participations - sum(n in training for n in done))
        trains = [n for n in training if n not in done][:room]
        return [self.event(n) for n in sorted({*others, *trains} - set(done))]
