"""A report with everything in it, of a small simulated run; names that are hostile to HTML."""

from __future__ import annotations

from dataclasses import replace

from core.federation.plan import Noise, RunSpec
from core.privacy.events import PrivacyEvent
from core.privacy.noise import seeded
from core.receipts.opening import ModelFacts
from core.receipts.receipt import Model
from core.report.make import Known
from core.report.report import Member
from core.report.spending import Reserved
from core.simulation import SimulatedSite, simulate
from core.synthesis.sampler import Generator
from tests.core import worlds

CLIENTS = ("site-a", "site-b", "site-c")
HOSTILE = '<script>alert("x")</script>'


def generator(rounds: int = 3, classes: int = 5) -> Generator:
    """Three sites that differ by a shift, with little noise."""
    sites = [
        SimulatedSite(name, worlds.clusters(300, classes=classes, seed=i, shift=0.05 * i))
        for i, name in enumerate(CLIENTS)
    ]
    noise = Noise(sketch_multiplier=0.3, train_multiplier=1.5)
    spec = worlds.spec(privacy={"rounds": rounds}, noise=noise, classes=classes)
    return simulate(spec, sites, noise=seeded(0), secret=worlds.SECRET).generator


def facts(spec: RunSpec) -> ModelFacts:
    model = Model(
        run_id=spec.run_id,
        run="first",
        round=spec.last_round,
        plan_digest=spec.digest,
        frame_digest="sha256:" + "a" * 64,
        weights_digest="sha256:" + "b" * 64,
    )
    return ModelFacts(model, (), "add-remove-one-unit", "csprng")


def known(spec: RunSpec) -> Known:
    """site-b has lost an attempt of round 1; site-c has left, saying something hostile."""

    def rows(*lost: int) -> tuple[Reserved, ...]:
        events: list[tuple[int, PrivacyEvent, bool]] = []
        for number in range(spec.last_round + 1):
            events += [(number, spec.event(number), True)] * (number in lost)
            events.append((number, spec.event(number), False))
        return tuple(Reserved(*one) for one in events)

    member = Member(
        client="site-a",
        domain="north",
        state="taking-part",
        why="",
        accepted=spec.last_round + 1,
        has_code=True,
    )
    change = {"client": "site-c", "state": "left", "why": HOSTILE}
    return Known(
        facts=facts(spec),
        members=(
            member,
            member.model_copy(update={"client": "site-b", "domain": None}),
            member.model_copy(update=change),
        ),
        reserved=(
            ("site-a", "record", rows()),
            ("site-b", "record", rows(1)),
            ("site-c", "record", rows()),
        ),
        founding=frozenset(CLIENTS),
        joins=0,
    )


def stamped(known_: Known) -> Known:
    """The same of a model whose noise came from a seed."""
    return replace(known_, facts=replace(known_.facts, noise_mode="seeded"))
