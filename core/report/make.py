"""A report from what is known of a published model. Seconds of work; reads no record."""

from __future__ import annotations

from dataclasses import dataclass

from core.federation.plan import RunSpec
from core.privacy import accounting
from core.receipts.opening import ModelFacts, caveat_of
from core.receipts.receipt import NOT_PRIVATE
from core.report.released import released
from core.report.report import Member, Part, Privacy, Report, Space
from core.report.spending import Reserved, spending
from core.report.synthetic import synthetic
from core.synthesis.sampler import Generator

LOCAL = "fedhypevae agent report"


@dataclass(frozen=True)
class Known:
    """``reserved``: (client, unit, its account's reservations for the run up to this round).
    ``founding``: clients that the run began with; ``joins``: published join rounds up to this one.
    """

    facts: ModelFacts
    members: tuple[Member, ...]
    reserved: tuple[tuple[str, str, tuple[Reserved, ...]], ...]
    founding: frozenset[str]
    joins: int


def make(known: Known, generator: Generator) -> Report:
    """The report of the model that ``generator`` was loaded from."""
    spec, facts, frame = generator.spec, known.facts, generator.frame
    caveat = caveat_of(spec, facts.noise_mode, generator.caveat)
    withdrawn = frozenset(facts.withdrawn)
    founding = sum(name in known.founding for name in frame.clients)
    space = spec.space
    return Report(
        label=NOT_PRIVATE if caveat else "",
        caveat=caveat,
        model=facts.model,
        space=Space(
            name=space.name,
            backbone=space.backbone,
            preprocessing=space.preprocessing,
            dim=space.dim,
            classes=space.classes,
        ),
        rounds=tuple(spec.kind(number) for number in range(spec.last_round + 1)),
        joins=known.joins,
        privacy=Privacy(
            epsilon_target=spec.plan.privacy.epsilon,
            delta=spec.plan.privacy.delta,
            relation=facts.relation,
            noise_mode=facts.noise_mode,
            accountant=accounting.ACCOUNTANT,
            accountant_version=f"{accounting.PACKAGE} {accounting.package_version()}",
            clients=spending(spec, known.reserved),
        ),
        members=tuple(known.members),
        released=released(spec, frame, founding, withdrawn),
        synthetic=synthetic(generator, withdrawn),
        parts=_parts(spec),
    )


def _parts(spec: RunSpec) -> tuple[Part, ...]:
    sketch = spec.event(0)
    no_budget = (
        "It needs the sites' records, and this run's plan set no budget aside for it. Nothing was "
        "measured on any record, so nothing can be said."
    )
    return (
        Part(
            title="Privacy spent",
            source="ledger",
            price="nothing: recomputed from the reservations that the ledger holds",
        ),
        Part(title="Who took part", source="public", price="nothing: no record is behind it"),
        Part(
            title="Shares of classes and units of sites",
            source="released with noise",
            price=f"the sketch round, one Gaussian release of each site with noise multiplier "
            f"{sketch.noise_multiplier:.3g}; its ε is part of the ε above",
        ),
        Part(
            title="Labels, picture and differences of synthetic rows",
            source="post-processing",
            price="nothing: made from the published model alone",
            why="It shows what the model makes, not whether that is like the records.",
        ),
        Part(
            title="Accuracy on real records",
            source="missing",
            price="a share of the privacy budget",
            why=no_budget,
        ),
        Part(
            title="Likeness to real records",
            source="missing",
            price="a share of the privacy budget",
            why=no_budget,
        ),
        Part(
            title="Attacks with held-out records",
            source="missing",
            price="a share of the privacy budget",
            why=no_budget,
        ),
        Part(
            title="Neighbours and pictures of real records",
            source="missing",
            price="cannot be bought: no noise makes them useful and private at once",
            why=f"A site can see them for itself, in a file that never leaves it ('{LOCAL}').",
        ),
    )
