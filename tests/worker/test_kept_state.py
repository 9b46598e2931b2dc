"""What clients keep between rounds: written with the commit, counted once accepted, immutable."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from core import data
from core.training import local
from tests.worker.killed_site import local_encoder_order
from tests.worker.support import Script, make_order, problem
from worker.agent import schema
from worker.agent.records import ACCEPTED, AttemptKey, Entry
from worker.agent.site import LEDGER_FILE, Site
from worker.config import ClientConfig
from worker.errors import SiteStateError
from worker.execution import Outcome, perform

BODY, KEPT = b"noised bytes", b"noised state"
LEDGER_V1 = Path(__file__).with_name("ledger_v1.sql")


def anything(_: list[Entry]) -> None:
    """A check that lets everything pass."""


def committed(
    site: Site, config: ClientConfig, number: int, kept: bytes | None, attempt: int = 1
) -> str:
    """Reserve and commit an attempt; the update's id."""
    order = make_order(round_number=number, attempt=attempt)
    site.ledger.reserve(order, config, anything)
    return site.ledger.commit(AttemptKey.of(order), BODY, kept).update_id


def key(number: int) -> AttemptKey:
    return AttemptKey("run-1", number, 1, "site-a")


def left(site: Site) -> list[tuple[int, int]]:
    rows = site.ledger._db.execute("SELECT round, attempt FROM kept ORDER BY round, attempt")
    return [(row[0], row[1]) for row in rows]


def test_it_counts_once_the_update_was_accepted(site: Site, config: ClientConfig) -> None:
    update = committed(site, config, 1, KEPT)
    assert site.ledger.kept(key(2)) is None
    site.ledger.delivered(update, ACCEPTED)
    assert site.ledger.kept(key(2)) == KEPT
    assert site.ledger.kept(key(7)) == KEPT  # rounds that were missed
    assert site.ledger.kept(key(1)) is None  # a round does not begin with its own end
    assert site.ledger.kept(key(2)._replace(client="site-b")) is None
    assert site.ledger.kept(key(2)._replace(run_id="run-2")) is None


@pytest.mark.parametrize("answer", ["round-closed", "receipt-mismatch", "update-noise-implausible"])
def test_a_refused_updates_state_never_counts(
    site: Site, config: ClientConfig, answer: str
) -> None:
    site.ledger.delivered(committed(site, config, 1, KEPT), ACCEPTED)
    refused = committed(site, config, 2, b"of a refused update")
    site.ledger.delivered(refused, answer)
    site.ledger.delivered(refused, ACCEPTED)  # the first answer stands
    assert site.ledger.kept(key(3)) == KEPT
    assert left(site) == [(1, 1)]


def test_a_lost_attempt_has_none(site: Site, config: ClientConfig) -> None:
    order = make_order(round_number=1)
    site.ledger.reserve(order, config, anything)
    site.ledger.lose(AttemptKey.of(order))
    assert left(site) == []
    assert site.ledger.kept(key(2)) is None


def test_commit_and_state_are_one_transaction(
    site: Site, config: ClientConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = make_order(round_number=1)
    site.ledger.reserve(order, config, anything)

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("worker.agent.state.store", fail)
        with pytest.raises(SiteStateError):
            site.ledger.commit(AttemptKey.of(order), BODY, KEPT)
    assert [entry.kind for entry in site.ledger.entries()] == ["reserve"]
    assert site.ledger.update_of(AttemptKey.of(order)) is None
    assert left(site) == []


def test_state_without_a_commit_is_refused(site: Site, config: ClientConfig) -> None:
    site.ledger.reserve(make_order(round_number=1), config, anything)
    with pytest.raises(sqlite3.IntegrityError):
        site.ledger._db.execute(
            "INSERT INTO kept VALUES ('run-1', 1, 1, 'site-a', 'sha256:0', x'00')"
        )


def test_only_what_can_never_count_again_is_dropped(site: Site, config: ClientConfig) -> None:
    for number in (1, 2):
        site.ledger.delivered(committed(site, config, number, b"%d" % number), ACCEPTED)
    assert left(site) == [(2, 1)]
    waiting = committed(site, config, 3, b"3")
    assert left(site) == [(2, 1), (3, 1)]
    for statement in ("DELETE FROM kept", "UPDATE kept SET body = x'00'",
                      "REPLACE INTO kept SELECT * FROM kept"):  # fmt: skip
        with pytest.raises(sqlite3.IntegrityError):
            site.ledger._db.execute(statement)
    assert left(site) == [(2, 1), (3, 1)]
    site.ledger.delivered(waiting, ACCEPTED)
    assert left(site) == [(3, 1)]
    other = config.model_copy(update={"name": "site-b"})
    order = make_order(round_number=4, client="site-b")
    site.ledger.reserve(order, other, anything)
    update = site.ledger.commit(AttemptKey.of(order), BODY, b"b")
    site.ledger.delivered(update.update_id, ACCEPTED)
    assert site.ledger.kept(key(5)) == b"3"  # nobody else's goes


def test_damaged_state_is_noticed(site: Site, config: ClientConfig) -> None:
    site.ledger.delivered(committed(site, config, 1, KEPT), ACCEPTED)
    site.ledger._db.execute("DROP TRIGGER kept_no_update")
    site.ledger._db.execute("UPDATE kept SET body = x'00'")
    with pytest.raises(SiteStateError, match="damaged") as damaged:
        site.ledger.kept(key(2))
    assert damaged.value.mend


def test_an_update_that_is_refused_leaves_the_encoder_before_it(
    site: Site, config: ClientConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three rounds through the real work; the coordinator closes the second one too early."""
    given: list[bytes | None] = []
    made: list[local.Released] = []
    real = local.execute

    def execute(*args: object, **kwargs: object) -> local.Released:
        given.append(kwargs["kept"])  # type: ignore[arg-type]
        made.append(real(*args, **kwargs))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(local, "execute", execute)
    outcomes = []
    for number in (1, 2, 3):
        order, objects = local_encoder_order(number)
        if number == 3:  # the run of two rounds has no third: another attempt of the second
            order, objects = local_encoder_order(2, attempt=2)
        script = Script(orders=[order], objects=objects)
        if number == 2:
            script.before = lambda request: (
                problem(409, "round-closed") if request.method == "PUT" else None
            )
        outcomes.append(perform(order, config, script.place(site)))
    assert outcomes == [Outcome.ACCEPTED, Outcome.REFUSED, Outcome.ACCEPTED]
    assert given == [None, made[0].kept, made[0].kept]
    assert site.ledger.kept(key(3)) == made[2].kept


def test_nothing_of_the_records_is_in_what_is_kept(site: Site, config: ClientConfig) -> None:
    """Two executions on the same records differ in every number: all of it carries noise."""
    import numpy as np

    from core.privacy.noise import csprng
    from core.wire import tensors

    order, objects = local_encoder_order(1)
    inputs = {ref.role: objects[ref.digest] for ref in order.inputs}
    records = data.load(config.data, order.spec.space, unit="record")
    first, second = (
        local.execute(order, records, dict(inputs), secret=bytes(32), noise=csprng()).kept
        for _ in range(2)
    )
    assert first is not None
    assert second is not None
    a, b = tensors.unpack(first)[0], tensors.unpack(second)[0]
    for name in ("weights", "first", "second"):
        same = np.asarray(a[name]) == np.asarray(b[name])
        assert not same.all() if name == "weights" else not same.any()


# --- a ledger of the version before ---


def test_a_ledger_of_version_1_is_carried_over(state_dir: Path, config: ClientConfig) -> None:
    with Site.open(state_dir) as site:
        site_id = site.ledger.site_id
    path = state_dir / LEDGER_FILE
    for old in state_dir.glob(f"{LEDGER_FILE}*"):
        old.unlink()
    with sqlite3.connect(path) as db:
        db.executescript(LEDGER_V1.read_text())
        db.execute("INSERT INTO site VALUES (?, 'then')", (site_id,))
        event = make_order().event.model_dump_json()
        for kind in ("reserve", "commit"):
            db.execute(
                "INSERT INTO entry (kind, population, unit, run_id, round, attempt, client, event,"
                " spec_digest, at) VALUES (?, 'a/all', 'record', 'run-1', 0, 1, 'site-a', ?, 'd',"
                " 'then')",
                (kind, event),
            )
        db.execute("INSERT INTO lease VALUES ('run-1', 0, 1, 'site-a', 'w', 't')")
        db.execute("INSERT INTO stored VALUES ('u', 'run-1', 0, 1, 'site-a', 'x', 1, 'then')")
        db.execute("INSERT INTO payload VALUES ('u', x'01')")
    db.close()
    with Site.open(state_dir) as site:
        assert [entry.kind for entry in site.ledger.entries()] == ["reserve", "commit"]
        (update,) = site.ledger.undelivered(config.name)
        assert (update.update_id, update.body) == ("u", b"\x01")
        site.ledger.delivered(committed(site, config, 1, KEPT), ACCEPTED)
        assert site.ledger.kept(key(2)) == KEPT
        db = site.ledger._db
        assert db.execute("PRAGMA user_version").fetchone() == (schema.VERSION,)
        carried = set(db.execute("SELECT name, sql FROM sqlite_master").fetchall())
    with sqlite3.connect(":memory:") as fresh:
        fresh.executescript(schema.script())
        assert set(fresh.execute("SELECT name, sql FROM sqlite_master").fetchall()) == carried
    fresh.close()
    with Site.open(state_dir) as again:
        assert again.ledger.kept(key(2)) == KEPT


def test_a_ledger_of_a_later_version_is_refused(state_dir: Path) -> None:
    with Site.open(state_dir) as site:
        site.ledger._db.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    with pytest.raises(SiteStateError, match="schema version"):
        Site.open(state_dir)
