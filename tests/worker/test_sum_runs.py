"""A site whose ledger was restored: which runs' secure sums it may have forgotten, and sits out."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
import uuid_utils
from hypothesis import given
from hypothesis import strategies as st

from core.errors import PlanRefused
from core.federation.plan import RunSpec
from tests.worker.sum_world import World, secure_spec
from tests.worker.support import Script, make_site_config
from worker.agent import backup, plans, restoration, sum_runs
from worker.agent.consent import consider
from worker.agent.records import Decision
from worker.agent.site import LEDGER_FILE, Site
from worker.agent.sum_states import Sums
from worker.config import ClientConfig
from worker.errors import ConsentError

WHY = "the site's policy forbids it: run_id (its ledger was restored)"
MS = timedelta(milliseconds=1)


def id_of(at: datetime, rest: int = 0) -> str:
    """A UUIDv7 of this time."""
    ms = (at - datetime(1970, 1, 1, tzinfo=UTC)) // MS
    return str(UUID(int=ms << 80 | 7 << 76 | 2 << 62 | rest))


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def coordinator() -> Script:
    made = Script(protocol=2)
    made.me = {**made.me, "population": "site-a/all"}
    return made


def put(script: Script, spec: RunSpec, config: ClientConfig, site: Site) -> bool:
    """The coordinator puts the run's plan before the site (again)."""
    script.plans.clear()
    plan = script.ask(spec)
    return consider(plan, config, site.ledger, script.client())


# --- the rule ---

BEGIN = datetime(2024, 1, 1, tzinfo=UTC)
moments = st.timedeltas(timedelta(0), timedelta(days=30_000)).map(lambda since: BEGIN + since)
spans = st.timedeltas(timedelta(0), timedelta(days=400))


@given(moments, spans, spans, st.integers(0, 2**62 - 1))
def test_whatever_was_approved_before_a_restoration_may_be_forgotten(
    approved: datetime, since: timedelta, ahead: timedelta, rest: int
) -> None:
    """For every id that a coordinator can think of: the site refuses it, or knows it again."""
    run = id_of(approved + ahead, rest)
    if ahead > sum_runs.AHEAD + MS:
        with pytest.raises(PlanRefused) as refused:
            sum_runs.require_made(run, approved)
        assert refused.value.field == "run_id"
        assert f"agent approve {run}" in (refused.value.mend or "")
    elif ahead <= sum_runs.AHEAD - MS:
        sum_runs.require_made(run, approved)
    with contextlib.suppress(PlanRefused):
        sum_runs.require_made(run, approved)
        assert sum_runs.may_be_of_before(run, approved + since)


@given(moments, spans)
def test_later_runs_are_open(restored: datetime, since: timedelta) -> None:
    made = restored + sum_runs.AHEAD + MS + since
    assert not sum_runs.may_be_of_before(id_of(made), restored)
    assert sum_runs.may_be_of_before(id_of(restored + sum_runs.AHEAD), restored)


def test_ids_that_name_no_time_are_of_before() -> None:
    later = id_of(now() + timedelta(days=9))
    others = ("run-1", "", later.upper(), f"{{{later}}}", later.replace("-", ""))
    for run in (*others, str(UUID(int=UUID(later).int & ~(15 << 76) | 4 << 76))):
        assert sum_runs.made_ms(run) is None
        assert sum_runs.may_be_of_before(run, now())
        sum_runs.require_made(run, now())
    assert sum_runs.made_ms(str(UUID(int=2**128 - 1 & ~(8 << 76) & ~(1 << 62)))) == 2**48 - 1
    mine = sum_runs.made_ms(str(uuid_utils.uuid7()))
    assert mine is not None
    assert abs(mine / 1000 - datetime.now(UTC).timestamp()) < 5, "as the coordinator makes them"


# --- the same plan, put again after a restoration ---


class Replayed:
    """A site approves a run and signs its keys; then its disk is lost, and the backup is older."""

    def __init__(self, folder: Path) -> None:
        self.spec = secure_spec(run_id=id_of(now()))
        self.world = World(folder, self.spec)
        self.config = self.world.configs["site-a"]
        self.state = folder / "site-a" / "state"
        self.script = coordinator()
        backup.make(self.state, folder / "copy")
        with self.world.site("site-a") as site:
            assert put(self.script, self.spec, self.config, site)
        assert self.world.answer("site-a", "keys")
        for path in self.state.glob(f"{LEDGER_FILE}*"):
            path.unlink()
        backup.restore(folder / "copy", self.state)
        with self.world.site("site-a") as site:
            site.ledger.complete(self.config.population, "record", [])


@pytest.fixture
def replayed(tmp_path: Path) -> Replayed:
    return Replayed(tmp_path)


def test_a_plan_of_before_that_is_put_again_is_refused_at_once(replayed: Replayed) -> None:
    with replayed.world.site("site-a") as site:
        assert put(replayed.script, replayed.spec, replayed.config, site)
        said = replayed.script.said[-1]
        assert (said.decision, said.by, said.why) == ("refuse", "policy", WHY)
        site.ledger.decide(
            Decision(
                replayed.spec.run_id, "site-a", replayed.spec.digest, False, "approve", "person"
            )
        )
    assert not replayed.world.answer("site-a", "keys"), "whatever was said since"
    assert replayed.world.coordinator.declined == ["site-a:keys"]


def _open_since_said(sums: Sums, run_id: str) -> None:
    """The known wrong version: an approval later than the restoration opens the run again."""
    (restored,) = sums._db.execute("SELECT max(at) FROM restoration").fetchone()
    (said,) = sums._db.execute(
        "SELECT max(at) FROM consent WHERE run_id = ? AND decision = 'approve'", (run_id,)
    ).fetchone()
    if restored is not None and (said is None or said <= restored):
        raise PlanRefused("forgotten", field="run_id")


def test_defect_an_approval_since_the_restoration_opens_the_same_session_again(
    replayed: Replayed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def approved_again(sums: Sums, run_id: str) -> None:
        return None if putting else _open_since_said(sums, run_id)

    putting = True
    monkeypatch.setattr(Sums, "require_open", approved_again)
    with replayed.world.site("site-a") as site:
        assert put(replayed.script, replayed.spec, replayed.config, site)
    putting = False
    replayed.world.answer("site-a", "keys")
    first, second = replayed.world.coordinator.answers["site-a:keys"]
    assert first != second, "two signed adverts for one session"
    assert replayed.world.session.run_id == replayed.spec.run_id


def test_a_person_is_told_what_to_do_instead(replayed: Replayed) -> None:
    asking = replayed.config.model_copy(update={"consent": "ask"})
    site_config = make_site_config(replayed.state, asking)
    with replayed.world.site("site-a") as site:
        heard = len(replayed.script.said)
        assert not put(replayed.script, replayed.spec, asking, site), "the word is a person's"
        assert len(replayed.script.said) == heard
        (seen,) = plans.shown(replayed.script.client(), site_config, site, None)
        assert seen.refusal is not None
        assert seen.refusal.field == "run_id"
        (line,) = plans.as_json([seen])
        assert (line["policy"], line["policy_field"]) == ("refuses", "run_id")
        with pytest.raises(ConsentError, match="ledger was restored from a backup") as refused:
            plans.decide(
                replayed.script.client(), site_config, site, replayed.spec.run_id, "approve"
            )
        assert refused.value.field == "run_id"
        assert "The administrator makes a new run, later than" in (refused.value.mend or "")
        plans.decide(replayed.script.client(), site_config, site, replayed.spec.run_id, "refuse")
    assert replayed.script.said[-1].decision == "refuse"


def test_a_word_of_before_is_not_sent_again(tmp_path: Path) -> None:
    """The backup has the approval, and the coordinator says that it has not heard it."""
    world = World(tmp_path, secure_spec(run_id=id_of(now())))
    config = world.configs["site-a"].model_copy(update={"consent": "ask"})
    with world.site("site-a") as site:
        site.ledger.decide(
            Decision(world.spec.run_id, "site-a", world.spec.digest, False, "approve", "person")
        )
        script = coordinator()
        assert put(script, world.spec, config, site)
        site.ledger.mark_restored("2026-03-01T00:00:00Z")
        assert not put(script, world.spec, config, site)
    assert [said.decision for said in script.said] == ["approve"]


# --- new runs ---


def restored_at(site: Site, at: datetime, config: ClientConfig) -> None:
    restoration.mark(site.ledger._db, "2026-03-01T00:00:00Z", at.isoformat(timespec="milliseconds"))
    site.ledger.complete(config.population, "record", [])


@pytest.mark.parametrize(
    ("after", "answers"), [(timedelta(minutes=9), False), (timedelta(minutes=11), True)]
)
def test_a_run_that_was_made_later_is_open(tmp_path: Path, after: timedelta, answers: bool) -> None:
    world = World(tmp_path, secure_spec(run_id=id_of(now())))
    config = world.configs["site-a"]
    with world.site("site-a") as site:
        restored_at(site, now() - after, config)
        script = coordinator()
        assert put(script, world.spec, config, site)
        assert script.said[-1].decision == ("approve" if answers else "refuse")
    assert world.answer("site-a", "keys") is answers


def test_a_word_older_than_the_restoration_tells_of_a_run_of_before(tmp_path: Path) -> None:
    """Whatever its id says: the clock may have been wrong then."""
    world = World(tmp_path)
    run = id_of(now() + timedelta(days=1))
    with world.site("site-a") as site:
        restored_at(site, now() + timedelta(minutes=1), world.configs["site-a"])
        assert not site.ledger.sums.forgotten(run)
        site.ledger.decide(Decision(run, "site-a", world.spec.digest, False, "refuse", "person"))
        assert site.ledger.sums.forgotten(run)


@pytest.mark.parametrize("consent", ["ask", "policy"])
def test_a_run_of_a_time_that_has_not_come_is_not_approved(tmp_path: Path, consent: str) -> None:
    """Nobody's no is final: it may be this clock that is wrong."""
    soon, later = (id_of(now() + timedelta(minutes=minutes)) for minutes in (9, 11))
    world = World(tmp_path, secure_spec(run_id=later))
    config = world.configs["site-a"].model_copy(update={"consent": consent})
    script, site_config = coordinator(), make_site_config(tmp_path, config)
    with world.site("site-a") as site:
        assert not put(script, world.spec, config, site)
        with pytest.raises(ConsentError, match="more than 10 minutes from now") as refused:
            plans.decide(script.client(), site_config, site, later, "approve")
        assert "Compare this machine's clock" in (refused.value.mend or "")
        assert script.said == []
        assert put(script, secure_spec(run_id=soon), config, site) is (consent == "policy")
    assert not world.answer("site-a", "keys"), "not even of a site that was never asked"
    assert world.coordinator.declined == ["site-a:keys"]
