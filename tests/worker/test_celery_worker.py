"""Celery tasks: harmless when delivered again, and a real worker process on a real broker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
import structlog
from celery import Celery
from celery.exceptions import Retry
from structlog.testing import capture_logs

from core.storage import ObjectStore
from core.training import local
from core.wire.jobs import QUEUE_COORDINATOR, QUEUE_TRAIN, TASK_AGGREGATE, TASK_REPLAY, TASK_TRAIN
from core.wire.messages import AggregateInput, AggregateJob, AggregateResult
from tests.worker.sum_world import World
from tests.worker.support import (
    Script,
    make_order,
    make_site_config,
    make_spec,
    problem,
)
from worker import aggregation, celery_app, tasks
from worker.agent import backup
from worker.agent.records import AttemptKey
from worker.agent.site import LEDGER_FILE, Site
from worker.config import ClientConfig, WorkerSettings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def serve(
    monkeypatch: pytest.MonkeyPatch, state_dir: Path, config: ClientConfig
) -> Callable[[Script], None]:
    """Point the tasks at a scripted coordinator and this site."""

    def point(script: Script) -> None:
        client = script.client()
        site = make_site_config(state_dir, config)
        monkeypatch.setattr(tasks, "coordinator", lambda: client)
        monkeypatch.setattr(tasks, "site_config", lambda: site)
        monkeypatch.setattr(tasks, "settings", lambda: WorkerSettings(device="cpu"))
        monkeypatch.setattr(tasks, "stopping", threading.Event())
        monkeypatch.setattr(tasks, "_PATIENCE_S", 0.0)
        monkeypatch.setattr(tasks, "_LOCK_WAIT_S", 0.2)
        monkeypatch.setattr(tasks, "_RECOVERY_PAUSE_S", 0.05)

    return point


def ledger_kinds(state_dir: Path) -> list[str]:
    with Site.open(state_dir) as site:
        return [row.kind for row in site.ledger.entries()]


def run(task: Any, *args: str) -> Any:
    return task.apply(args=args, throw=True).result


def test_a_restored_ledger_that_was_not_completed_spends_nothing(
    serve: Callable[[Script], None], state_dir: Path
) -> None:
    """A worker's token reads no ledger: somebody has to run 'agent reconcile' first."""
    Site.open(state_dir).close()
    copy = state_dir.with_name("copy")
    backup.make(state_dir, copy)
    for path in state_dir.glob(f"{LEDGER_FILE}*"):
        path.unlink()
    backup.restore(copy, state_dir)
    order = make_order()
    script = Script(orders=[order])
    serve(script)
    assert run(tasks.train, order.work_id) == "given-back"
    assert script.failures == [(order.work_id, "site-not-ready")]
    assert script.puts == []
    assert ledger_kinds(state_dir) == []


def test_a_message_is_executed_once_however_often_it_comes(
    serve: Callable[[Script], None], state_dir: Path
) -> None:
    order = make_order()
    script = Script(orders=[order])
    serve(script)
    results = [run(tasks.train, order.work_id) for _ in range(3)]
    assert results == ["accepted", "work-gone", "work-gone"]
    assert len(script.puts) == 1
    assert ledger_kinds(state_dir) == ["reserve", "commit"]


@pytest.mark.parametrize("code", ["work-leased", "work-gone"])
@pytest.mark.parametrize("task", [tasks.train, tasks.aggregate, tasks.replay])
def test_a_refused_claim_ends_the_message(
    serve: Callable[[Script], None], state_dir: Path, task: Any, code: str
) -> None:
    script = Script()
    script.before = lambda _: problem(409, code)
    serve(script)
    assert run(task, "some-id") == code
    assert not state_dir.exists()


@pytest.mark.parametrize("task", [tasks.train, tasks.aggregate])
def test_without_a_coordinator_the_message_comes_back_later(
    serve: Callable[[Script], None], task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script()
    script.before = lambda _: httpx.Response(503)
    serve(script)
    asked: list[dict[str, Any]] = []

    def retry(**how: Any) -> Retry:
        asked.append(how)
        return Retry("later")

    monkeypatch.setattr(task, "retry", retry)
    with pytest.raises(Retry):
        run(task, "some-id")
    assert asked == [{"countdown": 1.0, "max_retries": 20}]


def test_an_unknown_client_is_given_back(serve: Callable[[Script], None], state_dir: Path) -> None:
    order = make_order(client="site-z")
    script = Script(orders=[order])
    serve(script)
    assert run(tasks.train, order.work_id) == "given-back"
    assert script.failures == [(order.work_id, "site-not-ready")]
    assert not state_dir.exists()


@pytest.mark.parametrize("name", ["site-a", "site-b"])
def test_a_step_of_another_workers_client_is_left_alone(
    serve: Callable[[Script], None], tmp_path: Path, state_dir: Path, name: str
) -> None:
    """All train workers share one queue: a no of the wrong one would be a no for good."""
    step = World(tmp_path).step(name, "keys")
    script, asked = Script(), []

    def before(request: httpx.Request) -> httpx.Response | None:
        if "secure-steps" not in request.url.path:
            return None
        asked.append(f"{request.method} {request.url.path.rsplit('/', 1)[1]}")
        return httpx.Response(
            200 if request.method == "GET" else 204, content=step.model_dump_json()
        )

    script.before = before
    serve(script)
    structlog.reset_defaults()
    with capture_logs() as lines:
        assert run(tasks.sum_step, step.step_id) == "not-answered"
    if name == "site-b":
        assert asked == [f"GET {step.step_id}"]
        ((line),) = lines
        assert line["event"] == "client_not_configured"
        assert "[[client]]" in line["mend"]
        assert "another worker" in line["mend"]
        assert not state_dir.exists()
    else:  # its own it declines, if it must: here no peers are pinned
        assert asked == [f"GET {step.step_id}", "POST decline"]


def test_an_impossible_order_is_refused(serve: Callable[[Script], None], state_dir: Path) -> None:
    order = make_order()
    raw = order.model_dump(mode="json")
    raw["event"]["noise_multiplier"] = 0
    script = Script(orders=[order])
    script.before = lambda r: (
        httpx.Response(200, json=raw) if r.url.path.endswith("claim") else None
    )
    serve(script)
    assert run(tasks.train, order.work_id) == "plan-refused"
    assert script.failures == [(order.work_id, "plan-refused")]
    assert not state_dir.exists()


def test_a_client_that_another_process_serves_is_given_back(
    serve: Callable[[Script], None], state_dir: Path
) -> None:
    order = make_order()
    script = Script(orders=[order])
    serve(script)
    with Site.open(state_dir) as site, site.lock("site-a"):
        assert run(tasks.train, order.work_id) == "given-back"
    assert ledger_kinds(state_dir) == []


def test_a_lost_ledger_is_given_back(serve: Callable[[Script], None], state_dir: Path) -> None:
    Site.open(state_dir).close()
    for path in state_dir.glob("ledger*"):
        path.unlink()
    order = make_order()
    script = Script(orders=[order])
    serve(script)
    assert run(tasks.train, order.work_id) == "given-back"
    assert script.puts == []


def test_a_task_first_ends_what_its_client_left_behind(
    serve: Callable[[Script], None], state_dir: Path, config: ClientConfig
) -> None:
    left, order = make_order(make_spec(run_id="another")), make_order()
    with Site.open(state_dir) as site:
        site.ledger.reserve(left, config, lambda _: None)
    script = Script(orders=[left, order])
    serve(script)
    assert run(tasks.train, order.work_id) == "accepted"
    assert script.failures == [(left.work_id, "site-not-ready")]
    assert ledger_kinds(state_dir) == ["reserve", "lost", "reserve", "commit"]


def test_a_started_worker_finishes_what_a_killed_one_left(
    serve: Callable[[Script], None], state_dir: Path, config: ClientConfig
) -> None:
    committed, begun = make_order(attempt=1), make_order(attempt=2)
    with Site.open(state_dir) as site:
        for order in (committed, begun):
            site.ledger.reserve(order, config, lambda _: None)
        update = site.ledger.commit(AttemptKey.of(committed), b"stored")
    script = Script(orders=[committed, begun])
    failures = iter([httpx.Response(503)] * 4)
    script.before = lambda r: next(failures, None) if r.method == "PUT" else None
    serve(script)
    thread = tasks.start_recovery()
    thread.join(10)
    assert not thread.is_alive()
    assert list(script.accepted.values()) == [update.digest]
    assert script.failures == [(begun.work_id, "site-not-ready")]
    assert ledger_kinds(state_dir) == ["reserve", "reserve", "commit", "lost"]


# --- aggregation ---


@pytest.fixture
def job(config: ClientConfig, tmp_path: Path) -> tuple[AggregateJob, str]:
    """A sketch round's job over one real update in a real store."""
    from core import data
    from core.privacy.noise import csprng

    spec, url = make_spec(), f"file://{tmp_path / 'store'}"
    records = data.load(config.data, spec.space, unit="record")
    released = local.execute(make_order(spec), records, {}, secret=bytes(32), noise=csprng())
    stored = ObjectStore(url).put(released.update)
    update = AggregateInput(client_id="id-of-site-a", client="site-a", digest=stored.digest)
    made = AggregateJob(
        job_id="job-1", lease_token="job-lease", lease_s=60, run_id=spec.run_id, round_number=0,
        kind="sketch", spec=spec, updates=(update,),
    )  # fmt: skip
    return made, url


class JobScript(Script):
    """Answers for one job; ``results`` are what was completed, ``reported`` what failed."""

    def __init__(self, *answers: httpx.Response) -> None:
        super().__init__()
        self.results: list[AggregateResult] = []
        self.reported: list[dict[str, str]] = []
        self._answers = iter(answers)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        action = request.url.path.rsplit("/", 1)[1]
        if action == "complete":
            self.results.append(AggregateResult.model_validate_json(request.read()))
            return next(self._answers, httpx.Response(204))
        if action == "fail":
            self.reported.append(json.loads(request.read()))
            return httpx.Response(204)
        return super().__call__(request)


def carry_out(job: AggregateJob, url: str, script: JobScript) -> str:
    return aggregation.carry_out(job, script.client(), url, stop=threading.Event())


def test_an_aggregation_stores_and_names_the_same_model_each_time(
    job: tuple[AggregateJob, str],
) -> None:
    script = JobScript()
    assert [carry_out(*job, script) for _ in range(2)] == ["completed"] * 2
    first, second = script.results
    assert first == second
    assert first.diagnostics is not None
    assert [client.client_id for client in first.diagnostics.clients] == ["id-of-site-a"]
    store = ObjectStore(job[1])
    assert len(store.get(first.frame.digest)) == first.frame.size
    assert len(store.get(first.weights.digest)) == first.weights.size
    assert len(store.get(first.optimiser_digest)) == first.optimiser_size


def test_a_result_is_offered_until_the_coordinator_hears(
    job: tuple[AggregateJob, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aggregation, "_PAUSE_S", 0.01)
    script = JobScript(*[httpx.Response(503)] * 7, problem(500, "internal-error"))
    assert carry_out(*job, script) == "completed"
    assert len(set(map(str, script.results))) == 1


def test_a_replay_finds_the_same_digests_and_stores_nothing(
    job: tuple[AggregateJob, str], tmp_path: Path
) -> None:
    script = JobScript()
    assert carry_out(*job, script) == "completed"
    store = ObjectStore(job[1])
    made = script.results[0]
    for digest in (made.frame.digest, made.weights.digest, made.optimiser_digest):
        store.delete(digest)
    before = sorted(path for path in (tmp_path / "store").rglob("*") if path.is_file())
    how = {"stop": threading.Event(), "replay": True}
    assert aggregation.carry_out(job[0], script.client(), job[1], **how) == "completed"
    assert script.results[1] == made
    assert sorted(path for path in (tmp_path / "store").rglob("*") if path.is_file()) == before


def test_a_replay_of_altered_bytes_fails_with_the_code_of_the_store(
    job: tuple[AggregateJob, str], tmp_path: Path
) -> None:
    (stored,) = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    body = stored.read_bytes()
    stored.write_bytes(body[:-1] + bytes([body[-1] ^ 1]))
    script = JobScript()
    how = {"stop": threading.Event(), "replay": True}
    assert aggregation.carry_out(job[0], script.client(), job[1], **how) == "object-corrupt"
    assert script.reported[0]["code"] == "object-corrupt"


def test_a_refused_result_is_final(job: tuple[AggregateJob, str]) -> None:
    assert carry_out(*job, JobScript(problem(409, "lease-lost"))) == "lease-lost"


def test_a_missing_update_fails_the_job_with_its_code(job: tuple[AggregateJob, str]) -> None:
    script = JobScript()
    gone = AggregateInput(client_id="c", client="site-b", digest="sha256:" + "d" * 64)
    broken = job[0].model_copy(update={"updates": (*job[0].updates, gone)})
    assert carry_out(broken, job[1], script) == "object-missing"
    assert script.reported[0]["code"] == "object-missing"
    assert script.results == []


def test_an_unforeseen_error_fails_the_job_without_its_text(
    job: tuple[AggregateJob, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("secret=1")

    monkeypatch.setattr("core.federation.aggregate.aggregate", broken)
    script = JobScript()
    assert carry_out(*job, script) == aggregation.FAILED
    assert script.reported == [
        {"code": aggregation.FAILED,
         "detail": "ZeroDivisionError; see the log of the coordinator worker"}
    ]  # fmt: skip


# --- the application ---


def test_the_configuration_of_the_application() -> None:
    conf = celery_app.app.conf
    assert conf.accept_content == ["json"]
    assert conf.task_serializer == "json"
    assert conf.task_acks_late
    assert conf.task_reject_on_worker_lost
    assert conf.worker_prefetch_multiplier == 1
    assert conf.worker_pool == "solo"
    assert conf.broker_connection_retry_on_startup
    assert conf.result_backend is None
    # Longer than the longest lease that a plan may have (one day).
    assert conf.broker_transport_options["visibility_timeout"] > 86_400
    assert {TASK_TRAIN, TASK_AGGREGATE, TASK_REPLAY} <= set(celery_app.app.tasks)


@pytest.fixture
def process(
    broker_url: str, tmp_path: Path, config: ClientConfig
) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Start ``worker run --queue ...`` on a real broker; nobody is at the coordinator."""
    started: list[subprocess.Popen[str]] = []
    toml = tmp_path / "site.toml"
    toml.write_text(
        f'[site]\nstate_dir = "{tmp_path / "state"}"\n[[client]]\nname = "site-a"\n'
        f'data = "{config.data}"\nunit = "record"\npopulation = "a/all"\nmax_epsilon = 8.0\n'
        "delta = 1e-5\nmin_noise_multiplier = 0.3\n"
    )

    def start(queue: str) -> subprocess.Popen[str]:
        env = os.environ | {
            "FHV_BROKER_URL": broker_url,
            "FHV_COORDINATOR_URL": "http://127.0.0.1:9",
            "FHV_TOKEN": "fhv_worker_do-not-show",
            "FHV_SITE_CONFIG": str(toml),
            "FHV_OBJECT_STORE_URL": f"file://{tmp_path / 'store'}",
            "PYTHONPATH": str(ROOT),
        }
        code = "from worker.cli import worker_app; worker_app()"
        command = [sys.executable, "-c", code, "run", "--queue", queue]
        child = subprocess.Popen(
            command, cwd=ROOT, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        started.append(child)
        return child

    yield start
    for child in started:
        if child.poll() is None:
            child.kill()
        child.wait(10)
        if child.stderr is not None:
            child.stderr.close()


@pytest.mark.parametrize(
    ("queue", "task"), [(QUEUE_TRAIN, TASK_TRAIN), (QUEUE_COORDINATOR, TASK_AGGREGATE)]
)
def test_a_worker_process_hears_its_queue_and_ends_on_sigterm(
    process: Callable[[str], subprocess.Popen[str]], broker_url: str, queue: str, task: str
) -> None:
    """Sent as the coordinator sends: by name, one id, one queue."""
    child = process(queue)
    with Celery("sender", broker=broker_url, set_as_current=False) as sender:
        sender.conf.update(task_ignore_result=True)
        sender.send_task(task, args=["an-id"], queue=queue, ignore_result=True)
    assert child.stderr is not None
    seen = []
    until = time.monotonic() + 60
    for line in child.stderr:
        seen.append(line)
        if "an-id" in line or "retry_scheduled" in line or time.monotonic() > until:
            break
    assert "an-id" in seen[-1], seen
    child.send_signal(signal.SIGTERM)
    rest = child.stderr.read()
    assert child.wait(30) == 0, rest
    assert "do-not-show" not in "".join(seen) + rest
    with redis.Redis.from_url(broker_url) as broker:
        assert broker.llen(queue) == 1  # it waits for the next worker
