"""Figures and targets, from what the parts measured. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

from benchmarks.federation.numbers import percentile
from benchmarks.last_line import Target, at_least, at_most
from benchmarks.synthesis.parts import MANY, SHORT_ROWS, Memory, Rate, Short, Together

RATIOS = {"arrow": 0.8, "parquet": 0.8, "json": 0.5}
SHORT_RATIO = 2.0
MEMORY_GROWTH = 1.1
HEALTH_MS = 50.0
FAIR = 1.25  # slowest of equal streams over the fastest


@dataclass
class Measured:
    rates: list[Rate] = field(default_factory=list)
    short: list[Short] = field(default_factory=list)
    memory: Memory | None = None
    together: Together | None = None


def figures(found: Measured) -> dict[str, float]:
    """Name -> number; only of what was measured."""
    numbers: dict[str, float] = {}
    for rate in found.rates:
        numbers |= {
            f"{rate.kind}-rows-per-s": median(rate.ours),
            f"bare-{rate.kind}-rows-per-s": median(rate.bare),
            f"{rate.kind}-ratio": rate.ratio,
        }
    for one in found.short:
        numbers |= {
            f"{one.kind}-{SHORT_ROWS}-p50-ms": 1e3 * median(one.ours),
            f"{one.kind}-{SHORT_ROWS}-p99-ms": 1e3 * percentile(one.ours, 0.99),
            f"bare-{one.kind}-{SHORT_ROWS}-p50-ms": 1e3 * median(one.bare),
        }
    if (m := found.memory) is not None:
        numbers |= {
            "mib-before": m.before_mib,
            "mib-1e4-rows": m.few_mib,
            "mib-1e7-rows": m.many_mib,
            f"rows-per-s-of-{MANY}": m.rows_per_s,
        }
    if (t := found.together) is not None:
        numbers |= {
            "one-stream-s": t.alone_s,
            "four-streams-s": max(t.seconds),
            "health-p50-ms": 1e3 * percentile(t.health_s, 0.5),
            "health-p99-ms": 1e3 * percentile(t.health_s, 0.99),
            "health-max-ms": 1e3 * max(t.health_s),
        }
    return {name: round(value, 4) for name, value in numbers.items()}


def targets(found: Measured) -> dict[str, Target]:
    made = {f"{rate.kind}-to-bare": at_least(rate.ratio, RATIOS[rate.kind]) for rate in found.rates}
    for one in found.short:
        ratio = median(one.ours) / median(one.bare)
        made[f"{one.kind}-{SHORT_ROWS}-p50-to-bare"] = at_most(ratio, SHORT_RATIO)
    if (m := found.memory) is not None:
        made["memory-growth-1e4-to-1e7"] = at_most(m.many_mib / m.few_mib, MEMORY_GROWTH)
    if (t := found.together) is not None:
        made["four-streams-slowest-to-fastest"] = at_most(max(t.seconds) / min(t.seconds), FAIR)
        made["health-max-ms"] = at_most(1e3 * max(t.health_s), HEALTH_MS)
    return made
