"""The coordinator under test: the real application on a real database, its tasks called by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import structlog

from api.app import create_app
from api.config import Settings
from core.federation import rule
from tests.api.support import Coordinator, calibrate


@pytest.fixture(scope="session", autouse=True)
def plain_logs() -> None:
    """Tracebacks as text: the coloured ones take seconds and show every local variable."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ]
    )


@pytest.fixture
def settings(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in ("FHV_BROKER_URL", "FHV_ENV"):
        monkeypatch.delenv(name, raising=False)
    store = tmp_path / "objects"
    store.mkdir()
    return Settings(
        env="prod",
        token_pepper="a pepper for tests only",
        database_url=database_url,
        object_store_url=f"file://{store}",
        grace_s=0.0,
        database_pool=5,
        failures_per_minute=1_000,  # tests of strangers ask more often than people err
    )


@pytest.fixture
async def coordinator(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Coordinator]:
    monkeypatch.setattr(rule, "calibrate", calibrate)
    app = create_app(settings, background=False)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://api.test") as http:
            yield Coordinator(app, http)
