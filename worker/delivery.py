"""Handing results to the coordinator: stored bytes until it has answered, or work given back."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field
from typing import Literal

from core.training.compute import AUTO, Compute
from core.wire.messages import WorkFailure
from worker import logs
from worker.agent.records import ACCEPTED, StoredUpdate
from worker.agent.site import Site
from worker.client import CoordinatorClient
from worker.errors import ApiProblem, ClientError

_log = logs.get("worker.delivery")

Delivered = Literal["accepted", "refused", "pending"]
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0


@dataclass(frozen=True)
class Workplace:
    """What executing an order needs besides the order itself.

    ``patience_s`` bounds how long a finished update is offered to a coordinator that does not
    answer; what is not delivered then stays stored and is offered again later.
    """

    site: Site
    coordinator: CoordinatorClient
    compute: Compute = AUTO
    patience_s: float = float("inf")
    stop: threading.Event = field(default_factory=threading.Event)


def deliver(update: StoredUpdate, lease_token: str, place: Workplace) -> Delivered:
    """Send the stored bytes until there is a final answer; record it, then drop the bytes.

    Raises ``ApiProblem`` for what a person must mend (the token, versions that do not meet): the
    bytes stay stored.
    """
    if update.body is None:
        return "accepted" if update.delivery == ACCEPTED else "refused"
    log = _log.bind(**update.key._asdict(), update_id=update.update_id, bytes=update.size)
    masked = place.site.ledger.sums.is_masked(update.key)
    until = time.monotonic() + place.patience_s
    pause = _FIRST_PAUSE_S
    while True:
        try:
            receipt = place.coordinator.put_update(
                run_id=update.key.run_id,
                round_number=update.key.round_number,
                update_id=update.update_id,
                lease_token=lease_token,
                body=update.body,
                masked=masked,
            )
        except ApiProblem as problem:
            if problem.final:
                place.site.ledger.delivered(update.update_id, problem.problem)
                log.warning(
                    "update_refused",
                    problem=problem.problem,
                    detail=problem.detail,
                    request_id=problem.request_id,
                )
                return "refused"
            if problem.needs_person:
                raise
            log.warning("update_not_sent", problem=problem.problem, retry_in_s=round(pause, 1))
        except ClientError as error:
            log.warning("update_not_sent", code=error.code, retry_in_s=round(pause, 1))
        else:
            if receipt.digest != update.digest:
                # Not ours: whatever the coordinator keeps, it is not what was sent.
                place.site.ledger.delivered(update.update_id, "receipt-mismatch")
                log.error("receipt_mismatch", received=receipt.digest)
                return "refused"
            place.site.ledger.delivered(update.update_id, ACCEPTED)
            log.info("update_accepted")
            return "accepted"
        if time.monotonic() + pause > until or place.stop.wait(_jittered(pause)):
            log.warning("update_kept_for_later")
            return "pending"
        pause = min(2 * pause, _LONGEST_PAUSE_S)


def give_back(
    work_id: str,
    lease_token: str,
    code: Literal["site-not-ready", "plan-refused"],
    coordinator: CoordinatorClient,
) -> None:
    """Tell the coordinator that this order will not be done. If it cannot hear, the lease ends."""
    try:
        coordinator.fail_work(work_id, lease_token, WorkFailure(code=code))
    except ApiProblem as problem:
        _log.info("work_was_gone", work_id=work_id, problem=problem.problem)
    except ClientError as error:
        _log.warning("work_not_given_back", work_id=work_id, code=error.code)
    else:
        _log.info("work_given_back", work_id=work_id, code=code)


def _jittered(seconds: float) -> float:
    return seconds * random.uniform(0.75, 1.25)  # noqa: S311 (spreads reconnects, hides nothing)
