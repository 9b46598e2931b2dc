"""What becomes of a job whose attempt has failed, whatever kind of job it is."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Protocol

_RETRY_S = 2.0
_RETRY_LIMIT_S = 60.0


class Attempted(Protocol):
    """The columns of a job that say where it stands."""

    state: str
    reason: str
    attempt: int
    available_at: datetime
    finished_at: datetime | None
    queued_at: datetime | None


def after_failure(
    job: Attempted, reason: str, now: datetime, *, most: int, final: bool = False
) -> None:
    """Ready for another attempt after a pause, which doubles; failed for good after ``most`` of
    them, or if another one would find the same (``final``).
    """
    job.reason = reason
    if final or job.attempt >= most:
        job.state, job.finished_at = "failed", now
        return
    pause = min(_RETRY_S * 2.0 ** (job.attempt - 1), _RETRY_LIMIT_S)
    job.state, job.available_at = "ready", now + timedelta(seconds=pause)
    job.queued_at = None  # announced again as soon as its time has come
