"""What one coordinator process has counted since it started. Replicas count for themselves: sum
over ``instance``.

Nothing here is measured at a site or about one site's work: how long a site trains says how many
records it holds.
"""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from core.errors import UpdateRejected

# A series for every counter's birth would double the scrape; process_start_time_seconds says it.
disable_created_metrics()  # type: ignore[no-untyped-call]
_REQUEST_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SUM_S = (0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)
# Requests that no route takes have one label, not one for every path that a scanner tries.
UNMATCHED = "unmatched"
AUTH_FAILURES = ("unknown", "revoked", "expired", "code", "throttled")
_METHODS = frozenset({"GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"})


class Meters:
    """One set for one application; ``registry`` holds what a scrape shows of this process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "fhv_requests",
            "Requests answered; status 0: the caller had gone.",
            ("route", "method", "status"),
            registry=self.registry,
        )
        self._request_s = Histogram(
            "fhv_request_seconds",
            "From a request's head to the end of its answer. Long polls and event streams wait on "
            "purpose.",
            ("route", "method"),
            buckets=_REQUEST_S,
            registry=self.registry,
        )
        self._problems = Counter(
            "fhv_problems",
            "Requests answered with a problem, by its code.",
            ("route", "code"),
            registry=self.registry,
        )
        self.auth_failures = Counter(
            "fhv_auth_failures",
            "Credentials that were refused, by reason; throttled: unheard, after too many others.",
            ("reason",),
            registry=self.registry,
        )
        for reason in AUTH_FAILURES:
            self.auth_failures.labels(reason)
        self.updates_accepted = Counter(
            "fhv_updates_accepted", "Updates that count.", registry=self.registry
        )
        self.updates_rejected = Counter(
            "fhv_updates_rejected",
            "Updates whose content was refused, by the reason's code.",
            ("code",),
            registry=self.registry,
        )
        # From zero on: a series that begins with its first event shows Prometheus no increase.
        for kind in UpdateRejected.__subclasses__():
            self.updates_rejected.labels(kind.code)
        self.rows = Counter(
            "fhv_synthesis_rows",
            "Synthetic rows; way: answered while the caller waits, or in a worker's file.",
            ("format", "way"),
            registry=self.registry,
        )
        self.sums_s = Histogram(
            "fhv_aggregation_seconds",
            "From the claim of a job to its completion; kind: aggregate or replay.",
            ("kind",),
            buckets=_SUM_S,
            registry=self.registry,
        )
        self.webhook_attempts = Counter(
            "fhv_webhook_attempts",
            "Attempts to deliver an event; outcome: delivered, refused (answered, but no 2xx), "
            "failed (no answer) or blocked (nothing was sent).",
            ("outcome",),
            registry=self.registry,
        )
        for outcome in ("delivered", "refused", "failed", "blocked"):
            self.webhook_attempts.labels(outcome)
        self.leads = Gauge(
            "fhv_sweeper_leads",
            "1 in the process that drives runs. Of all replicas exactly one should.",
            registry=self.registry,
        )

    def request(
        self, *, route: str, method: str, status: int, seconds: float, code: str | None
    ) -> None:
        """A request has ended; ``code`` is its problem's, if it was answered with one."""
        method = method if method in _METHODS else "other"
        self._requests.labels(route, method, str(status)).inc()
        self._request_s.labels(route, method).observe(seconds)
        if code is not None:
            self._problems.labels(route, code).inc()
