"""Keeps a lease alive while its work is computed, in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Self

from core.wire.messages import LeaseRenewal
from worker import logs
from worker.errors import ApiProblem, ClientError

_log = logs.get("worker.lease")
_RENEWALS_PER_LEASE = 3.0
_LEAST_INTERVAL_S = 0.05
_RETRY_S = 2.0
_JOIN_S = 2.0


class Renewed:
    """``with Renewed(renew, lease_s) as lease``: renews every third of the lease until the end.

    An unreachable coordinator is tried again and again; only its own answer that the lease is
    gone sets ``lost``. The work is never interrupted: what has been computed is kept and booked.
    """

    def __init__(self, renew: Callable[[], LeaseRenewal], lease_s: float) -> None:
        self._renew = renew
        self._lease_s = lease_s
        self._stop = threading.Event()
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    @property
    def lost(self) -> bool:
        return self._lost.is_set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(_JOIN_S)  # a renewal that hangs in the network is left behind

    def _run(self) -> None:
        wait = self._interval()
        while not self._stop.wait(wait):
            try:
                self._lease_s = self._renew().lease_s
            except ApiProblem as problem:
                if problem.final:
                    self._lost.set()
                    _log.warning("lease_lost", problem=problem.problem)
                    return
                _log.warning("lease_renewal_refused", problem=problem.problem)
                wait = min(self._interval(), _RETRY_S)
            except ClientError as error:
                _log.warning("lease_renewal_failed", code=error.code)
                wait = min(self._interval(), _RETRY_S)
            else:
                wait = self._interval()

    def _interval(self) -> float:
        return max(self._lease_s / _RENEWALS_PER_LEASE, _LEAST_INTERVAL_S)
