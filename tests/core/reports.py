"""A report with everything in it, of a small simulated run; names that are hostile to HTML."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from core.federation.plan import Noise, RunSpec
from core.privacy.events import PrivacyEvent
from core.privacy.noise import seeded
from core.receipts.opening import ModelFacts
from core.receipts.receipt import Model
from core.report.make import Known
from core.report.report import Member
from core.report.spending import Reserved
from core.report.statistics import Estimate, Shares, SiteStatistics, Statistics
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


def statistics(classes: int = 5, *, epsilon_lower: float = 0.4) -> Statistics:
    """What a report round might have released: three sites, site-c without any."""
    names = tuple(f"class-{i}" for i in range(classes))
    fall = np.array([0.02, 0.05, 0.1, 0.2, 0.25, 0.18, 0.1, 0.05, 0.03, 0.01, 0.01, 0.0])
    spot = np.exp(-0.5 * np.hypot(*np.meshgrid(np.arange(12) - 5.5, np.arange(12) - 4.0)) ** 2 / 6)

    def site(client: str, better: float) -> SiteStatistics:
        diagonal = np.eye(classes) * 0.16 + 0.01
        noise = np.random.default_rng(len(client)).normal(0.0, 0.004, (classes, classes))
        map_noise = np.random.default_rng(7).normal(0.0, 0.0015, (12, 12))
        return SiteStatistics(
            client=client,
            held_out=Estimate(120.0, 6.0),
            members=Estimate(1080.0, 6.0),
            accuracy=Estimate(0.78 + better, 0.03),
            recall=tuple(Estimate(0.6 + 0.07 * i, 0.05) for i in range(classes)),
            class_shares=Shares(np.full(classes, 1 / classes), np.full(classes, 0.01)),
            confusion=Shares(diagonal + noise, np.full((classes, classes), 0.004)),
            domains={
                "site-a": Estimate(0.8 + better, 0.04),
                "site-b": Estimate(0.7, 0.04),
                "site-c": Estimate(0.66, 0.04),
            },
            mmd2=Estimate(0.004 - 0.01 * better, 0.003),
            inside=Estimate(0.86 + better, 0.04),
            coverage=Estimate(0.91, 0.05),
            nearest=Shares(fall, np.full(12, 0.01)),
            nearest_members=Shares(np.roll(fall, 0) + 0.002, np.full(12, 0.004)),
            ratio=Shares(np.full(9, 1 / 9), np.full(9, 0.01)),
            ratio_members=Shares(np.full(9, 1 / 9), np.full(9, 0.01)),
            closer=Estimate(0.05 + better / 2, 0.02),
            closer_members=Estimate(0.055, 0.008),
            median_ratio=Estimate(0.93, 0.01),
            median_ratio_members=Estimate(0.925, 0.006),
            attack_auc=Estimate(0.51 + better / 3, 0.02),
            attack_null_sd=0.015,
            epsilon_lower=epsilon_lower,
            map=Shares(spot / spot.sum() + map_noise, np.full((12, 12), 0.0015)),
        )

    return Statistics(
        classes=names,
        noise_std=2.0,
        sensitivity=1.0,
        distance_thresholds=np.linspace(0.3, 1.2, 11),
        ratio_thresholds=np.linspace(0.5, 0.98, 8),
        synthetic_nearest=np.array([0.01, 0.04, 0.05, 0.15, 0.25, 0.25, 0.15, 0.09, 0.01, 0, 0, 0]),
        synthetic_ratio=np.full(9, 1 / 9),
        synthetic_map=spot / spot.sum(),
        map_edges=np.stack([np.linspace(-1, 1, 13)] * 2),
        synthetic_rows=4_096,
        pooled=site("", 0.0),
        sites=(site("site-a", 0.04), site("site-b", -0.06)),
        missing=("site-c",),
    )
