"""Generators between which a run may choose at its end, in the order in which they are preferred.

``guided``     the trained generator, labels by the trained classifier
``generator``  the trained generator alone
``sketch``     the generator that the sketch gave, before any training

Which of them exist follows from the plan. Without a validation round the first is published. The
mode ``paper`` publishes what it trained: asking records once more would be no more private.
"""

from __future__ import annotations

from typing import Literal

from core.federation.plan import Plan

Candidate = Literal["guided", "generator", "sketch"]


def candidates(plan: Plan) -> tuple[Candidate, ...]:
    """The candidates of a plan with training rounds; one or more."""
    if plan.privacy.caveat:
        return ("generator",)
    found: list[Candidate] = []
    trained = plan.model.classifier == "linear" and plan.privacy.classifier_clip_norm > 0.0
    if trained and plan.guidance.labels == "relabel":
        found.append("guided")
    if plan.privacy.clip_norm > 0.0:
        found.append("generator")
    return (*found, "sketch")
