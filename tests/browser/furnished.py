"""A coordinator in which something has happened: runs in every state, a refused update, rows."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx
import numpy as np
import pytest

from api.app import create_app
from api.config import Settings
from core.federation import rule
from core.federation.plan import RunSpec
from core.federation.updates import TENSOR, expectation
from core.wire import tensors
from tests.api.support import Coordinator, calibrate

T = TypeVar("T")
AGENT = "fedhypevae-client/0.1.0"
# Where names are free, they are what a page must not believe.
HOSTILE = "<script>alert(1)</script>{{7*7}}'\"&"


class Beside:
    """Runs coroutines on an event loop of its own thread: Playwright occupies that of the test."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(120)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()


@contextmanager
def coordinator(settings: Settings) -> Iterator[tuple[Beside, Coordinator]]:
    """The application in this process, to prepare what a served one then shows."""
    beside = Beside()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rule, "calibrate", calibrate)
        app = create_app(settings, background=False)
        lifespan = app.router.lifespan_context(app)
        beside.run(lifespan.__aenter__())
        http = httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://api.test",
            headers={"User-Agent": AGENT},
        )
        try:
            yield beside, Coordinator(app, http)
        finally:
            beside.run(http.aclose())
            beside.run(lifespan.__aexit__(None, None, None))
            beside.close()


def quiet_body(spec: RunSpec, number: int) -> bytes:
    """An update without the promised noise."""
    expected = expectation(spec, number)
    vector = np.full(expected.length, 1e-6, dtype=np.float32)
    return tensors.pack({TENSOR: vector}, {"layout": expected.layout})


async def furnish(to: Coordinator, *, rounds: int = 4) -> dict[str, str]:
    """Everything that pages show; the ids of runs by their names."""
    await to.enrol("site-a", "site-b", "site-c")
    await to.enrol("ward", managed=True, site=HOSTILE[:100], population=HOSTILE[:100])
    names = ("site-a", "site-b", "site-c")
    plan: dict[str, Any] = {"privacy": {"rounds": rounds, "epsilon": 3.0}}
    made = {}

    async def run(name: str, *who: str, **changes: Any) -> dict[str, Any]:
        found = await to.run(*who, name=name, **changes)
        made[name] = found["id"]
        return found

    finished = await run("retina-pilot", *names, **plan)
    await to.finish(finished, *names)
    await to.ok("POST", "/synthesize", "scientist", json={"run": "retina-pilot", "n": 2500})

    # One round published; in the next one counts, one is refused, one waits.
    await run("retina-main", *names, **plan)
    for place, name in enumerate(names):
        await to.work(name, seed=50 + place)
    await to.aggregate()
    await to.work("site-a", seed=60)
    order = await to.poll("site-b")
    assert order is not None
    spec = RunSpec.model_validate(order["spec"])
    refused = await to.send(order, quiet_body(spec, order["round_number"]))
    assert refused.status_code == 422, refused.text
    await to.sweep()

    body = {"client": {"name": "site-new", "space": "tiny", "site": "hospital-new",
                       "population": "new/all", "unit": "record", "managed": False,
                       "budget": {"epsilon": 8.0, "delta": 1e-5}}}  # fmt: skip
    code = (await to.ok("POST", "/v1/enrolments", json=body))["code"]
    redeemed = {"code": code, "agent": AGENT}
    waiting = await to.ok("POST", "/v1/enrolments/redeem", None, json=redeemed)
    made["fingerprint"], made["enrolment"] = waiting["fingerprint"], waiting["id"]

    halted = await run("night-shift", *names, round={"quorum": 2})
    await to.ok("POST", f"/v1/runs/{halted['id']}/pause", json={"seconds": 86_400})
    await to.sweep()
    await run("next-one", *names, start=False, approved=False)
    return made
