"""Many rounds with twenty clients while processes are killed at random: nothing is lost or doubled.

Every client is a real one: eighteen sites with an agent process each, two behind a Celery worker.
Who is killed, and when in a round, comes from a seed, which is printed; where exactly the kill
falls is the machine's. ``make soak`` plays 300 rounds; without ``SOAK_ROUNDS``, it is 6.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.demo.memory import PeakMemory
from tests import ledgers
from tests.faults.crowd import AGENTS, CLIENTS, Crowd, crowd_in
from tests.faults.world import COORDINATOR, SUM, TRAIN
from tests.ledgers import lost_of

pytestmark = [pytest.mark.soak, pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1_800)]

ROUNDS = int(os.environ.get("SOAK_ROUNDS", "6"))
SEED = int(os.environ.get("SOAK_SEED", str(secrets.randbelow(10**6))))
_GAP = (2, 7)  # rounds between two kills
_LATEST_S = 1.0  # how far into a round a kill falls, at most
# How often each kind dies: dealt like cards, so that a long soak plays every kind.
_WEIGHTS = {"agent": 8, TRAIN: 3, SUM: 3, COORDINATOR: 3, "broker emptied": 2, "postgres": 2}
_TELL = 25  # rounds between two lines of progress
_STUCK_S = 120.0  # a round may take so long before the soak says that it hangs


def _strike(crowd: Crowd, kind: str, chance: random.Random) -> Callable[[], None]:
    """Kill one of this kind; what starts it again."""
    if kind == "broker emptied":
        crowd.broker.crash()
        return crowd.broker.start
    if kind == "postgres":
        crowd.database.crash(chance.choice([signal.SIGKILL, signal.SIGQUIT]))
        return crowd.database.start
    name = chance.choice(AGENTS) if kind == "agent" else kind
    crowd.processes.kill(name)
    return lambda: crowd.start(name)


def _figures(kills: Counter[str], lost: int, seconds: float, peak: int) -> str:
    rows = {
        "rounds": ROUNDS,
        "clients": len(CLIENTS),
        "kills": sum(kills.values()),
        **{f"  {kind}": kills[kind] for kind in _WEIGHTS},
        "updates accepted": ROUNDS * len(CLIENTS),
        "reservations lost": lost,
        "seconds": round(seconds, 1),
        "seconds a round": round(seconds / ROUNDS, 2),
        "memory of all processes at its peak, MB": round(peak / 1e6),
        "seed": SEED,
    }
    return "\n".join(f"  {name:<42}{value:>10}" for name, value in rows.items())


def _say(capsys: pytest.CaptureFixture[str], text: str) -> None:
    """To the terminal at once, whatever pytest does with output."""
    with capsys.disabled():
        sys.stdout.write(f"\n{text}\n")
        sys.stdout.flush()


def test_soak(
    service_folder: Path, no_fhv_environment: None, capsys: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(SEED)
    kills: Counter[str] = Counter()
    deck: list[str] = []
    with crowd_in(service_folder) as crowd, PeakMemory(every_s=5.0) as memory:
        memory.add(crowd.database.pid)
        run_id = crowd.begin(ROUNDS)
        _say(capsys, f"soak of {ROUNDS} rounds, seed {SEED}")
        began, done, next_kill = time.monotonic(), 0, chance.randint(*_GAP)
        moved = began
        while done < ROUNDS:
            published = crowd.published(run_id)
            if published > done:
                if published // _TELL > done // _TELL:
                    so_far = f"{time.monotonic() - began:.0f} s, {sum(kills.values())} kills"
                    _say(capsys, f"{published:>4} of {ROUNDS} rounds, {so_far}")
                done, moved = published, time.monotonic()
            assert time.monotonic() - moved < _STUCK_S, crowd.situation(run_id)
            crowd.processes.check()
            if done < next_kill or done >= ROUNDS:
                time.sleep(0.1)
                continue
            time.sleep(chance.uniform(0.0, _LATEST_S))
            if not deck:
                deck = [kind for kind, count in _WEIGHTS.items() for _ in range(count)]
                chance.shuffle(deck)
            kind = deck.pop()
            again = _strike(crowd, kind, chance)
            kills[kind] += 1
            again()
            memory.add(crowd.database.pid)
            next_kill = done + chance.randint(*_GAP)
        seconds = time.monotonic() - began
        accounts = ledgers.check_completed(crowd.operator, run_id, crowd.members, ROUNDS)
        remade = ledgers.check_sums(crowd.database.url, crowd.store_url, run_id, accounts)
        assert remade == ROUNDS
        crowd.processes.check()
        _say(capsys, _figures(kills, lost_of(accounts), seconds, memory.peak))
    assert sum(kills.values()) >= ROUNDS // (_GAP[1] + 3)
