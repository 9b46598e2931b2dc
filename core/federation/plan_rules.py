"""What the parts of a plan must agree on, beyond what each part asks for by itself.

Each raises ``ValueError`` whose message begins with the field to mend.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING

from core.federation.privacy_plan import NO_GUARANTEE
from core.federation.robust import DEFAULT_TRIM_SHARE, trim_count
from core.federation.secure_plan import SecurePlan

if TYPE_CHECKING:
    from core.federation.plan import Plan


def paper_mode(plan: Plan) -> None:
    """The mode ``paper`` is for simulations of what its authors describe."""
    privacy, model = plan.privacy, plan.model
    if privacy.mode != "paper":
        return
    if plan.purpose != "simulation":
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
    if privacy.noise != "continuous":
        raise ValueError(
            "privacy.noise: mode 'paper' draws float64 noise as its authors do; leave it out"
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
    if plan.round.client_fraction < 1.0:
        raise ValueError("round.client_fraction: mode 'paper' is of all clients; leave it out")
    if plan.aggregation != "plain":
        raise ValueError("aggregation: mode 'paper' sums plainly; leave it out")


def client_selection(plan: Plan) -> None:
    """A share of the clients is chosen for training rounds."""
    if plan.round.client_fraction < 1.0 and plan.privacy.rounds == 0:
        raise ValueError(
            "round.client_fraction: acts in training rounds only; set privacy.rounds > 0 or "
            "leave it out"
        )


def trimming(plan: Plan) -> None:
    """In every round that may be published something is trimmed."""
    if plan.aggregation != "trimmed-mean":
        if plan.trim_share != DEFAULT_TRIM_SHARE:
            raise ValueError("trim_share: belongs to aggregation = 'trimmed-mean'")
        return
    if plan.privacy.rounds == 0:
        raise ValueError(
            "aggregation: 'trimmed-mean' is of training rounds; set privacy.rounds > 0 or "
            "leave it out"
        )
    if trim_count(plan.trim_share, plan.round.quorum) < 1:
        least = math.ceil(1 / Fraction(repr(plan.trim_share)))
        raise ValueError(
            f"trim_share: {plan.trim_share:g} of {plan.round.quorum} updates is none, and a "
            f"round may have no more than its quorum; set round.quorum to {least} or more, or "
            "a larger trim_share"
        )


def report(plan: Plan) -> None:
    """What nobody may serve needs no report to sites."""
    if plan.privacy.reports and plan.privacy.caveat:
        raise ValueError(
            f"privacy.report_precision: mode 'paper' has {plan.privacy.caveat}, so its units are "
            "asked nothing more; leave it out"
        )


def secure_sums(plan: Plan) -> None:
    """The coordinator learns sums only: what needs a single client's update is off."""
    if plan.aggregation != "secure":
        if plan.secure != SecurePlan():
            raise ValueError("secure: belongs to aggregation = 'secure'; leave it out")
        return
    if plan.purpose == "production" and plan.secure.collude < 1:
        raise ValueError(
            "secure.collude: a client that looks at the sum knows its own noise, so it counts as "
            "one of those that need not be trusted; set 1 or more"
        )
    off = (
        (plan.privacy.reports, "privacy.report_precision", "the report is of single clients"),
        (plan.round.client_fraction < 1.0, "round.client_fraction", "sums are of all clients"),
        (
            plan.privacy.local_steps > 1,
            "privacy.local_steps",
            "a client's next step would need its own noised sum",
        ),
        (plan.model.codes == "trained", "model.codes", "a trained code is a single client's"),
        (plan.model.encoder == "local", "model.encoder", "a local encoder is a single client's"),
    )
    for wrong, field, why in off:
        if wrong:
            raise ValueError(f"{field}: has no place beside aggregation = 'secure': {why}")
