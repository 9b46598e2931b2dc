"""A report from what is known of a published model. Seconds of work; reads no record."""

from __future__ import annotations

from dataclasses import dataclass

from core.federation.plan import RunSpec
from core.federation.secure_sum import noise_gain
from core.privacy import accounting
from core.receipts.opening import ModelFacts, caveat_of
from core.receipts.receipt import NOT_PRIVATE
from core.report.measured import measured
from core.report.parts import parts
from core.report.released import released
from core.report.report import Member, Privacy, Report, Space
from core.report.spending import Reserved, spending
from core.report.statistics import Statistics
from core.report.synthetic import synthetic
from core.synthesis.sampler import Generator


@dataclass(frozen=True)
class Known:
    """``reserved``: (client, unit, its account's reservations for the run up to this round).
    ``founding``: whose first sketches the model holds, by the names that it has for them;
    ``joins``: published join rounds up to this one; ``summed``: of a secure sketch, how many
    clients it asked and how many are in it.
    """

    facts: ModelFacts
    members: tuple[Member, ...]
    reserved: tuple[tuple[str, str, tuple[Reserved, ...]], ...]
    founding: frozenset[str]
    joins: int
    summed: tuple[int, int] | None = None


def make(known: Known, generator: Generator, statistics: Statistics | None = None) -> Report:
    """The report of the model that ``generator`` was loaded from; ``statistics`` as the weights
    file of the model holds them.
    """
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
            views=facts.views,
        ),
        members=tuple(known.members),
        released=released(spec, frame, founding, withdrawn, _gain(spec, known)),
        synthetic=synthetic(generator, withdrawn),
        measured=None if statistics is None else measured(statistics, withdrawn),
        parts=parts(spec, statistics is not None),
    )


def _gain(spec: RunSpec, known: Known) -> float:
    """Of the noise in a secure sketch. The promised noise would make errors look smaller than they
    are.
    """
    return 1.0 if known.summed is None else noise_gain(spec, 0, *known.summed)
