"""HTTP of metrics. They name clients and say what each has spent, so strangers get nothing."""

from __future__ import annotations

import hmac
from collections.abc import Iterator

from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from api import examples
from api.auth import Allow, Bearer, Door, principal
from api.context import Ctx
from api.metrics.books import Books, Snapshot
from api.metrics.meters import Meters
from api.openapi import answers

router = APIRouter(tags=["health"])
_overseer = Allow("admin", "auditor")


class Scraper(Door):
    """A scraper's own token (``FHV_METRICS_TOKEN``) needs no database, so that metrics can say
    that it is away. Anybody else needs the token of an administrator or auditor.
    """

    scopes = _overseer.scopes

    async def __call__(self, ctx: Ctx, request: Request, credentials: Bearer) -> None:
        expected = ctx.settings.metrics_token
        if expected is not None and credentials is not None:
            given = credentials.credentials.encode()
            if hmac.compare_digest(given, expected.get_secret_value().encode()):
                return
        await _overseer(await principal(ctx, request, credentials))


class _Both(Collector):
    """What the process has counted, then what the database says."""

    def __init__(self, process: CollectorRegistry, snapshot: Snapshot) -> None:
        self._process, self._snapshot = process, snapshot

    def collect(self) -> Iterator[Metric]:
        yield from self._process.collect()
        yield from self._snapshot.collect()


@router.get(
    "/metrics",
    operation_id="getMetrics",
    summary="Metrics for Prometheus",
    description="Text format 0.0.4. For the token `FHV_METRICS_TOKEN`, and for administrators and "
    "auditors. docs/metrics.md lists all names.",
    response_class=Response,
    responses=answers(200, examples.METRICS, "Samples.", media="text/plain"),
    dependencies=[Depends(Scraper())],
)
async def metrics(ctx: Ctx, request: Request) -> Response:
    meters, books = request.app.state.meters, request.app.state.books
    if not isinstance(meters, Meters) or not isinstance(books, Books):
        raise RuntimeError("the application was not started")
    shown = _Both(meters.registry, await books.snapshot(ctx))
    return Response(generate_latest(shown), media_type=CONTENT_TYPE_PLAIN_0_0_4)
