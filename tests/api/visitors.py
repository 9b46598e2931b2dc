"""Somebody with a browser at the dashboard, over HTTP."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from tests.api.support import Coordinator

ENTER = ("admin", "auditor", "scientist")
CSRF = re.compile(r'name="csrf" value="([0-9a-f]{64})"')


class Visitor:
    """A browser: keeps cookies, sends forms with their CSRF token."""

    def __init__(self, coordinator: Coordinator) -> None:
        # Secure cookies are for HTTPS only.
        transport = httpx.ASGITransport(coordinator.app)
        self.http = httpx.AsyncClient(transport=transport, base_url="https://api.test")

    async def get(self, path: str, **options: Any) -> httpx.Response:
        return await self.http.get(f"/dashboard{path}", **options)

    async def page(self, path: str, **options: Any) -> str:
        answer = await self.get(path, **options)
        assert answer.status_code == 200, answer.text
        return answer.text

    async def csrf(self, path: str) -> str:
        found = CSRF.search((await self.get(path)).text)
        assert found is not None
        return found.group(1)

    async def enter(self, token: str, **changes: str) -> httpx.Response:
        sent = {"csrf": await self.csrf("/login"), "token": token, **changes}
        return await self.http.post("/dashboard/login", data=sent)

    async def act(self, path: str, **fields: str) -> httpx.Response:
        sent = {"csrf": await self.csrf(path), **fields}
        return await self.http.post(f"/dashboard{path}", data=sent)


@asynccontextmanager
async def visiting(coordinator: Coordinator, scope: str | None = None) -> AsyncIterator[Visitor]:
    visitor = Visitor(coordinator)
    async with visitor.http:
        if scope is not None:
            answer = await visitor.enter(await coordinator.token(scope))
            assert (answer.status_code, answer.headers["location"]) == (303, "/dashboard")
        yield visitor
