"""Secrets of secure sums that were wiped: no byte of the ledger's files holds them any more."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
import structlog

from core.federation.secure_sum import session_of
from core.secagg.participant import State
from core.training.compute import Compute
from tests.worker.sum_world import NAMES, secure_spec
from tests.worker.support import Script, make_site_config
from worker.agent import loop, sum_states
from worker.agent.site import LEDGER_FILE, Site
from worker.agent.sum_states import Sums
from worker.config import ClientConfig

SESSION = session_of(secure_spec(), 0, NAMES)
LATER = SESSION.model_validate(SESSION.model_dump() | {"round_number": 1})
SEED, SEALING, MASKING = "5e" * 32, "a1" * 32, "b2" * 32
OLD = "2020-01-01T00:00:00.000+00:00"


def state(**changes: str) -> State:
    return State.model_validate(
        {"seed": SEED, "sealing_key": SEALING, "masking_key": MASKING} | changes
    )


def other() -> State:
    return state(seed="00" * 32, sealing_key="11" * 32, masking_key="22" * 32)


def held(folder: Path) -> set[str]:
    """Which of the secrets stand in the ledger's file or beside it, as a thief would look."""
    whole = b"".join(path.read_bytes() for path in folder.glob(f"{LEDGER_FILE}*"))
    return {secret for secret in (SEED, SEALING, MASKING) if secret.encode() in whole}


def begin_the_next_round(site: Site) -> None:
    site.ledger.sums.keep(LATER, "site-a", other())


def open_the_sum(site: Site) -> None:
    site.ledger.sums.wipe("run-1", 0, "site-a")


def wait_for_long(site: Site) -> None:
    site.ledger._db.execute("UPDATE sum_state SET at = ?", (OLD,))
    site.ledger.sums.wipe_old()


def restore(site: Site) -> None:
    site.ledger.mark_restored("2026-03-01T00:00:00Z")


WAYS = [begin_the_next_round, open_the_sum, wait_for_long, restore]


@pytest.mark.parametrize("way", WAYS)
def test_what_was_wiped_is_in_no_file_while_the_ledger_is_open(
    site: Site, state_dir: Path, way: Callable[[Site], None]
) -> None:
    for _ in range(2):  # once more before each message
        site.ledger.sums.keep(SESSION, "site-a", state())
    assert held(state_dir) == {SEED, SEALING, MASKING}
    way(site)
    assert held(state_dir) == set()


@pytest.mark.parametrize("way", WAYS)
def test_defect_without_a_checkpoint_the_log_holds_them(
    site: Site, state_dir: Path, way: Callable[[Site], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The known wrong version trusts ``secure_delete``, which overwrites no frame of the log."""
    monkeypatch.setattr(Sums, "checkpoint", lambda _: None)
    for _ in range(2):
        site.ledger.sums.keep(SESSION, "site-a", state())
    way(site)
    assert held(state_dir) == {SEED, SEALING, MASKING}


def test_a_reader_delays_it_and_the_next_wipe_does_it(site: Site, state_dir: Path) -> None:
    site.ledger.sums.keep(SESSION, "site-a", state())
    with closing(sqlite3.connect(state_dir / LEDGER_FILE)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM sum_state").fetchone()
        began = time.monotonic()
        open_the_sum(site)
        assert time.monotonic() - began < 10, "nobody waits for a reader as for a writer"
        kept = site.ledger.sums.find("run-1", 0, "site-a")
        assert kept is not None
        assert kept.state is None
        assert held(state_dir) != set()
        reader.execute("COMMIT")
    (patience,) = site.ledger._db.execute("PRAGMA busy_timeout").fetchone()
    assert patience == 60_000, "of everything else"
    site.ledger.sums.wipe_old()
    assert held(state_dir) == set()


@pytest.fixture
def _quiet() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize("daily", [True, False])
@pytest.mark.usefixtures("_quiet")
def test_an_agent_that_runs_for_months_wipes_what_is_old(
    state_dir: Path, config: ClientConfig, monkeypatch: pytest.MonkeyPatch, daily: bool
) -> None:
    """The known wrong version wipes when it starts, and never again."""
    monkeypatch.setattr(sum_states, "_DAY_S", 0.05 if daily else 3600.0)
    script, stopper = Script(), loop.Stopper()
    polls = 0

    def before(request: httpx.Request) -> httpx.Response | None:
        nonlocal polls
        if request.url.path.endswith("/work"):
            polls += 1
            if polls == 2:  # it has started, and looked at what was left
                with Site.open(state_dir) as site:
                    site.ledger.sums.keep(SESSION, "site-a", state())
                    site.ledger._db.execute("UPDATE sum_state SET at = ?", (OLD,))
            if polls > 2 and (polls > 40 or not held(state_dir)):
                stopper.event.set()
            time.sleep(0.01)
        return None

    script.before = before
    loop.run_agent(
        script.client(), make_site_config(state_dir, config), compute=Compute(device="cpu"),
        poll_s=0.0, stopper=stopper,
    )  # fmt: skip
    assert (held(state_dir) == set()) is daily
