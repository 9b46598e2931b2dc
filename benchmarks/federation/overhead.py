"""What a round costs beside its training: ten real site agents, real worker, long polling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from benchmarks.demo import federation
from benchmarks.demo.sites import Client, write_party
from benchmarks.federation import plans
from benchmarks.federation.room import Room, room
from core.processes import ServiceError, wait_for
from worker.answers import JsonObject

AGENTS, ROUNDS = 10, 20
_PATIENCE_S = 240.0


@dataclass(frozen=True)
class Overhead:
    """Seconds from opening to publishing of each training round; of the sketch; and all of it."""

    rounds: tuple[float, ...]
    sketch: float
    between: tuple[float, ...]  # from publishing to the opening of the next round
    parameters: int

    @property
    def mean(self) -> float:
        """Seconds a round over all of them, the sketch and what lies between included."""
        spent = sum(self.rounds) + self.sketch + sum(self.between)
        return spent / (len(self.rounds) + 1)


def measure(
    step: Callable[[], None],
    *,
    agents: int = AGENTS,
    rounds: int = ROUNDS,
    logs: Path | None = None,
) -> Overhead:
    """``step`` is called for each published round."""
    with room(logs) as here:
        return overhead(_run(here, step, agents, rounds))


def overhead(rounds: Sequence[JsonObject]) -> Overhead:
    """From the rounds of a run in order, the sketch first."""
    times = [(_time(each["opened_at"]), _time(each["published_at"])) for each in rounds]
    lengths = [(published - opened).total_seconds() for opened, published in times]
    gaps = [(after[0] - before[1]).total_seconds() for before, after in pairwise(times)]
    return Overhead(tuple(lengths[1:]), lengths[0], tuple(gaps), plans.parameters("33k"))


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _run(here: Room, step: Callable[[], None], agents: int, rounds: int) -> list[JsonObject]:
    plan = plans.plan("overhead", "33k", rounds=rounds, quorum=agents)
    clients = [
        Client(f"site-{number}", plans.site(f"site-{number}", number), managed=False)
        for number in range(agents)
    ]
    operator, stack = here.operator, here.stack
    _, tokens = federation.enrol(operator, clients, plan, plans.SPACE)
    for client in clients:
        party = write_party(here.folder / client.name, [client], plan, plans.SPACE)
        stack.start_agent(tokens[client.name], party.config, name=f"agent-{client.name}")
    run_id = str(operator.create_run(plan, [client.name for client in clients])["id"])
    _all_polling(here, clients)
    operator.start_run(run_id)
    seen = 0

    def ended() -> JsonObject | None:
        nonlocal seen
        run = operator.run(run_id)
        while seen < int(run["rounds_published"]):
            seen += 1
            step()
        return run if run["state"] in ("completed", "failed") else None

    # Once a second: whoever asks more often is part of what is measured.
    run = wait_for("the run to end", ended, seconds=_PATIENCE_S, check=stack.processes.check,
                   pause_s=1.0)  # fmt: skip
    if run["state"] != "completed":
        raise ServiceError(f"the run has failed: {run['why']}")
    return federation.rounds_of(operator, run_id)


def _all_polling(here: Room, clients: Sequence[Client]) -> None:
    """Until every agent has started: imports of ten processes are no part of a round."""
    started = [here.folder / "logs" / f"agent-{client.name}.log" for client in clients]

    def look() -> bool | None:
        return all("agent_started" in log.read_text() for log in started) or None

    wait_for("the agents to start", look, seconds=_PATIENCE_S, check=here.stack.processes.check)
