"""The coordinator as an ASGI application."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from api import cors, health, objects, own_token, problems, spaces, tokens
from api.bodies import Limits
from api.clients import endpoints as clients
from api.clients.sightings import Sightings
from api.config import Settings, load
from api.consents import endpoints as consents
from api.context import Context
from api.dashboard import (
    client_pages,
    code_pages,
    enrolment_pages,
    entrance,
    run_pages,
    trail_pages,
)
from api.db.engine import Database
from api.db.hub import Hub
from api.db.outbox import Dispatcher
from api.enrolments import endpoints as enrolments
from api.erasure import endpoints as erasure
from api.events import endpoints as events
from api.events.feed import Feeds
from api.exports import endpoints as exports
from api.guard import Guard
from api.http import Outermost
from api.jobs import endpoints as jobs
from api.joins import endpoints as joins
from api.ledger import endpoints as ledger
from api.metrics import endpoints as metrics
from api.metrics.books import Books
from api.metrics.meters import Meters
from api.observability import configure
from api.planner import endpoints as planner
from api.receipts import endpoints as receipts
from api.receipts.keys import Keyring
from api.reference import keep_at_home
from api.replays import endpoints as replays
from api.report import endpoints as report
from api.report.service import Reports
from api.rounds import endpoints as rounds
from api.runs import control_endpoints as control
from api.runs import endpoints as runs
from api.secure_sums import endpoints as secure_steps
from api.secure_sums import identity_endpoints as identities
from api.sweeper import Sweeper
from api.synthesis import endpoints as synthesis
from api.synthesis.models import Generators, Models
from api.synthesis_jobs import endpoints as synthesis_jobs
from api.synthesis_jobs import making_endpoints as making
from api.tracing import Traced
from api.updates import endpoints as updates
from api.usage import endpoints as usage
from api.usage.service import Answers
from api.webhooks import endpoints as webhooks
from api.webhooks.delivery import Courier
from api.webhooks.watch import Watcher
from api.work import endpoints as work
from core import tracing
from core.storage import ObjectStore
from core.synthesis.one_thread import one_thread

log = structlog.get_logger(__name__)
VERSION = "0.1.0"
_RESTART_S = 1.0

_TAGS = [
    {"name": "spaces", "description": "Embedding-space contracts."},
    {"name": "clients", "description": "Who takes part, under which budget."},
    {"name": "enrolments", "description": "How a site comes in: code, token, approval."},
    {"name": "ledger", "description": "What every population has paid."},
    {"name": "runs", "description": "Plans made immutable, and their progress."},
    {"name": "rounds", "description": "Rounds and published models."},
    {"name": "joins", "description": "Clients that come to a completed run."},
    {"name": "consents", "description": "What awaits a site's word, and the word."},
    {"name": "work", "description": "Orders for sites, under leases."},
    {"name": "updates", "description": "Noised results of sites."},
    {"name": "secure sums", "description": "Steps around updates that only their sum is known of."},
    {"name": "jobs", "description": "The coordinator's own jobs."},
    {"name": "objects", "description": "Downloads."},
    {"name": "synthesis", "description": "Synthetic embeddings."},
    {"name": "receipts", "description": "What rows are of, and proof of it."},
    {"name": "events", "description": "Who did what, when; live and afterwards."},
    {"name": "tokens", "description": "Bearer tokens."},
    {"name": "webhooks", "description": "Who is told of what, signed."},
    {"name": "health", "description": "For machines that watch machines."},
]


def _settle_memory() -> None:
    """What was made while the process started stays until it ends: modules, classes, routes, half a
    million objects. The collector need not look through them again, which would stop every request
    for a tenth of a second, several times a minute.
    """
    gc.collect()
    gc.freeze()


async def _forever(name: str, task: Callable[[], Awaitable[None]]) -> None:
    """Background tasks end with the process. One that breaks is reported and started again."""
    while True:
        try:
            await task()
        except Exception:
            log.exception("background_task_failed", task=name)
        await asyncio.sleep(_RESTART_S)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    if settings.otlp_endpoint is not None:  # before the database: its statements have spans, too
        tracing.start("fedhypevae-coordinator", settings.otlp_endpoint, VERSION)
    database = Database(settings.database_url, pool_size=settings.database_pool)
    hub = Hub(database)
    store = await asyncio.to_thread(ObjectStore, settings.object_store_url)
    meters: Meters = app.state.meters
    ctx = Context(
        settings=settings,
        database=database,
        store=store,
        hub=hub,
        meters=meters,
        guard=Guard(settings.failures_per_minute),
    )
    dispatcher = Dispatcher(database, hub, settings.broker_url, settings.poll_s)
    app.state.context, app.state.dispatcher, app.state.generators = ctx, dispatcher, Generators()
    app.state.models, app.state.reports = Models(), Reports()
    app.state.answers, app.state.books = Answers(settings), Books()
    app.state.keyring = Keyring(database, settings.pepper)
    app.state.feeds, app.state.sightings = Feeds(settings.max_streams), Sightings()
    courier = app.state.courier = Courier(ctx)
    tasks = []
    if app.state.background:
        jobs_of_process = {
            "listen": hub.run,
            "sweep": Sweeper(ctx).run,
            "dispatch": dispatcher.run,
            "deliver": courier.run,
            "watch": Watcher(ctx).run,
        }
        tasks = [asyncio.create_task(_forever(*item)) for item in jobs_of_process.items()]
        _settle_memory()
    log.info("started", version=VERSION)
    try:
        with one_thread():
            yield
    finally:
        hub.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await courier.close()
        await asyncio.to_thread(dispatcher.close)
        await database.close()
        await asyncio.to_thread(tracing.stop)
        log.info("stopped")


def create_app(settings: Settings | None = None, *, background: bool = True) -> FastAPI:
    """The application. Without ``background`` nothing happens between requests (for tests)."""
    settings = settings or load(Settings)
    # /docs and /redoc from files that come with a wheel: they work without internet.
    app = FastAPIOffline(
        title="FedHypeVAE coordinator",
        version=VERSION,
        summary="Differentially private generators of embeddings, trained over several sites.",
        description="Errors are problem+json (RFC 9457) with a stable `code`. Lists are "
        "`{items, next}`; pass `next` as `after`. Times are UTC. Ids are UUIDv7. Any operation "
        "may also answer 400 (protocol), 408, 413, 415 (a compressed body), 431 or 503.",
        openapi_tags=_TAGS,
        lifespan=_lifespan,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    keep_at_home(app)
    app.state.settings, app.state.background, app.state.context = settings, background, None
    app.state.meters = Meters()
    if settings.origins:
        cors.install(app, settings.origins)
    limits = Limits(settings.max_json_bytes, settings.body_grace_s, settings.body_min_rate)
    app.add_middleware(Outermost, limits=limits, meters=app.state.meters)
    if settings.otlp_endpoint is not None:
        app.add_middleware(Traced)
    problems.install(app)
    # Routes are tried in this order: what every site asks all the time comes first.
    for module in (work, updates, secure_steps, jobs, objects, consents, identities):
        app.include_router(module.router)
    for module in (events, replays, erasure):
        app.include_router(module.router)
    for module in (spaces, tokens, clients, ledger, planner, runs, control, rounds, joins):
        app.include_router(module.router)
    for module in (synthesis, synthesis_jobs, making, exports, receipts, report, usage):
        app.include_router(module.router)
    for module in (enrolments, own_token):
        app.include_router(module.router)
    for module in (webhooks, health, metrics):
        app.include_router(module.router)
    if settings.dashboard:
        for pages in (entrance, run_pages, client_pages, enrolment_pages, code_pages, trail_pages):
            app.include_router(pages.router)
    return app


def from_environment() -> FastAPI:
    """Factory for ASGI servers: ``uvicorn --factory api.app:from_environment``."""
    settings = load(Settings)
    configure(settings.log_level)
    return create_app(settings)
