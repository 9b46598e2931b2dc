"""What answers say to browsers: security headers on all of them, and no other origin's pages."""

from __future__ import annotations

import httpx
import pytest

from api.app import create_app
from api.config import Settings, SettingsError, load
from tests.api.support import SPACE, Coordinator

ORIGIN = "https://portal.example"


def _protected(answer: httpx.Response) -> None:
    found = answer.headers
    assert found["X-Content-Type-Options"] == "nosniff"
    assert found["X-Frame-Options"] == "DENY"
    assert found["Referrer-Policy"] == "no-referrer"
    assert "camera=()" in found["Permissions-Policy"]
    assert "frame-ancestors 'none'" in found["Content-Security-Policy"]
    assert len(found.get_list("Content-Security-Policy")) == 1
    assert "Access-Control-Allow-Origin" not in found


@pytest.mark.parametrize(
    ("method", "path", "who", "status"),
    [
        ("GET", "/healthz", None, 200),
        ("GET", "/v1/runs", "admin", 200),
        ("GET", "/v1/runs", None, 401),
        ("GET", "/v1/tokens", "auditor", 403),
        ("GET", "/nothing", None, 404),
        ("DELETE", "/healthz", None, 405),
        ("OPTIONS", "/v1/runs", None, 405),
        ("POST", "/v1/spaces", "admin", 422),
        ("GET", "/openapi.json", None, 200),
    ],
)
async def test_answers_that_are_no_pages_may_load_nothing(
    coordinator: Coordinator, method: str, path: str, who: str | None, status: int
) -> None:
    answer = await coordinator.call(method, path, who, headers={"Origin": ORIGIN})
    assert answer.status_code == status
    _protected(answer)
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert answer.headers["Cache-Control"] == "no-store"


async def test_what_is_refused_before_anything_reads_it_is_protected(
    coordinator: Coordinator,
) -> None:
    large = await coordinator.call("POST", "/v1/spaces", content=b" " * (5 * 2**20))
    assert large.status_code == 413
    _protected(large)
    other = await coordinator.call("GET", "/healthz", None, headers={"X-FHV-Protocol-Range": "9-9"})
    assert other.status_code == 400
    _protected(other)


async def test_tokens_are_kept_by_no_cache(coordinator: Coordinator) -> None:
    made = await coordinator.call(
        "POST", "/v1/tokens", json={"scope": "auditor", "label": "for a browser"}
    )
    await coordinator.ok("POST", "/v1/spaces", json=SPACE)
    body = {
        "name": "site-a",
        "space": "tiny",
        "site": "hospital-a",
        "population": "a/all",
        "unit": "record",
        "managed": False,
        "budget": {"epsilon": 8.0, "delta": 1e-5},
    }
    enrolled = await coordinator.call("POST", "/v1/clients", json=body)
    for answer in (made, enrolled):
        assert answer.status_code == 201
        assert answer.json()["token"]
        assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
async def test_pages_may_run_their_own_scripts(coordinator: Coordinator, page: str) -> None:
    answer = await coordinator.call("GET", page, None)
    assert answer.status_code == 200
    _protected(answer)
    policy = answer.headers["Content-Security-Policy"]
    assert "script-src" not in policy
    assert "default-src" not in policy


async def test_pages_of_listed_origins_may_call_and_no_others(settings: Settings) -> None:
    app = create_app(
        settings.model_copy(update={"cors_origins": f"{ORIGIN}, http://localhost:3000"}),
        background=False,
    )
    ask = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://api.test") as http:
            for origin in (ORIGIN, "http://localhost:3000"):
                asked = await http.options("/v1/synthesize", headers={"Origin": origin, **ask})
                assert asked.status_code == 200
                assert asked.headers["Access-Control-Allow-Origin"] == origin
                assert asked.headers["X-Content-Type-Options"] == "nosniff"
                answer = await http.get("/v1/runs", headers={"Origin": origin})
                assert answer.status_code == 401
                assert answer.headers["Access-Control-Allow-Origin"] == origin
                assert "X-Request-ID" in answer.headers["Access-Control-Expose-Headers"]
                assert "Access-Control-Allow-Credentials" not in answer.headers
            for origin in ("https://evil.example", f"{ORIGIN}.evil.example", "null"):
                asked = await http.options("/v1/synthesize", headers={"Origin": origin, **ask})
                assert asked.status_code == 400
                assert "Access-Control-Allow-Origin" not in asked.headers
                answer = await http.get("/healthz", headers={"Origin": origin})
                assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize(
    "origins", ["*", "https://host/path", "host", "https://a.example,*", "https://user@host"]
)
def test_origins_are_origins(monkeypatch: pytest.MonkeyPatch, origins: str) -> None:
    monkeypatch.setenv("FHV_CORS_ORIGINS", origins)
    monkeypatch.setenv("FHV_ENV", "dev")
    with pytest.raises(SettingsError, match="FHV_CORS_ORIGINS"):
        load(Settings, database_url="postgresql://x/y", object_store_url="file:///x")
