"""Schemathesis over the whole OpenAPI document of the real coordinator, as every scope.

Good data and bad, each operation by itself and in sequences. No answer is a 5xx, none has a status
or a form that is not documented, bad data is refused, good data is taken. What is excused is in
``tests/api/fuzzing.py``, each with its reason.

FUZZ_SCALE (1) multiplies examples and seconds, FUZZ_SEED (1) begins elsewhere: ``make fuzz``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from api import access
from api.config import Settings
from api.db.models import SCOPES
from api.embedded import free_port
from core.federation import rule
from tests.api.fuzzing import Findings, Server, furnished, newcomer, run
from tests.api.support import calibrate
from tests.conftest import empty

SCALE = float(os.environ.get("FUZZ_SCALE", "1"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
pytestmark = pytest.mark.timeout(120 + 120 * SCALE)


@pytest.fixture(scope="module")
def server(worker_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all tests here: they end in any state, and begin in any."""
    empty(worker_database_url)
    settings = Settings(
        env="prod",
        token_pepper="a pepper for tests only",
        database_url=worker_database_url,
        object_store_url=f"file://{tmp_path_factory.mktemp('objects')}",
        grace_s=0.0,
        database_pool=5,
        max_wait_s=0.2,  # of long polls
        synthesis_max_rows=2_000,
        synthesis_job_rows=1_000,
        synthesis_requests_per_minute=1_000_000,
        failures_per_minute=1_000_000,  # every operation is also asked without a good token
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rule, "calibrate", calibrate)
        with furnished(settings, free_port()) as made:
            yield made


def _token(server: Server, scope: str) -> str:
    """A new one for every run: an administrator's run may revoke its own."""
    if scope == "client":  # an administrator's run may have revoked the clients that were there
        return server.do(newcomer(server.coordinator))
    return server.do(server.coordinator.token(scope))


def _passes(found: Findings, what: str, cases: int) -> None:
    print(  # noqa: T201 (the counts are what a long run is for)
        f"\n{what}: {sum(found.cases.values())} cases of {len(found.operations)} operations, "
        f"{dict(found.cases)}, statuses {dict(sorted(found.statuses.items()))}, "
        f"excused {sum(found.excused.values())}: {dict(found.excused)}"
    )
    assert not found.failures, found.told()
    assert not found.errors, found.told()
    asked = sum(found.cases.values())
    assert asked >= cases, "hardly anything was asked"
    assert found.statuses[401] < asked / 2, "the token was of no use"


def _scaled(number: float) -> int:
    return max(1, round(number * SCALE))


# Each good plan is calibrated, which takes a second: alone, or nothing else is asked.
_CALIBRATE = ("createRun", "planBudget")


def _admitted(server: Server, scope: str, *, plans: bool = False) -> list[str]:
    """Ids of the operations that let a scope in; of an administrator: all."""
    return [
        one.id
        for one in access.operations(server.app)
        if (one.id in _CALIBRATE) == plans
        and (scope == "admin" or one.scopes is None or scope in one.scopes)
    ]


@pytest.mark.parametrize(
    ("phases", "plans", "most", "seconds", "cases"),
    [
        (("examples", "coverage"), False, 3, 25, 300),
        (("fuzzing",), False, 6, 8, 40),
        (("stateful",), False, 8, 6, 20),
        (("coverage", "fuzzing"), True, 4, 6, 10),
    ],
    ids=["boundaries", "fuzzing", "sequences", "plans"],
)
def test_an_administrator_asks_everything(
    server: Server, phases: tuple[str, ...], plans: bool, most: int, seconds: int, cases: int
) -> None:
    found = run(
        server,
        _token(server, "admin"),
        seed=SEED,
        most=_scaled(most),
        phases=phases,
        operations=_admitted(server, "admin", plans=plans),
        seconds=_scaled(seconds),
    )
    _passes(found, f"admin, {' '.join(phases)}{' of plans' if plans else ''}", cases)


def test_every_other_scope_asks_what_it_may(server: Server) -> None:
    for scope in SCOPES:
        if scope == "admin":
            continue
        found = run(
            server,
            _token(server, scope),
            seed=SEED,
            most=_scaled(3),
            phases=("examples", "fuzzing", "stateful"),
            operations=_admitted(server, scope),
            seconds=_scaled(5),
        )
        _passes(found, scope, 20)
