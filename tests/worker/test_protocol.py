"""Which version is spoken: each side older, newer, or out of reach of the other."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from core.training.compute import Compute
from core.wire.messages import PlanOffer, WorkOrder
from core.wire.protocol import PROTOCOL_HEADER, RANGE_HEADER, SPOKEN, Versions, read
from tests.worker.support import (
    FAST,
    Script,
    make_order,
    make_site_config,
    problem,
    write_records,
)
from worker.agent import loop
from worker.agent.records import AttemptKey
from worker.agent.site import Site
from worker.cli import agent_app
from worker.client import CoordinatorClient
from worker.config import ClientConfig
from worker.errors import ApiProblem

ranges = st.integers(1, 9).flatmap(
    lambda oldest: st.integers(oldest, 9).map(lambda newest: Versions(oldest, newest))
)


@given(ranges, ranges)
def test_the_newest_version_that_both_speak(ours: Versions, theirs: Versions) -> None:
    common = ours.common(theirs)
    shared = set(range(ours.oldest, ours.newest + 1)) & set(range(theirs.oldest, theirs.newest + 1))
    assert common == (max(shared) if shared else None)
    assert theirs.common(ours) == common
    assert read("1", str(ours)) == ours


def test_neighbouring_versions_always_meet() -> None:
    """What makes rolling upgrades work in either order: everybody speaks N and N - 1."""
    assert SPOKEN.newest - SPOKEN.oldest >= 1
    for step in (-1, 0, 1):
        if SPOKEN.oldest + step >= 1:
            assert SPOKEN.common(Versions(SPOKEN.oldest + step, SPOKEN.newest + step)) is not None


@pytest.mark.parametrize("said", ["", "two", "1.0", "-1", "0", "01", "99999", " 1", "1-2"])
def test_a_version_that_is_none(said: str) -> None:
    with pytest.raises(ValueError, match=PROTOCOL_HEADER):
        read(said, None)


@pytest.mark.parametrize("said", ["", "2", "2-1", "0-1", "1-2-3", "a-b"])
def test_a_range_that_is_none(said: str) -> None:
    with pytest.raises(ValueError, match=r"range|OLDEST-NEWEST"):
        read("2", said)


def _agent(script: Script, state_dir: Path, config: ClientConfig, end: Callable[[], bool]) -> None:
    stopper, real = loop.Stopper(), script.before
    deadline = time.monotonic() + 60

    def before(request: httpx.Request) -> httpx.Response | None:
        if end() or time.monotonic() > deadline:
            stopper.event.set()
        return real(request)

    script.before = before
    loop.run_agent(
        script.client(),
        make_site_config(state_dir, config),
        compute=Compute(device="cpu"),
        poll_s=0.0,
        stopper=stopper,
    )


@pytest.mark.parametrize("protocol", [None, 1, 2, 3, 4])
def test_an_agent_works_with_every_coordinator_of_a_neighbouring_version(
    state_dir: Path, config: ClientConfig, protocol: int | None
) -> None:
    script = Script(protocol=protocol, orders=[make_order()])
    seen: list[tuple[str, str]] = []

    def look(request: httpx.Request) -> None:
        seen.append((request.headers[PROTOCOL_HEADER], request.headers[RANGE_HEADER]))

    script.before = look
    if protocol not in (None, 1):
        script.ask()
    if protocol == 4:  # it speaks 3 and 4, and answers us in 3
        newer = script.__call__

        def answer(request: httpx.Request) -> httpx.Response:
            made = newer(request)
            made.headers[PROTOCOL_HEADER] = "3"
            return made

        script.client = lambda **_: _over(answer)  # type: ignore[method-assign]
    _agent(script, state_dir, config, lambda: bool(script.accepted))
    assert len(script.accepted) == 1
    assert len(script.said) == (protocol not in (None, 1))
    assert {each[1] for each in seen} == {"1-3"}
    # An unversioned coordinator is one of version 1 that refuses nothing.
    spoken = {None: {"1", "3"}, 1: {"1"}, 2: {"2", "3"}}
    assert {each[0] for each in seen} <= spoken.get(protocol, {"3"})


def _over(handler: Callable[[httpx.Request], httpx.Response]) -> CoordinatorClient:
    return CoordinatorClient(
        "http://127.0.0.1:1",
        "fhv_client_secret",
        retry=FAST,
        transport=httpx.MockTransport(handler),
    )


def test_an_upgraded_coordinator_is_noticed_and_a_downgraded_one_too() -> None:
    """Rolling upgrades behind one address: every request is answered, plans come when they can."""
    script = Script(protocol=1, orders=[make_order()])
    client = script.client()
    assert isinstance(client.next_work("c1", wait_s=0.0), WorkOrder)
    assert client.protocol == 1
    script.protocol, script.orders = 2, []
    script.ask()
    assert client.next_work("c1", wait_s=0.0) is None or client.protocol == 2
    assert isinstance(client.next_work("c1", wait_s=0.0), PlanOffer)
    script.protocol, script.orders = 1, [make_order()]
    assert isinstance(client.next_work("c1", wait_s=0.0), WorkOrder)
    assert client.protocol == 1


def _foreign(oldest: int, newest: int, *, mend: str) -> Callable[[httpx.Request], httpx.Response]:
    def answer(_: httpx.Request) -> httpx.Response:
        made = problem(
            400,
            "unsupported-protocol",
            mend=mend,
            protocol_oldest=oldest,
            protocol_newest=newest,
        )
        made.headers[PROTOCOL_HEADER] = str(newest)
        made.headers[RANGE_HEADER] = f"{oldest}-{newest}"
        return made

    return answer


def test_a_coordinator_out_of_reach_is_not_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent says which side to upgrade and ends with 1: no endless retries."""
    calls: list[httpx.Request] = []
    answer = _foreign(3, 4, mend="Upgrade this worker or agent to the coordinator's version.")

    def count(request: httpx.Request) -> httpx.Response:
        calls.append(request)
        return answer(request)

    write_records(tmp_path / "site-a.npz")
    (tmp_path / "site.toml").write_text(
        '[site]\nstate_dir = "state"\n[[client]]\nname = "site-a"\ndata = "site-a.npz"\n'
        'unit = "record"\npopulation = "a/all"\nmax_epsilon = 8.0\ndelta = 1e-5\n'
        "min_noise_multiplier = 0.3\n"
    )
    monkeypatch.setenv("FHV_SITE_CONFIG", str(tmp_path / "site.toml"))
    monkeypatch.setenv("FHV_TOKEN", "fhv_client_secret")
    monkeypatch.setattr("worker.client.CoordinatorClient", lambda *_, **__: _over(count))
    result = CliRunner().invoke(agent_app, ["run"])
    structlog.reset_defaults()
    assert result.exit_code == 1
    assert "unsupported-protocol" in result.stderr
    assert "Upgrade this worker or agent" in result.stderr
    assert len(calls) == 1


@pytest.mark.parametrize(
    "headers",
    [{}, {PROTOCOL_HEADER: "?"}, {PROTOCOL_HEADER: "2", RANGE_HEADER: "both"}],
)
def test_nonsense_of_a_coordinator_is_no_version(headers: dict[str, str]) -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"ok": True}, headers=headers)

    client = _over(answer)
    assert client.alive() == {"ok": True}
    assert client.protocol == 1


def test_versions_that_part_later_keep_what_waits_to_be_sent(
    site: Site, config: ClientConfig
) -> None:
    """The update stays stored: it is as good after the upgrade as before."""
    from worker.delivery import deliver

    order = make_order()
    site.ledger.reserve(order, config, lambda _: None)
    update = site.ledger.commit(AttemptKey.of(order), b"noised bytes")
    script = Script()
    place = script.place(site)
    script.before = lambda _: _foreign(3, 4, mend="Upgrade.")(_)
    with pytest.raises(ApiProblem) as error:
        deliver(update, order.lease_token, place)
    assert error.value.needs_person
    assert not error.value.final
    (kept,) = site.ledger.undelivered("site-a")
    assert kept.body == b"noised bytes"


def test_what_a_person_must_mend() -> None:
    def of(status: int, code: str) -> ApiProblem:
        return ApiProblem(problem=code, status=status, detail="")

    assert of(401, "unauthenticated").needs_person
    assert of(400, "unsupported-protocol").needs_person
    assert not of(400, "unsupported-protocol").final
    assert of(409, "conflict").final
    assert not of(409, "conflict").needs_person
