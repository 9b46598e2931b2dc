"""A site in a secure sum: what it answers, what it refuses, and what kill -9 leaves."""

from __future__ import annotations

import hashlib
import sqlite3
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from core.data import load
from core.errors import PlanRefused
from core.federation.secure_sum import check_sum, grid_of, session_of
from core.models.layout import NULL_COORDINATES
from core.privacy.coins import CoinStream
from core.secagg.collector import TooFew
from core.secagg.participant import State
from core.training.local import clipped_total
from core.wire.messages import ObjectRef
from core.wire.secure import SumStep
from tests.worker.sum_world import NAMES, World, other_session, secure_spec
from tests.worker.support import Killed, make_config, make_plan, make_spec
from worker.agent import peers, sums
from worker.agent.policy import judge_plan
from worker.agent.records import AttemptKey, Decision
from worker.agent.spend import SiteLedger
from worker.errors import ConfigError, NotReconciled, SumOver
from worker.execution import Outcome, perform, recover


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def _up_to_vectors(world: World) -> None:
    world.all_answer("keys")
    world.all_answer("shares")


def _opened(world: World, names: tuple[str, ...] = NAMES) -> None:
    world.all_answer("confirm", names)
    world.all_answer("open", names)


def test_a_sum_is_that_of_the_clipped_sums_with_its_noise_once(world: World) -> None:
    _up_to_vectors(world)
    assert [world.send(name) for name in NAMES] == [Outcome.ACCEPTED] * 4
    _opened(world)
    total, grid = world.total(), grid_of(world.spec, 0, 4)
    check_sum(world.spec, 0, total, grid, contributions=4)
    clipped = np.zeros(len(total) - NULL_COORDINATES)
    for name, config in world.configs.items():
        with world.site(name) as site:
            coins = CoinStream(site.key(f"coins/{name}"), "run-1", 0, 1)
            data = load(config.data, world.spec.space, unit="record", for_round=True)
            clipped += clipped_total(world.spec, 0, "", data, {}, coins)
            assert [entry.kind for entry in site.ledger.entries()] == ["reserve", "commit"]
            assert site.ledger.entries()[0].event == world.spec.event(0)
            assert site.ledger.entries()[0].event.collude == 1
            # The sum was opened: what would unmask this site's vector is gone.
            kept = site.ledger.sums.find("run-1", 0, name)
            assert kept is not None
            assert kept.state is None
            assert kept.masked
    off = total * grid.step - np.concatenate([clipped, np.zeros(NULL_COORDINATES)])
    std = grid.noise_std * np.sqrt(4)
    assert 0.8 * std < np.std(off) < 1.2 * std
    whole = world.spec.noise.sketch_multiplier * world.spec.plan.sketch.bound
    # Two of four shares suffice, so the sum has a 1.41-fold of the noise, where whole ones have 2.
    assert std == pytest.approx(whole * np.sqrt(2), rel=0.01)
    assert std < 0.75 * whole * np.sqrt(4)


@pytest.mark.parametrize("missing_at", ["shares", "vector", "confirm", "open"])
def test_one_site_may_go_missing_at_every_step(tmp_path: Path, missing_at: str) -> None:
    names = (*NAMES, "site-e")
    world = World(tmp_path, secure_spec(drop=1, collude=1, names=names), names)
    rest = names[1:]
    world.all_answer("keys")
    late = rest if missing_at == "shares" else names
    world.all_answer("shares", late)
    for name in rest if missing_at in ("shares", "vector") else names:
        assert world.send(name) is Outcome.ACCEPTED
    world.all_answer("confirm", rest if missing_at != "open" else names)
    world.all_answer("open", rest)
    count = 4 if missing_at in ("shares", "vector") else 5
    check_sum(world.spec, 0, world.total(), grid_of(world.spec, 0, 5), contributions=count)


def test_with_more_missing_nothing_is_opened(world: World) -> None:
    _up_to_vectors(world)
    for name in NAMES[:2]:
        world.send(name)
    with pytest.raises(TooFew, match="2 sites sent vectors, 3 are needed"):
        world.step("site-a", "confirm")
    told = world.step("site-a", "keys").model_dump() | {
        "step_id": "site-a:x", "step": "confirm", "survivors": NAMES[:2],
    }  # fmt: skip
    with world.site("site-a") as site:
        lied_to = SumStep.model_validate(told)
        assert not sums.answer(lied_to, world.configs["site-a"], world.place(site))
    assert world.coordinator.declined == ["site-a:x"]


# --- kill -9 ---


@pytest.mark.parametrize("step", ["keys", "shares", "confirm", "open"])
@pytest.mark.parametrize("heard", [False, True])
def test_killed_around_an_answer_the_same_answer_goes_again(
    world: World, step: str, heard: bool
) -> None:
    """The state is kept before the message goes: what was said, or may have been, is said again."""

    def die(request: httpx.Request) -> None:
        if request.method == "PUT" and request.url.path.endswith(f"site-a:{step}"):
            raise Killed

    def die_before(request: httpx.Request) -> httpx.Response | None:
        if request.method == "PUT" and request.url.path.endswith(f"site-a:{step}"):
            said.append(request.read())
            raise Killed
        return None

    said: list[bytes] = []
    for earlier in ("keys", "shares", "vector", "confirm"):
        if earlier == step:
            break
        for name in NAMES:
            if earlier == "vector":
                world.send(name)
            else:
                world.answer(name, earlier)
    if heard:
        world.coordinator.after = die
    else:
        world.coordinator.before = die_before
    with pytest.raises(Killed):
        world.answer("site-a", step)
    world.coordinator.after, world.coordinator.before = lambda _: None, lambda _: None
    assert world.answer("site-a", step)
    answers = world.coordinator.answers[f"site-a:{step}"]
    assert len(set(answers)) == 1
    assert len(answers) == (2 if heard else 1)
    if said:
        assert hashlib.sha256(said[0]).hexdigest() == answers[0]


@pytest.mark.parametrize("heard", [False, True])
def test_killed_around_the_vector_the_same_bytes_go_again(world: World, heard: bool) -> None:
    _up_to_vectors(world)

    def die(request: httpx.Request) -> httpx.Response | None:
        if request.method == "PUT" and "updates" in request.url.path:
            sent.append(request.read())
            raise Killed
        return None

    sent: list[bytes] = []
    if heard:
        world.coordinator.after = die  # type: ignore[assignment]
    else:
        world.coordinator.before = die
    with pytest.raises(Killed):
        world.send("site-a")
    world.coordinator.after, world.coordinator.before = lambda _: None, lambda _: None
    with world.site("site-a") as site:
        recover(world.configs["site-a"], world.place(site))
        assert [entry.kind for entry in site.ledger.entries()] == ["reserve", "commit"]
    assert set(world.coordinator.bodies["site-a"]) == {sent[0]}
    for name in NAMES[1:]:
        world.send(name)
    _opened(world)
    check_sum(world.spec, 0, world.total(), grid_of(world.spec, 0, 4), contributions=4)


def test_killed_between_reservation_and_mask_another_attempt_may_send(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    _up_to_vectors(world)

    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(SiteLedger, "commit", die)
        patch.setattr(SiteLedger, "lose", die)  # as kill -9 does, it leaves no time for that
        with pytest.raises(Killed):
            world.send("site-a")
    with world.site("site-a") as site:
        recover(world.configs["site-a"], world.place(site))
    assert world.coordinator.failures == [("work-run-1-0-1-site-a", "site-not-ready")]
    assert world.send("site-a", attempt=2) is Outcome.ACCEPTED
    with world.site("site-a") as site:
        assert [entry.kind for entry in site.ledger.entries()] == [
            "reserve", "lost", "reserve", "commit",
        ]  # fmt: skip


# --- what it refuses ---


def test_a_vector_is_masked_once_in_a_session(world: World) -> None:
    """The known wrong version sends a second vector under the same masks: their difference shows
    the noise."""
    _up_to_vectors(world)
    assert world.send("site-a") is Outcome.ACCEPTED
    assert world.send("site-a", attempt=2) is Outcome.PLAN_REFUSED
    assert len(world.coordinator.bodies["site-a"]) == 1
    assert world.coordinator.failures[-1][1] == "plan-refused"
    with world.site("site-a") as site:
        assert len(site.ledger.entries()) == 2, "nothing more was reserved"


def test_a_round_has_one_session(world: World) -> None:
    world.all_answer("keys")
    smaller = other_session(world, sites=NAMES[:3], drop=0)
    assert not world.answer("site-a", "keys", session=smaller, step_id="site-a:again")
    fewer = secure_spec(drop=0)
    assert not world.answer("site-b", "keys", spec=fewer, spec_digest=fewer.digest)
    assert world.coordinator.declined == ["site-a:again", "site-b:keys"]


@pytest.mark.parametrize(
    "changes",
    [{"collude": 0}, {"drop": 0}, {"length": 10}, {"bits": 40}, {"attempt": 2},
     {"round_number": 1}, {"run_id": "run-2"}],
)  # fmt: skip
def test_a_session_that_the_plan_does_not_imply_is_declined(
    world: World, changes: dict[str, object]
) -> None:
    assert not world.answer("site-a", "keys", session=other_session(world, **changes))
    assert world.coordinator.declined == ["site-a:keys"]


def test_two_rosters_and_two_lists_are_not_both_answered(world: World) -> None:
    _up_to_vectors(world)
    roster = world.coordinator.collector.roster()
    assert not world.answer("site-a", "shares", roster=roster[:3])
    for name in NAMES:
        world.send(name)
    assert world.answer("site-a", "confirm")
    assert not world.answer("site-a", "confirm", survivors=NAMES[:3])
    assert not world.answer("site-b", "open", confirmations=())


def test_somebody_whose_key_is_not_pinned_takes_no_part(world: World) -> None:
    path = world.configs["site-a"].peers
    assert path is not None
    path.unlink()
    assert not world.answer("site-a", "keys")
    peers.pin(
        world.configs["site-a"], {name: f"{at}{at}" * 32 for at, name in enumerate(NAMES) if at}
    )
    world.all_answer("keys")
    assert not world.answer("site-a", "shares"), "signed by other keys than those that are pinned"
    assert world.coordinator.declined == ["site-a:keys", "site-a:shares"]


def test_orders_say_what_kind_of_sum_they_are_for(world: World) -> None:
    _up_to_vectors(world)
    assert world.send("site-a", sum=None) is Outcome.PLAN_REFUSED
    strange = world.order("site-a").model_copy(
        update={"spec": make_spec(), "spec_digest": make_spec().digest}
    )
    with world.site("site-a") as site:
        found = perform(strange, world.configs["site-a"], world.place(site))
        assert found is Outcome.PLAN_REFUSED
        assert site.ledger.entries() == []


def test_boxes_that_were_kept_back_are_noticed_before_anything_is_spent(world: World) -> None:
    _up_to_vectors(world)
    whole = world.order("site-a").sum
    assert whole is not None
    for wrong in (
        whole.model_copy(update={"inbox": whole.inbox[1:]}),
        whole.model_copy(update={"sharers": whole.sharers[:2]}),
    ):
        assert world.send("site-a", sum=wrong) is Outcome.PLAN_REFUSED
    with world.site("site-a") as site:
        assert site.ledger.entries() == []
    assert world.send("site-a", attempt=2) is Outcome.ACCEPTED


def test_a_plan_of_secure_sums_needs_pinned_keys(tmp_path: Path) -> None:
    config = make_config(tmp_path / "records.npz", max_epsilon=50.0)
    with pytest.raises(PlanRefused) as refused:
        judge_plan(secure_spec(), config, [])
    assert refused.value.field == "peers"
    assert "identity peers" in (refused.value.mend or "")
    judge_plan(secure_spec(), config.model_copy(update={"peers": tmp_path / "peers.json"}), [])
    assert make_plan(secure_spec()).spec.plan.aggregation == "secure"


# --- the ledger ---


def test_a_restored_ledger_goes_on_with_no_sum(world: World) -> None:
    """It may have forgotten that a vector was masked."""
    _up_to_vectors(world)
    with world.site("site-a") as site:
        site.ledger.mark_restored("2026-03-01T00:00:00Z")
        with pytest.raises(SumOver):
            site.ledger.sums.keep(world.session, "site-a", _any_state())
    with pytest.raises(NotReconciled):
        world.answer("site-a", "shares")
    with world.site("site-a") as site:
        site.ledger.complete("site-a/all", "record", [])
    assert not world.answer("site-a", "shares")


def _any_state() -> State:
    return State(seed="00" * 32, sealing_key="11" * 32, masking_key="22" * 32)


def test_the_schema_lets_no_mask_be_forgotten(world: World) -> None:
    _up_to_vectors(world)
    world.send("site-a")
    db = sqlite3.connect(world.folder / "site-a" / "state" / "ledger.sqlite3")
    for change in (
        "UPDATE sum_state SET masked = 0",
        "UPDATE sum_state SET session = 'another'",
        "DELETE FROM sum_state",
    ):
        with pytest.raises(sqlite3.IntegrityError):
            db.execute(change)
    db.execute("UPDATE sum_state SET state = NULL")
    with pytest.raises(sqlite3.IntegrityError, match="one session"):
        db.execute("UPDATE sum_state SET state = '{}'")
    db.close()


def test_secrets_of_earlier_rounds_are_wiped_when_a_later_one_begins(world: World) -> None:
    world.answer("site-a", "keys")
    later = other_session(world, round_number=1)
    with world.site("site-a") as site:
        site.ledger.sums.keep(later, "site-a", _any_state())
        first = site.ledger.sums.find("run-1", 0, "site-a")
        assert first is not None
        assert first.state is None
        assert site.ledger.sums.find("run-1", 1, "site-a") is not None
        assert not site.ledger.sums.is_masked(AttemptKey("run-1", 0, 1, "site-a"))


# --- pinned keys ---


def test_a_pinned_key_is_not_changed_without_a_person(world: World) -> None:
    config = world.configs["site-a"]
    with pytest.raises(ConfigError, match="site-b: another key is pinned already"):
        peers.pin(config, {"site-b": "22" * 32})
    assert config.peers is not None
    assert config.peers.stat().st_mode & 0o777 == 0o600
    config.peers.write_text('{"site-b": "no key"}')
    with pytest.raises(ConfigError, match="no file of pinned keys"):
        peers.pinned(config)
    with pytest.raises(ConfigError, match="names no file"):
        peers.pin(make_config(Path("records.npz")), {"site-b": "22" * 32})
    with pytest.raises(ConfigError, match="site-c, site-d have one and the same key"):
        peers.pin(config.model_copy(update={"peers": config.peers.with_name("other.json")}), {
            "site-c": "33" * 32, "site-d": "33" * 32,
        })  # fmt: skip


# --- what everybody in a sum must have in common ---


def test_who_was_shown_another_plan_is_in_another_session(world: World) -> None:
    """The known wrong version names the run and not its plan: a coordinator shows the others one
    with less noise, and all signatures fit.
    """
    noise = world.spec.noise.model_copy(update={"sketch_multiplier": 1.0})
    weaker = world.spec.model_copy(update={"noise": noise})
    theirs = session_of(weaker, 0, NAMES)
    assert theirs.bits == world.session.bits, "nothing else would tell them apart"
    assert theirs.digest != world.session.digest
    assert not world.answer("site-a", "keys", session=theirs)
    assert world.coordinator.declined == ["site-a:keys"]


def test_a_client_that_the_plan_does_not_name_is_in_no_sum(world: World) -> None:
    more = (*NAMES, "site-x")
    peers.pin(world.configs["site-a"], {"site-x": "77" * 32})
    assert not world.answer("site-a", "keys", session=session_of(world.spec, 0, more))
    unnamed = world.spec.model_copy(update={"founding_names": None})
    assert not world.answer(
        "site-b", "keys", spec=unnamed, spec_digest=unnamed.digest,
        session=session_of(unnamed, 0, NAMES),
    )  # fmt: skip


def test_all_work_on_one_model(world: World) -> None:
    """Else one site could be given the true one, and the others one whose gradients vanish."""
    _up_to_vectors(world)
    ref = ObjectRef(role="frame", digest="sha256:" + "1" * 64, size=1)
    again = ref.model_copy(update={"digest": "sha256:" + "2" * 64})
    assert world.send("site-b", inputs=(ref, again)) is Outcome.PLAN_REFUSED
    assert world.send("site-a", inputs=(ref,)) is Outcome.PLAN_REFUSED
    with world.site("site-a") as site:
        assert site.ledger.entries() == []


def test_a_site_whose_ledger_was_restored_waits_for_a_new_run(world: World) -> None:
    """A backup of before the keys knows nothing of what was signed since."""
    with world.site("site-a") as site:
        site.ledger.mark_restored("2026-03-01T00:00:00Z")
        site.ledger.complete("site-a/all", "record", [])
    assert not world.answer("site-a", "keys")
    with world.site("site-a") as site:
        time.sleep(0.002)  # the ledger's clock ticks in milliseconds
        site.ledger.decide(
            Decision("run-1", "site-a", world.spec.digest, False, "approve", "person", "")
        )
    assert not world.answer("site-a", "keys"), "said again, of a run that may be of before"


def test_a_site_may_bound_what_no_premise_protects(world: World) -> None:
    config = world.configs["site-a"].model_copy(update={"max_epsilon_everybody": 2.0})
    with pytest.raises(PlanRefused, match="against everybody else together it costs epsilon"):
        judge_plan(world.spec, config, [])
    world.configs["site-a"] = config
    assert not world.answer("site-a", "keys")
    judge_plan(world.spec, config.model_copy(update={"max_epsilon_everybody": 90.0}), [])
