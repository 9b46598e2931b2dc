"""Which founding clients take part in a training round: a public, balanced pseudo-random choice.

M clients in the run's order stand in a circle that a hash has shuffled. Each training round takes
the next k of them, k = max(quorum, ceil(client_fraction * M)). When a whole number of turns is
done (after M / gcd(k, M) rounds), the circle is shuffled anew. So in T rounds nobody is chosen more
than ceil(T k / M) times, and somebody is: that is the number for which noise is calibrated. Whoever
knows the plan, the run's id and M computes the same choice, on any machine.

No privacy is claimed from the choice itself: it is public, so an attacker knows in which rounds a
client's records were used, and amplification by subsampling needs that to be secret. A client pays
for each round in which it trains like in a run of all clients, only for fewer of them. Rounds other
than training rounds are of all clients.
"""

from __future__ import annotations

import hashlib
import json
import math
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core.federation.plan import RoundPlan, RunSpec


def cohort_size(rules: RoundPlan, clients: int) -> int:
    """k of M = ``clients``. Raises ``ValueError`` for a quorum above M."""
    if rules.quorum > clients:
        raise ValueError(
            f"plan.round.quorum: {rules.quorum} cannot be reached by {clients} clients"
        )
    # Of the decimal that was written: 0.1 of 30 clients are 3, not 4.
    return max(rules.quorum, math.ceil(Fraction(repr(rules.client_fraction)) * clients))


def participations(rules: RoundPlan, rounds: int, clients: int) -> int:
    """In how many of the T = ``rounds`` training rounds the most often chosen client takes part."""
    return -(-rounds * cohort_size(rules, clients) // clients)


def selected(spec: RunSpec, clients: int, round_number: int) -> tuple[int, ...]:
    """Positions, ascending, of the founding clients that take part in a round of the plan.

    ``clients``: M, how many founding clients the run has; positions are those of the run's list,
    from 0. Raises ``ValueError`` for a round that the plan does not have (a join has members of
    its own), or if M is not that of the specification.
    """
    kind = spec.kind(round_number)
    if kind == "join":
        raise ValueError(f"round {round_number} is a join: its members are those who were asked")
    if spec.founding_clients is None:
        return tuple(range(clients))
    if clients != spec.founding_clients:
        raise ValueError(f"the specification is for {spec.founding_clients} clients, not {clients}")
    if kind != "train":
        return tuple(range(clients))
    size = cohort_size(spec.plan.round, clients)
    turn, place = divmod(round_number - spec.sketch_rounds, clients // math.gcd(size, clients))
    circle = _circle(spec.run_id, spec.plan.seed, clients, turn)
    return tuple(sorted(circle[(place * size + step) % clients] for step in range(size)))


@lru_cache(maxsize=64)
def _circle(run_id: str, seed: int, clients: int, turn: int) -> tuple[int, ...]:
    """Positions in the order of a hash: the same everywhere, as no library's shuffle promises."""
    key = json.dumps(["client-selection", run_id, seed, clients, turn]).encode()
    return tuple(
        sorted(
            range(clients),
            key=lambda position: hashlib.sha256(key + position.to_bytes(8, "big")).digest(),
        )
    )
