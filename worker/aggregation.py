"""A coordinator worker's jobs: stored updates in, the next model out, by the object store.

A replay does the same sums and stores nothing: it only says which digests it finds.
"""

from __future__ import annotations

import threading
import time
from functools import partial

from core.errors import DomainError
from core.storage import ObjectStore, Stored, sha256_of
from core.wire.messages import AggregateJob, AggregateResult, JobFailure, ObjectRef
from worker import logs
from worker.client import CoordinatorClient
from worker.errors import ApiProblem, ClientError
from worker.lease import Renewed

_log = logs.get("worker.aggregation")

_PATIENCE_S = 900.0
_PAUSE_S = 2.0
FAILED = "aggregation-failed"


def carry_out(
    job: AggregateJob,
    coordinator: CoordinatorClient,
    store_url: str,
    *,
    stop: threading.Event,
    replay: bool = False,
) -> str:
    """Aggregate and report. Running it twice gives the same bytes, hence the same answer."""
    log = _log.bind(job_id=job.job_id, run_id=job.run_id, round_number=job.round_number)
    if replay:
        log = log.bind(replay=True)
    started = time.monotonic()
    with Renewed(partial(coordinator.renew_job, job.job_id, job.lease_token), job.lease_s) as lease:
        try:
            result = _aggregated(job, store_url, keep=not replay)
        except DomainError as error:
            log.error("aggregation_failed", code=error.code, reason=error.message)
            return _fail(job, coordinator, JobFailure(code=error.code, detail=error.message[:2000]))
        except Exception as error:  # anything else is a fault of this machine or of the software
            log.error("aggregation_failed", code=FAILED, **logs.place_of(error))
            detail = f"{type(error).__name__}; see the log of the coordinator worker"
            return _fail(job, coordinator, JobFailure(code=FAILED, detail=detail))
        until = time.monotonic() + _PATIENCE_S
        while True:
            try:
                coordinator.complete_job(job.job_id, job.lease_token, result)
            except ApiProblem as problem:
                if problem.final or problem.needs_person:
                    log.warning("result_refused", problem=problem.problem)
                    return problem.problem
            except ClientError as error:
                log.warning("result_not_sent", code=error.code)
            else:
                seconds = round(time.monotonic() - started, 3)
                log.info("aggregated", updates=len(job.updates), seconds=seconds)
                return "completed"
            if lease.lost or time.monotonic() > until or stop.wait(_PAUSE_S):
                # The objects are stored; whoever does the job again finds the same digests.
                return "abandoned"


def _aggregated(job: AggregateJob, store_url: str, *, keep: bool) -> AggregateResult:
    from core.federation.aggregate import aggregate

    store = ObjectStore(store_url)
    made = aggregate(job, store.get)
    name = store.put if keep else _named
    frame, weights, optimiser = (name(body) for body in (made.frame, made.weights, made.optimiser))
    return AggregateResult(
        frame=ObjectRef(role="frame", digest=frame.digest, size=frame.size),
        weights=ObjectRef(role="weights", digest=weights.digest, size=weights.size),
        optimiser_digest=optimiser.digest,
        optimiser_size=optimiser.size,
        diagnostics=made.diagnostics,
    )


def _named(body: bytes) -> Stored:
    """How the store would file these bytes."""
    return Stored(sha256_of(body), len(body))


def _fail(job: AggregateJob, coordinator: CoordinatorClient, failure: JobFailure) -> str:
    try:
        coordinator.fail_job(job.job_id, job.lease_token, failure)
    except ClientError as error:
        _log.warning("failure_not_reported", job_id=job.job_id, code=error.code)
    return failure.code
