"""The Celery application: one queue per kind of work, messages that carry one id.

A message may be delivered twice or lost; neither matters, because the truth about a job is its
row at the coordinator: a task first claims the row, and a refused claim ends it. No results are
stored. One process does one task at a time (solo pool: CUDA does not survive a fork).
"""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Any

from celery import Celery

from core import tracing
from core.wire.jobs import (
    QUEUE_COORDINATOR,
    QUEUE_SYNTHESIS,
    QUEUE_TRAIN,
    TASK_AGGREGATE,
    TASK_CONSENT,
    TASK_SYNTHESISE,
    TASK_TRAIN,
)
from worker import broker, logs
from worker.config import load_settings

_log = logs.get("worker.celery")

# Redis hands a message that was not acknowledged to somebody else after this time. It must be
# longer than any lease (a plan allows one day), so that a task still at work is not doubled; a
# dead worker's work comes back sooner, when the coordinator sees its lease end and sends it anew.
VISIBILITY_S = 25 * 3600


def make_app(broker_url: str | None = None) -> Celery:
    """The application; without ``broker_url`` the environment's (``FHV_BROKER_URL``) is used."""
    if broker_url is None:
        secret = load_settings().broker_url
        broker_url = None if secret is None else secret.get_secret_value()
    broker.install()
    app = Celery("fedhypevae", broker=broker_url, include=["worker.tasks"])
    app.conf.update(_configuration())
    return app


def _configuration() -> dict[str, Any]:
    return {
        "accept_content": ["json"],
        "task_serializer": "json",
        "result_backend": None,
        "task_ignore_result": True,
        "task_queues": {
            name: {"exchange": name, "exchange_type": "direct", "routing_key": name}
            for name in (QUEUE_TRAIN, QUEUE_COORDINATOR, QUEUE_SYNTHESIS)
        },
        "task_routes": {
            TASK_TRAIN: {"queue": QUEUE_TRAIN},
            TASK_CONSENT: {"queue": QUEUE_TRAIN},
            TASK_AGGREGATE: {"queue": QUEUE_COORDINATOR},
            TASK_SYNTHESISE: {"queue": QUEUE_SYNTHESIS},
        },
        "task_create_missing_queues": False,
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "worker_prefetch_multiplier": 1,
        "worker_pool": "solo",
        "worker_concurrency": 1,
        "worker_hijack_root_logger": False,
        "worker_send_task_events": False,
        "worker_enable_remote_control": False,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_transport_options": {"visibility_timeout": VISIBILITY_S},
        "enable_utc": True,
        "timezone": "UTC",
    }


app = make_app()


def serve(queue: str, *, log_level: str) -> int:
    """Run a worker of one queue in this process until a signal; returns its exit code.

    SIGTERM or SIGINT: the task in hand ends first. A killed worker loses nothing: see the tasks.
    """
    from celery import signals

    from worker import tasks

    signals.worker_shutting_down.connect(tasks.stop_soon, weak=False)
    tasks.make_ready(queue)
    signals.worker_ready.connect(lambda **_: _log.info("worker_started", queue=queue), weak=False)
    if queue == QUEUE_TRAIN:
        signals.worker_ready.connect(lambda **_: tasks.start_recovery(), weak=False)
    worker = app.Worker(
        queues=[queue],
        pool="solo",
        concurrency=1,
        prefetch_multiplier=1,
        hostname=f"{queue}-{os.getpid()}@%h",
        loglevel="WARNING" if log_level == "info" else log_level.upper(),
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
    )
    endpoint = load_settings().otlp_endpoint
    if endpoint is not None and queue != QUEUE_TRAIN:  # sites are not traced (core.tracing)
        tracing.start(f"fedhypevae-worker-{queue}", endpoint, version("fedhypevae"))
    try:
        worker.start()
    finally:
        tracing.stop()
    return int(worker.exitcode or 0)
