"""One order from judgement to receipt, with real records, real noise and a real ledger."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import structlog
from structlog.testing import capture_logs

from core import data
from core.federation.aggregate import aggregate
from core.federation.updates import check_update, expectation
from core.privacy import accounting
from core.synthesis.sampler import Generator
from core.training.local import Released
from core.wire.messages import AggregateInput, AggregateJob, ObjectRef
from tests.worker.support import (
    Script,
    make_config,
    make_order,
    make_spec,
    problem,
    write_records,
)
from worker.agent.records import AttemptKey
from worker.agent.site import Site
from worker.agent.spend import SiteLedger
from worker.cache import digest_of_bytes
from worker.config import ClientConfig
from worker.errors import SiteStateError
from worker.execution import Outcome, perform, recover


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Which data files were opened."""
    opened: list[Path] = []
    real = data.load

    def load(path: Path, *args: Any, **kwargs: Any) -> data.EmbeddingDataset:
        opened.append(path)
        return real(path, *args, **kwargs)

    monkeypatch.setattr(data, "load", load)
    return opened


@pytest.fixture
def log() -> Iterator[list[Any]]:
    structlog.reset_defaults()
    with capture_logs() as lines:
        yield lines


def kinds(site: Site) -> list[str]:
    return [entry.kind for entry in site.ledger.entries()]


def test_a_sketch_round_end_to_end(
    site: Site, config: ClientConfig, log: list[Any], loads: list[Path]
) -> None:
    order = make_order()
    script = Script(orders=[order])
    assert perform(order, config, script.place(site)) is Outcome.ACCEPTED
    assert kinds(site) == ["reserve", "commit"]
    ((path, digest, lease),) = script.puts
    assert lease == order.lease_token
    check_update(script.bodies[digest], expectation(order.spec, 0))
    stored = site.ledger.undelivered(config.name)
    assert stored == []
    assert path.startswith("/v1/runs/run-1/rounds/0/updates/")
    assert loads == [config.data]
    events = {line["event"] for line in log}
    assert {"order_judged", "attempt_reserved", "attempt_committed", "update_accepted"} <= events
    assert order.lease_token not in str(log)


def test_a_training_round_end_to_end(site: Site, config: ClientConfig) -> None:
    spec = make_spec()
    first = make_order(spec)
    script = Script(orders=[first])
    assert perform(first, config, script.place(site)) is Outcome.ACCEPTED
    ((_, digest, _),) = script.puts
    job = AggregateJob(
        job_id="j", lease_token="l", lease_s=60, run_id=spec.run_id, round_number=0, kind="sketch",
        spec=spec,
        updates=(AggregateInput(client_id=first.client_id, client="site-a", digest=digest),),
    )  # fmt: skip
    made = aggregate(job, script.bodies.__getitem__)
    script.objects = {digest_of_bytes(body): body for body in (made.frame, made.weights)}
    inputs = (
        ObjectRef(role="frame", digest=digest_of_bytes(made.frame), size=len(made.frame)),
        ObjectRef(role="weights", digest=digest_of_bytes(made.weights), size=len(made.weights)),
    )
    order = make_order(spec, round_number=1, inputs=inputs)
    script.orders = [order]
    assert perform(order, config, script.place(site)) is Outcome.ACCEPTED
    check_update(script.bodies[script.puts[-1][1]], expectation(spec, 1))
    assert kinds(site) == ["reserve", "commit"] * 2


def test_rounds_with_everything_of_ones_own(site: Site, config: ClientConfig) -> None:
    """Local steps, a trained code and a local encoder: orders, aggregation and what is kept."""
    spec = make_spec(model={"codes": "trained", "encoder": "local"}, local_steps=2)
    script, files, kept = Script(), {}, []
    for number in range(3):
        inputs = tuple(
            ObjectRef(role=role, digest=digest_of_bytes(files[role]), size=len(files[role]))
            for role in ("frame", "weights") if files
        )  # fmt: skip
        order = make_order(spec, round_number=number, inputs=inputs)
        script.orders = [order]
        assert perform(order, config, script.place(site)) is Outcome.ACCEPTED
        digest = script.puts[-1][1]
        check_update(script.bodies[digest], expectation(spec, number))
        job = AggregateJob(
            job_id="j", lease_token="l", lease_s=60, run_id=spec.run_id, round_number=number,
            kind=order.kind, spec=spec,
            updates=(AggregateInput(client_id=order.client_id, client="site-a", digest=digest),),
            **{role: digest_of_bytes(body) for role, body in files.items()},
        )  # fmt: skip
        made = aggregate(job, (script.bodies | script.objects).__getitem__)
        files = {role: getattr(made, role) for role in ("frame", "weights", "optimiser")}
        script.objects = {digest_of_bytes(body): body for body in files.values()}
        key = AttemptKey.of(make_order(spec, round_number=number))
        kept.append(site.ledger.kept(key._replace(round_number=number + 1)))
    assert kinds(site) == ["reserve", "commit"] * 3
    assert kept[0] is None
    assert None not in kept[1:]
    assert kept[1] != kept[2]
    executed = [entry.event.steps for entry in site.ledger.entries() if entry.kind == "commit"]
    assert executed == [1, 2, 2]
    assert site.ledger.epsilon(config.population, 1e-5) == accounting.epsilon(spec.events(), 1e-5)
    generator = Generator.load(files["frame"], files["weights"], spec)
    assert generator.network_code({"site-a": 1.0}).any()


def refused_orders() -> dict[str, Any]:
    spec = make_spec()
    return {
        "little noise": (make_order(spec), {"min_noise_multiplier": 5.0}),
        "inflated q": (make_order(make_spec(sample_rate=1.0)), {"max_sample_rate": 0.5}),
        "one charge for two steps": (
            make_order(make_spec(local_steps=2), round_number=1).model_copy(
                update={"event": make_spec().event(1)}
            ),
            {},
        ),
        "booked event differs": (
            make_order(spec).model_copy(
                update={
                    "event": make_order(spec).event.model_copy(update={"noise_multiplier": 9.0})
                }
            ),
            {},
        ),
        "beyond the budget": (make_order(spec), {"max_epsilon": 1.0}),
        "simulation": (make_order(make_spec(purpose="simulation")), {}),
        "another unit": (make_order(make_spec(unit="patient")), {}),
        "another space": (make_order(spec), {"space_digest": "sha256:" + "a" * 64}),
        "another client": (make_order(spec, client="site-b"), {}),
        "another layout": (
            make_order(spec).model_copy(update={"update_layout": "sha256:" + "b" * 64}),
            {},
        ),
    }


@pytest.mark.parametrize("case", sorted(refused_orders()))
def test_a_refused_order_touches_neither_records_nor_ledger(
    site: Site, records: Path, loads: list[Path], case: str, log: list[Any]
) -> None:
    order, changes = refused_orders()[case]
    script = Script(orders=[order])
    config = make_config(records, **changes)
    assert perform(order, config, script.place(site)) is Outcome.PLAN_REFUSED
    assert loads == []
    assert kinds(site) == []
    assert site.ledger.is_unused()
    assert script.failures == [(order.work_id, "plan-refused")]
    assert script.puts == []
    assert [line["event"] for line in log if line["log_level"] == "error"] == ["plan_refused"]


def test_a_spec_that_changes_mid_run_is_refused(
    site: Site, config: ClientConfig, loads: list[Path]
) -> None:
    first = make_order()
    script = Script(orders=[first])
    perform(first, config, script.place(site))
    loads.clear()
    other = make_order(make_spec(clip_norm=2.0), attempt=2)
    script.orders = [other]
    assert perform(other, config, script.place(site)) is Outcome.PLAN_REFUSED
    assert loads == []
    assert kinds(site) == ["reserve", "commit"]


def test_a_sibling_client_that_spends_between_judgement_and_reservation(
    site: Site, config: ClientConfig, loads: list[Path]
) -> None:
    """The account is judged again in the transaction that charges it."""
    spec = make_spec(rounds=0)
    order = make_order(spec)
    tight = config.model_copy(update={"max_epsilon": accounting.epsilon(spec.events(), 1e-5)})
    script = Script(orders=[order])
    twin = make_config(config.data, name="site-b")

    def meanwhile(request: httpx.Request) -> httpx.Response | None:
        if "/objects/" in request.url.path:  # downloads come after the first judgement
            with Site.open(site.folder) as other:
                other.ledger.reserve(make_order(spec, client="site-b"), twin, lambda _: None)
        return None

    script.before = meanwhile
    body = b"an input"
    script.objects = {digest_of_bytes(body): body}
    ref = ObjectRef(role="frame", digest=digest_of_bytes(body), size=len(body))
    order = order.model_copy(update={"inputs": (ref,)})
    assert perform(order, tight, script.place(site)) is Outcome.PLAN_REFUSED
    assert loads == []
    assert [entry.key.client for entry in site.ledger.entries()] == ["site-b"]


def _missing(path: Path) -> None:
    path.unlink()


def _wrong_width(path: Path) -> None:
    np.savez(path, x=np.zeros((3, 5), np.float32), y=np.zeros(3, np.int64))


def _garbage(path: Path) -> None:
    path.write_bytes(b"PK not a zip")


@pytest.mark.parametrize("damage", [_missing, _wrong_width, _garbage])
def test_unusable_records_look_the_same_from_outside(
    site: Site, config: ClientConfig, damage: Any, log: list[Any]
) -> None:
    damage(config.data)
    order = make_order()
    script = Script(orders=[order])
    assert perform(order, config, script.place(site)) is Outcome.GIVEN_BACK
    assert script.failures == [(order.work_id, "site-not-ready")]
    assert script.puts == []
    assert kinds(site) == ["reserve", "lost"]  # it counts: reserved before the file was opened
    (line,) = [line for line in log if line["event"] == "data_unusable"]
    assert line["code"].startswith("data-")


@pytest.mark.parametrize("labels", [[], ["secret diagnosis"]])
def test_a_vocabulary_cannot_be_used_to_ask_which_classes_a_site_holds(
    site: Site, config: ClientConfig, log: list[Any], labels: list[str]
) -> None:
    x = np.ones((len(labels), 12), np.float32)
    np.savez(config.data, x=x, y=np.array(labels, dtype=np.str_))
    order = make_order()
    script = Script(orders=[order])
    assert perform(order, config, script.place(site)) is Outcome.ACCEPTED
    assert script.failures == []
    assert "secret diagnosis" not in str(log)


def test_a_changed_data_set_does_not_join_the_same_run(
    site: Site, config: ClientConfig, log: list[Any]
) -> None:
    first = make_order(attempt=1)
    script = Script(orders=[first])
    assert perform(first, config, script.place(site)) is Outcome.ACCEPTED
    write_records(config.data, seed=1)
    again = make_order(attempt=2)
    script.orders = [again]
    assert perform(again, config, script.place(site)) is Outcome.GIVEN_BACK
    assert len(script.puts) == 1
    assert kinds(site)[2:] == ["reserve", "lost"]
    assert "data-changed" in {line.get("code") for line in log}
    write_records(config.data, seed=0)  # the old records again: welcome
    third = make_order(attempt=3)
    script.orders = [third]
    assert perform(third, config, script.place(site)) is Outcome.ACCEPTED


def test_a_nan_record_contributes_nothing_and_is_counted_in_the_sites_log_only(
    site: Site, config: ClientConfig, log: list[Any]
) -> None:
    with np.load(config.data) as file:
        x, y = file["x"], file["y"]
    x[3, 2] = np.nan
    np.savez(config.data, x=x, y=y)
    order = make_order()
    script = Script(orders=[order])
    assert perform(order, config, script.place(site)) is Outcome.ACCEPTED
    check_update(script.bodies[script.puts[0][1]], expectation(order.spec, 0))
    (line,) = [line for line in log if line["event"] == "records_ignored"]
    assert line["records"] == 1
    assert "nan" not in str(line).lower()


def test_an_unforeseen_error_is_logged_without_its_text(
    site: Site, config: ClientConfig, monkeypatch: pytest.MonkeyPatch, log: list[Any]
) -> None:
    def execute(*_: Any, **__: Any) -> None:
        raise RuntimeError("x = [0.123, 0.456]")

    monkeypatch.setattr("core.training.local.execute", execute)
    order = make_order()
    script = Script(orders=[order])
    assert perform(order, config, script.place(site)) is Outcome.GIVEN_BACK
    assert kinds(site) == ["reserve", "lost"]
    assert "0.123" not in str(log)
    assert "RuntimeError" in str(log)


def test_inputs_that_cannot_be_had_cost_nothing(site: Site, config: ClientConfig) -> None:
    missing = ObjectRef(role="frame", digest="sha256:" + "c" * 64, size=10)
    order = make_order(round_number=1, inputs=(missing,))
    script = Script(orders=[order])
    assert perform(order, config, script.place(site)) is Outcome.GIVEN_BACK
    assert script.failures == [(order.work_id, "site-not-ready")]
    assert site.ledger.is_unused()


@pytest.mark.parametrize("code", ["round-closed", "lease-lost", "update-conflict"])
def test_a_final_answer_ends_the_resending(site: Site, config: ClientConfig, code: str) -> None:
    order = make_order()
    script = Script(orders=[order])
    script.before = lambda r: problem(409, code) if r.method == "PUT" else None
    assert perform(order, config, script.place(site)) is Outcome.REFUSED
    assert kinds(site) == ["reserve", "commit"]  # executed, hence charged
    assert site.ledger.undelivered(config.name) == []


@pytest.mark.parametrize("answer", [httpx.Response(503), problem(500, "internal-error")])
def test_a_coordinator_that_is_away_gets_the_same_bytes_later(
    site: Site, config: ClientConfig, answer: httpx.Response
) -> None:
    order = make_order()
    script = Script(orders=[order])
    sent: list[bytes] = []

    def away(request: httpx.Request) -> httpx.Response | None:
        if request.method == "PUT":
            sent.append(request.read())
            return answer
        return None

    script.before = away
    assert perform(order, config, script.place(site)) is Outcome.PENDING
    (update,) = site.ledger.undelivered(config.name)
    script.before = lambda _: None
    assert perform(order, config, script.place(site)) is Outcome.ACCEPTED
    assert set(sent) == {update.body, *script.bodies.values()}
    assert len(set(sent)) == 1
    assert kinds(site) == ["reserve", "commit"]


def test_a_receipt_for_other_bytes_is_not_believed(site: Site, config: ClientConfig) -> None:
    order = make_order()
    script = Script(orders=[order])
    lie = {
        "update_id": "u", "run_id": "run-1", "round_number": 0, "client_id": "c",
        "digest": "sha256:" + "0" * 64, "size": 1,
    }  # fmt: skip
    script.before = lambda r: httpx.Response(201, json=lie) if r.method == "PUT" else None
    assert perform(order, config, script.place(site)) is Outcome.REFUSED


def test_a_lease_that_ends_before_the_work_begins_stops_it(
    site: Site, config: ClientConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = make_order(lease_s=0.2)
    script = Script(orders=[order])
    script.before = lambda r: problem(409, "lease-lost") if "renew" in r.url.path else None
    executed: list[object] = []
    real = data.load

    def slow(*args: Any, **kwargs: Any) -> data.EmbeddingDataset:
        for _ in range(200):
            if any("renew" in call for call in script.calls):
                break
            time.sleep(0.02)
        time.sleep(0.1)
        return real(*args, **kwargs)

    monkeypatch.setattr(data, "load", slow)
    monkeypatch.setattr("core.training.local.execute", lambda *a, **k: executed.append(a))
    assert perform(order, config, script.place(site)) is Outcome.GIVEN_BACK
    assert executed == []
    assert kinds(site) == ["reserve", "lost"]


def test_the_lease_is_renewed_while_the_work_runs(
    site: Site, config: ClientConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = data.load

    def slow(*args: Any, **kwargs: Any) -> data.EmbeddingDataset:
        time.sleep(0.5)
        return real(*args, **kwargs)

    monkeypatch.setattr(data, "load", slow)
    order = make_order(lease_s=0.3)
    script = Script(orders=[order])
    assert perform(order, config, script.place(site)) is Outcome.ACCEPTED
    assert script.renewals >= 1


def test_an_interrupt_gives_the_work_back(
    site: Site, config: ClientConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr("core.training.local.execute", interrupted)
    order = make_order()
    script = Script(orders=[order])
    with pytest.raises(KeyboardInterrupt):
        perform(order, config, script.place(site))
    assert kinds(site) == ["reserve", "lost"]
    assert script.failures == [(order.work_id, "site-not-ready")]


@pytest.mark.parametrize("when", ["reserve", "commit"])
def test_a_full_disk_is_named_and_costs_no_second_execution(
    site: Site, config: ClientConfig, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    order = make_order()
    script = Script(orders=[order])
    db = site.ledger._db

    def fill() -> None:
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        db.execute(f"PRAGMA max_page_count = {pages}")

    def execute(*_: Any, **__: Any) -> Released:
        fill()
        return Released(b"x" * 100_000)

    monkeypatch.setattr("core.training.local.execute", execute)
    if when == "reserve":
        fill()
        big = config.model_copy(update={"population": "p" * 20_000})  # needs a page of its own
        with pytest.raises(SiteStateError, match="cannot be written"):
            perform(order, big, script.place(site))
        assert kinds(site) == []
    else:
        assert perform(order, config, script.place(site)) is Outcome.GIVEN_BACK
        assert kinds(site) == ["reserve", "lost"]
    assert script.failures == [(order.work_id, "site-not-ready")]
    assert script.puts == []


def test_work_is_given_back_even_if_the_loss_cannot_be_booked(
    site: Site, config: ClientConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator need not wait for the lease; the site books the loss at its next start."""

    def full(*_: Any) -> None:
        raise SiteStateError("disk full")

    order = make_order()
    script = Script(orders=[order])
    with monkeypatch.context() as disk:
        disk.setattr(SiteLedger, "commit", full)
        disk.setattr(SiteLedger, "lose", full)
        with pytest.raises(SiteStateError, match="disk full"):
            perform(order, config, script.place(site))
    assert script.failures == [(order.work_id, "site-not-ready")]
    assert kinds(site) == ["reserve"]
    recover(config, script.place(site))
    assert kinds(site) == ["reserve", "lost"]
    assert script.puts == []


def test_a_probe_finds_a_full_disk_and_changes_nothing(site: Site) -> None:
    db = site.ledger._db
    (version,) = db.execute("PRAGMA user_version").fetchone()
    site.ledger.probe()
    assert db.execute("PRAGMA user_version").fetchone() == (version,)
    db.execute("PRAGMA query_only = ON")  # as good as full: nothing can be written
    with pytest.raises(SiteStateError, match="cannot be written"):
        site.ledger.probe()


def test_units_of_two_clients_draw_different_coins(site: Site) -> None:
    assert site.key("coins/site-a") != site.key("coins/site-b") != site.key("records/a/all")
