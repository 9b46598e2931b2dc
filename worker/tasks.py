"""The Celery tasks. Each claims its row at the coordinator first; a refused claim ends it. (A plan
is not claimed: its site's word is the same whoever gives it.)

Delivered twice, late or after a crash they are harmless: a lease that somebody else holds, or work
that is over, refuses the claim, and an attempt that this site has begun before is never executed
again (see ``worker.execution``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from typing import Any

from core import tracing
from core.wire.jobs import (
    QUEUE_COORDINATOR,
    QUEUE_TRAIN,
    TASK_AGGREGATE,
    TASK_CONSENT,
    TASK_REPLAY,
    TASK_STEP,
    TASK_SYNTHESISE,
    TASK_TRAIN,
)
from worker import aggregation, execution, files, logs
from worker.agent import sums
from worker.agent.consent import consider
from worker.agent.site import Site
from worker.cache import ObjectCache
from worker.celery_app import app
from worker.client import CoordinatorClient
from worker.config import ClientConfig, SiteConfig, WorkerSettings, load_settings
from worker.delivery import Workplace, give_back
from worker.errors import ApiProblem, ClientBusy, ClientError, OrderUnreadable, SiteStateError
from worker.execution import perform, recover

_log = logs.get("worker.tasks")

OBJECT_FOLDER = "objects"
_LOCK_WAIT_S = 60.0
_PATIENCE_S = 900.0
_MOST_RETRIES = 20
_LONGEST_RETRY_S = 60.0
_RECOVERY_PAUSE_S = 15.0

stopping = threading.Event()  # set when the worker is told to stop


@cache
def settings() -> WorkerSettings:
    return load_settings()


@cache
def site_config() -> SiteConfig:
    return settings().require_site()


@cache
def coordinator() -> CoordinatorClient:
    """One per process; a train worker keeps downloaded models beside its ledger."""
    chosen = settings()
    cache_folder = None
    if chosen.site_config is not None:
        cache_folder = ObjectCache(site_config().state_dir / OBJECT_FOLDER)
    return CoordinatorClient(chosen.coordinator_url, chosen.token_source(), cache=cache_folder)


def _train(task: Any, work_id: str) -> str:
    """Claim a managed client's order and execute it."""
    try:
        order = coordinator().claim_work(work_id)
    except OrderUnreadable as error:
        _log.error("plan_refused", work_id=work_id, problems=error.problems)
        if error.work_id and error.lease_token:
            give_back(error.work_id, error.lease_token, "plan-refused", coordinator())
        return "plan-refused"
    except ClientError as error:
        return _not_claimed(task, error, work_id=work_id)
    config = site_config().named(order.client)
    if config is None:
        _log.error(
            "client_not_configured", client=order.client, work_id=work_id,
            mend="Add a [[client]] to the site configuration of this worker.",
        )  # fmt: skip
        give_back(order.work_id, order.lease_token, "site-not-ready", coordinator())
        return "given-back"
    try:
        with (
            Site.open(site_config().state_dir) as site,
            site.lock(config.name, wait_s=_LOCK_WAIT_S),
        ):
            place = _workplace(site)
            recover(config, place)
            return str(perform(order, config, place))
    except ApiProblem as problem:  # the token: what is stored is offered again when it is mended
        _log.error("token_refused", work_id=work_id, problem=problem.problem, mend=problem.mend)
        return problem.problem
    except SiteStateError as error:
        _log.error("site_not_usable", work_id=work_id, code=error.code, reason=error.message)
        give_back(order.work_id, order.lease_token, "site-not-ready", coordinator())
        return "given-back"


def _consent(task: Any, plan_id: str) -> str:
    """Answer every plan that awaits the word of this site's clients; one message may serve many.

    What a person must answer stays as it is, and is announced again from time to time.
    """
    try:
        mine = [
            (plan, config)
            for plan in coordinator().plans(state="asked")
            if (config := site_config().named(plan.client)) is not None
        ]
        if not mine:
            return "nothing-asked"
        with Site.open(site_config().state_dir) as site:
            answered = [consider(plan, config, site.ledger, coordinator()) for plan, config in mine]
    except ClientError as error:
        return _not_claimed(task, error, plan_id=plan_id)
    except SiteStateError as error:
        _log.error("site_not_usable", code=error.code, reason=error.message, mend=error.mend)
        return error.code
    return "answered" if all(answered) else "awaits-a-person"


def _step(task: Any, step_id: str) -> str:
    """Answer a step of a secure sum for a managed client. That of another worker's client is left
    alone: a no would be for good, and it is announced again while it waits.
    """
    try:
        step = coordinator().sum_step(step_id)
        config = site_config().named(step.client)
        if config is None:
            _log.error(
                "client_not_configured", client=step.client, step_id=step_id,
                mend="Add a [[client]] to the site configuration of this worker, if it is its "
                "site's. If another worker serves it, that one answers when it is announced again.",
            )  # fmt: skip
            return "not-answered"
        with (
            Site.open(site_config().state_dir) as site,
            site.lock(config.name, wait_s=_LOCK_WAIT_S),
        ):
            return "answered" if sums.answer(step, config, _workplace(site)) else "not-answered"
    except ClientError as error:
        return _not_claimed(task, error, step_id=step_id)
    except SiteStateError as error:
        _log.error(
            "site_not_usable", step_id=step_id, code=error.code, reason=error.message,
            mend=error.mend,
        )  # fmt: skip
        return error.code  # the step is announced again while it waits


def _aggregate(task: Any, job_id: str) -> str:
    """Claim an aggregation and carry it out."""
    try:
        job = coordinator().claim_job(job_id)
    except ClientError as error:
        return _not_claimed(task, error, job_id=job_id)
    return aggregation.carry_out(
        job, coordinator(), settings().require_object_store_url(), stop=stopping
    )


def _replay(task: Any, job_id: str) -> str:
    """Claim a replay and carry it out."""
    try:
        job = coordinator().claim_job(job_id)
    except ClientError as error:
        return _not_claimed(task, error, job_id=job_id)
    store_url = settings().require_object_store_url()
    return aggregation.carry_out(job, coordinator(), store_url, stop=stopping, replay=True)


def _synthesise(task: Any, job_id: str) -> str:
    """Claim a file of rows and make it."""
    from core.receipts.opening import made_with
    from core.wire.synthesis import Claim

    try:
        job = coordinator().claim_file(job_id, Claim(made_with=made_with()))
    except ClientError as error:
        return _not_claimed(task, error, job_id=job_id)
    return files.make(job, coordinator(), settings().require_object_store_url(), stop=stopping)


def _not_claimed(task: Any, error: ClientError, **facts: str) -> str:
    """Over for this message if the coordinator says so; otherwise the message comes back later."""
    if isinstance(error, ApiProblem) and error.final:
        _log.info("claim_refused", problem=error.problem, **facts)
        return error.problem
    seconds = min(2.0 ** int(task.request.retries or 0), _LONGEST_RETRY_S)
    _log.warning(
        "claim_failed", code=error.code, reason=error.message, mend=error.mend,
        retry_in_s=seconds, **facts,
    )  # fmt: skip
    raise task.retry(countdown=seconds, max_retries=_MOST_RETRIES)


def _traced(run: Callable[[Any, str], str]) -> Callable[[Any, str], str]:
    """The task as a part of the trace that its message names. Tasks of sites are never traced."""

    def traced(task: Any, job_id: str) -> str:
        parent = (task.request.headers or {}).get(tracing.HEADER)
        about = {"messaging.system": "celery", "fhv.subject": job_id}
        with tracing.span(f"process {task.name}", "consumer", about, parent=parent):
            return run(task, job_id)

    return traced


train = app.task(name=TASK_TRAIN, bind=True)(_train)
consent = app.task(name=TASK_CONSENT, bind=True)(_consent)
sum_step = app.task(name=TASK_STEP, bind=True)(_step)
aggregate = app.task(name=TASK_AGGREGATE, bind=True)(_traced(_aggregate))
replay = app.task(name=TASK_REPLAY, bind=True)(_traced(_replay))
synthesise = app.task(name=TASK_SYNTHESISE, bind=True)(_traced(_synthesise))


# --- what a worker does when it starts ---


def make_ready(queue: str) -> None:
    """Import what the tasks of a queue need before the first one holds a lease."""
    if queue == QUEUE_TRAIN:
        execution.make_ready(settings().compute)
    elif queue == QUEUE_COORDINATOR:
        from core.federation import aggregate  # noqa: F401
    else:
        files.make_ready()


def start_recovery() -> threading.Thread:
    """Finish in the background what a killed worker left; tasks run meanwhile."""
    thread = threading.Thread(target=_recover_all, name="recovery", daemon=True)
    thread.start()
    return thread


def _recover_all() -> None:
    waiting = list(site_config().client)
    while waiting and not stopping.is_set():
        try:
            with Site.open(site_config().state_dir) as site:
                waiting = [config for config in waiting if not _recovered(config, site)]
        except SiteStateError as error:
            _log.error("site_not_usable", code=error.code, reason=error.message, mend=error.mend)
            return
        if waiting:
            stopping.wait(_RECOVERY_PAUSE_S)


def _recovered(config: ClientConfig, site: Site) -> bool:
    """True if nothing is left of this client; a task that holds the lock does it by itself."""
    try:
        with site.lock(config.name):
            recover(config, _workplace(site, patience_s=0.0))
            return not site.ledger.undelivered(config.name)
    except ClientBusy:
        return False
    except ApiProblem as problem:
        _log.error("token_refused", client=config.name, problem=problem.problem)
        return False


def _workplace(site: Site, *, patience_s: float = _PATIENCE_S) -> Workplace:
    return Workplace(
        site, coordinator(), compute=settings().compute, patience_s=patience_s, stop=stopping
    )


def stop_soon(**_: Any) -> None:
    """A signal handler of Celery: stop offering updates; what is stored is offered next time."""
    stopping.set()


__all__ = [
    "aggregate", "consent", "make_ready", "replay", "start_recovery", "stop_soon", "sum_step",
    "synthesise",
    "train",
]  # fmt: skip
