"""Death at any point of an order's execution, then a restart.

Whatever happens: an attempt is executed at most once, there is at most one byte string per
attempt, everything executed is charged, and the round gets its update in the end.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core import data
from core.training import local
from core.wire.messages import WorkOrder
from tests.worker.killed_site import local_encoder_order
from tests.worker.support import Killed, Script, make_order
from worker.agent.records import AttemptKey
from worker.agent.site import Site
from worker.agent.spend import SiteLedger
from worker.cache import digest_of_bytes
from worker.config import ClientConfig
from worker.errors import ClientBusy
from worker.execution import Outcome, perform, recover

ROOT = Path(__file__).resolve().parents[2]

# Each point is a call; the process dies before it, or after it has done its work.
POINTS: dict[str, tuple[Any, str]] = {
    "judged": (SiteLedger, "reserve"),
    "row of the reservation": (SiteLedger, "_insert_entry"),
    "records": (data, "load"),
    "binding": (SiteLedger, "bind"),
    "noise": (local, "execute"),
    "commit": (SiteLedger, "commit"),
    "row of the commit": (SiteLedger, "_outcome"),
    "receipt": (SiteLedger, "delivered"),
}
CRASHES = [f"{when} {name}" for name in POINTS for when in ("before", "after")] + [
    "before the update arrives",
    "after the update arrived",
]


class World:
    """A coordinator that reissues what is given back, and a count of real noise draws."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        make: Callable[[int], WorkOrder] = lambda attempt: make_order(attempt=attempt),
    ) -> None:
        self.script = Script(orders=[make(1)], reissue=make)
        self.executed: Counter[int] = Counter()
        self.produced: defaultdict[int, set[bytes]] = defaultdict(set)
        self.released: dict[str, local.Released] = {}  # by the update's digest
        self.given: list[bytes | None] = []  # what each execution was told that was kept
        real = local.execute

        def execute(order: WorkOrder, *args: Any, **kwargs: Any) -> local.Released:
            self.executed[order.attempt] += 1
            released = real(order, *args, **kwargs)
            self.produced[order.attempt].add(released.update)
            self.released[digest_of_bytes(released.update)] = released
            self.given.append(kwargs["kept"])
            return released

        monkeypatch.setattr(local, "execute", execute)

    def sent(self) -> dict[int, set[str]]:
        """Digests put, by attempt (the lease token names it)."""
        found: defaultdict[int, set[str]] = defaultdict(set)
        for _, digest, lease in self.script.puts:
            found[int(lease.rsplit("-", 1)[1])].add(digest)
        return found


def arm(crash: str, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the process die once at this point."""
    when, _, name = crash.partition(" ")
    fuse = iter([True])

    def die() -> None:
        if next(fuse, False):
            raise Killed(crash)

    if name == "the update arrives":

        def before(request: httpx.Request) -> httpx.Response | None:
            if request.method == "PUT":
                die()
            return None

        world.script.before = before
    elif name == "the update arrived":
        world.script.after_put = die
    else:
        owner, attribute = POINTS[name]
        real: Callable[..., Any] = getattr(owner, attribute)

        def fatal(*args: Any, **kwargs: Any) -> Any:
            if when == "before":
                die()
            result = real(*args, **kwargs)
            if when == "after":
                die()
            return result

        monkeypatch.setattr(owner, attribute, fatal)


def life(state_dir: Path, config: ClientConfig, world: World) -> bool:
    """One process: recover, then work until nothing is left. False if it was killed."""
    with Site.open(state_dir) as site:
        try:
            with site.lock(config.name):
                place = world.script.place(site)
                recover(config, place)
                for _ in range(20):
                    if not world.script.orders:
                        return True
                    perform(world.script.orders[0], config, place)
        except Killed:
            return False
    pytest.fail("the work never ended")


def check(state_dir: Path, config: ClientConfig, world: World, number: int = 0) -> None:
    assert len(world.script.accepted) == 1
    assert all(count == 1 for count in world.executed.values())
    for attempt, digests in world.sent().items():
        assert digests == {digest_of_bytes(body) for body in world.produced[attempt]}
    with Site.open(state_dir) as site:
        every = site.ledger.entries(config.population)
        rows = [row for row in every if row.key.round_number == number]
        charged = Counter(row.key.attempt for row in rows if row.kind == "reserve")
        committed = [row.key.attempt for row in rows if row.kind == "commit"]
        lost = [row.key.attempt for row in rows if row.kind == "lost"]
        assert set(world.executed) <= set(charged)
        assert set(charged.values()) == {1}
        assert sorted([*committed, *lost]) == sorted(charged)
        assert set(world.sent()) <= set(committed)
        assert site.ledger.undelivered(config.name) == []
        assert site.ledger.unfinished(config.name) == []


@pytest.mark.parametrize("crash", CRASHES)
def test_one_death_anywhere(
    crash: str, state_dir: Path, config: ClientConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(monkeypatch)
    arm(crash, world, monkeypatch)
    lives = [life(state_dir, config, world) for _ in range(2)]
    assert lives == [False, True]
    check(state_dir, config, world)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(crashes=st.lists(st.sampled_from(CRASHES), min_size=2, max_size=4))
def test_several_deaths_in_a_row(
    crashes: list[str],
    tmp_path_factory: pytest.TempPathFactory,
    config: ClientConfig,
) -> None:
    state_dir = tmp_path_factory.mktemp("state") / "site"
    generous = config.model_copy(update={"max_epsilon": 100.0})
    with pytest.MonkeyPatch.context() as patch:
        world = World(patch)
        for crash in crashes:
            with pytest.MonkeyPatch.context() as one:
                arm(crash, world, one)
                life(state_dir, generous, world)
            world.script.before = lambda _: None
            world.script.after_put = lambda: None
        assert life(state_dir, generous, world)
        check(state_dir, generous, world)


@pytest.fixture
def killed(state_dir: Path, config: ClientConfig) -> Callable[..., None]:
    """Run an order in a process of its own up to a point, then SIGKILL it."""

    def run(point: str, kind: str = "sketch") -> None:
        command = [sys.executable, "-m", "tests.worker.killed_site"]
        process = subprocess.Popen(
            [*command, str(state_dir), str(config.data), point, kind],
            cwd=ROOT, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert process.stdout is not None
        try:
            said = [line.strip() for line in itertools.takewhile(
                lambda line: line.strip() != point, process.stdout)]  # fmt: skip
            assert process.poll() is None, said
            with Site.open(state_dir) as site, pytest.raises(ClientBusy), site.lock("site-a"):
                pass
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(10)
            process.stdout.close()

    return run


def test_sigkill_while_sending_resends_the_same_bytes(
    killed: Callable[[str], None], state_dir: Path, config: ClientConfig
) -> None:
    killed("sending")
    with Site.open(state_dir) as site, site.lock(config.name):
        (update,) = site.ledger.undelivered(config.name)
        script = Script(orders=[make_order()])
        recover(config, script.place(site))
        ((path, digest, _),) = script.puts
        assert digest == update.digest
        assert path.endswith(update.update_id)
        assert [row.kind for row in site.ledger.entries()] == ["reserve", "commit"]


def test_sigkill_after_the_noise_was_drawn_loses_the_attempt(
    killed: Callable[[str], None], state_dir: Path, config: ClientConfig
) -> None:
    killed("noise drawn")
    with Site.open(state_dir) as site, site.lock(config.name):
        script = Script(orders=[make_order()])
        script.reissue = lambda attempt: make_order(attempt=attempt)
        recover(config, script.place(site))
        assert script.failures == [(make_order().work_id, "site-not-ready")]
        assert perform(script.orders[0], config, script.place(site)) is Outcome.ACCEPTED
        kinds = [(row.kind, row.key.attempt) for row in site.ledger.entries()]
        assert kinds == [("reserve", 1), ("lost", 1), ("reserve", 2), ("commit", 2)]


# --- what a client keeps ---


def local_encoder_world(monkeypatch: pytest.MonkeyPatch, number: int) -> World:
    """A training round of a run with local encoders."""
    world = World(monkeypatch, lambda attempt: local_encoder_order(number, attempt)[0])
    world.script.objects = local_encoder_order(number)[1]
    return world


@pytest.mark.parametrize("crash", CRASHES)
def test_after_one_death_anywhere_the_accepted_attempts_encoder_goes_on(
    crash: str, state_dir: Path, config: ClientConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all attempts of a round, the next one begins with what the accepted one has kept."""
    with monkeypatch.context() as patch:
        one = local_encoder_world(patch, 1)
        arm(crash, one, patch)
        assert [life(state_dir, config, one) for _ in range(2)] == [False, True]
        check(state_dir, config, one, 1)
    assert set(one.given) <= {None}
    (digest,) = one.script.accepted.values()
    accepted = one.released[digest].kept
    assert accepted is not None
    assert all(other.kept != accepted for name, other in one.released.items() if name != digest)
    with monkeypatch.context() as patch:
        two = local_encoder_world(patch, 2)
        assert life(state_dir, config, two)
    assert two.given == [accepted]
    with Site.open(state_dir) as site:
        (left,) = site.ledger._db.execute("SELECT round, attempt FROM kept").fetchall()
        assert left == (2, 1)


@pytest.mark.parametrize("point", ["noise drawn", "sending", "accepted"])
def test_sigkill_with_a_local_encoder(
    killed: Callable[..., None], point: str, state_dir: Path, config: ClientConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    killed(point, "train")
    order = local_encoder_order(2)[0]
    with Site.open(state_dir) as site:
        stored = site.ledger._db.execute("SELECT body FROM kept").fetchall()
        assert site.ledger.kept(AttemptKey.of(order)) is None  # no answer is known yet
    world = local_encoder_world(monkeypatch, 1)
    assert life(state_dir, config, world)
    (digest,) = world.script.accepted.values()
    with Site.open(state_dir) as site:
        kept = site.ledger.kept(AttemptKey.of(order))
        if point == "noise drawn":  # that attempt is lost, and what it would have kept with it
            assert stored == []
            assert kept == world.released[digest].kept
        else:
            assert stored == [(kept,)]
            assert world.executed == {}
