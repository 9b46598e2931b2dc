"""Figures and targets, from what the parts measured. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import mean, median

from benchmarks.federation.ingest import Ingest
from benchmarks.federation.overhead import Overhead
from benchmarks.federation.scaling import Series
from benchmarks.federation.thousand import Round
from benchmarks.last_line import Target, at_least, at_most

RATIO = 0.5
ROUND_S = 1.0
P99_MS = 50.0
API_MIB = 500.0
MEMORY_GROWTH = 1.1  # peak of a sum of many clients over that of few
LINEAR_R2 = 0.95


@dataclass
class Measured:
    """The parts that were run."""

    overhead: Overhead | None = None
    ingest: list[Ingest] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)  # fewest clients first
    series: list[Series] = field(default_factory=list)


def kind(one: Ingest) -> str:
    """``130kB``, ``5MB``."""
    return f"{one.size / 1e6:.0f}MB" if one.size >= 1e6 else f"{10 * round(one.size / 1e4)}kB"


def figures(found: Measured) -> dict[str, float]:
    """Name -> number; only of what was measured."""
    numbers: dict[str, float] = {}
    if (o := found.overhead) is not None:
        numbers |= {
            "round-s": o.mean,
            "round-s-median": median(o.rounds),
            "round-s-longest": max((o.sketch, *o.rounds)),
            "round-s-between": mean(o.between),
        }
    for one in found.ingest:
        numbers |= {
            f"ingest-{kind(one)}-per-s": median(one.ours),
            f"bare-{kind(one)}-per-s": median(one.bare),
            f"ingest-{kind(one)}-ratio": one.ratio,
            f"ingest-{kind(one)}-cpu-ms": 1e3 * one.ours_cpu,
            f"bare-{kind(one)}-cpu-ms": 1e3 * one.bare_cpu,
        }
    for r in found.rounds:
        numbers |= {
            f"updates-per-s@{r.clients}": r.updates_per_s,
            f"handing-out-s@{r.clients}": r.handing_s,
            f"summing-s@{r.clients}": r.summing_s,
            f"poll-p99-ms@{r.clients}": r.outside_ms,
            f"poll-p99-ms-while-summing@{r.clients}": r.inside_ms,
            f"poll-cpu-ms@{r.clients}": r.poll_cpu_ms,
            f"worker-mib@{r.clients}": r.worker_mib,
            f"api-mib@{r.clients}": r.api_mib,
        }
    for series in found.series:
        numbers |= {
            f"r2-over-{series.over}": series.line.r2,
            f"cpu-s-per-{_UNIT[series.over]}": series.line.slope * _PER[series.over],
        }
    return {name: round(value, 4) for name, value in numbers.items() if math.isfinite(value)}


_UNIT = {"clients": "client", "parameters": "million-parameters"}
_PER = {"clients": 1.0, "parameters": 1e6}


def targets(found: Measured) -> dict[str, Target]:
    made: dict[str, Target] = {}
    if found.overhead is not None:
        made["round-overhead-s"] = at_most(found.overhead.mean, ROUND_S)
    for one in found.ingest:
        made[f"ingest-{kind(one)}-to-bare"] = at_least(one.ratio, RATIO)
    if found.rounds:
        largest = found.rounds[-1]
        made["api-mib"] = at_most(largest.api_mib, API_MIB)
        if largest.polls:
            made["poll-p99-ms"] = at_most(largest.outside_ms, P99_MS)
        if len(found.rounds) > 1:
            growth = largest.worker_mib / found.rounds[0].worker_mib
            made["sum-memory-growth"] = at_most(growth, MEMORY_GROWTH)
    for series in found.series:
        made[f"linear-in-{series.over}"] = at_least(series.line.r2, LINEAR_R2)
    return made
