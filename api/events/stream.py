"""Server-sent events of one run: where it stands, what happens, heartbeats, an end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial

import structlog
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.types import Message, Receive, Scope, Send

from api.auth import Principal, still_valid
from api.context import Context
from api.db.engine import topic_of_run
from api.events import service
from api.events.feed import Feeds, Tail
from api.events.service import ProgressView

log = structlog.get_logger(__name__)
MEDIA = "text/event-stream"
# Whoever takes no byte for so long has gone away without saying so.
_SEND_S = 60.0
_RECONNECT_MS = 2_000
_TROUBLE_S = 1.0


def message(kind: str, data: BaseModel, event_id: object = None) -> str:
    """One event. JSON holds no line break, so one ``data`` line is enough."""
    named = "" if event_id is None else f"id: {event_id}\n"
    return f"{named}event: {kind}\ndata: {data.model_dump_json()}\n\n"


async def events(
    ctx: Context,
    who: Principal,
    tail: Tail,
    *,
    position: int,
    hello: ProgressView,
    hello_id: object,
) -> AsyncGenerator[str, None]:
    """The feed behind a position. Subscribes before it looks: no wake-up is missed."""
    # Most events ring. What sites do all the time does not: it is looked for, at this pace.
    heartbeat, look_s = ctx.settings.heartbeat_s, ctx.settings.poll_s
    with ctx.hub.subscribe(topic_of_run(tail.run_id)) as bell:
        yield f"retry: {_RECONNECT_MS}\n\n" + message("state", hello, hello_id)
        silent_since = wanted_at = time.monotonic()
        while True:
            try:
                await tail.read(ctx, wanted_at)
                found = await tail.behind(ctx, position)
                while found:
                    for placed in found:
                        position = placed.position
                        if service.visible(who, placed.event):
                            shown = service.view(who, placed.event)
                            yield message(shown.kind, shown, shown.id)
                            silent_since = time.monotonic()
                    found = await tail.behind(ctx, position)
                if tail.ended is not None and position >= tail.upto:
                    yield message("end", service.end(who, tail.ended))
                    return
                if time.monotonic() - silent_since >= heartbeat:
                    if not await still_valid(ctx, who):
                        return
                    yield ": heartbeat\n\n"
                    silent_since = time.monotonic()
            except (OperationalError, InterfaceError, PoolTimeout) as error:
                log.warning("feed_waits_for_database", error=type(error).__name__)
                await asyncio.sleep(_TROUBLE_S)
                continue
            if ctx.hub.closing:
                return
            left = min(silent_since + heartbeat - time.monotonic(), look_s)
            rang = await _rang(bell, max(left, 0.0))
            # Of many quiet streams of a run one looks, and the others take what it has seen.
            wanted_at = time.monotonic() - (0.0 if rang else look_s)


async def _rang(bell: asyncio.Event, seconds: float) -> bool:
    """Whether the bell rang within the time; it is silent afterwards."""
    try:
        async with asyncio.timeout(seconds):
            await bell.wait()
    except TimeoutError:
        return False
    bell.clear()
    return True


class EventStream(StreamingResponse):
    """Takes its place when it begins and gives it back however it ends."""

    def __init__(
        self,
        ctx: Context,
        feeds: Feeds,
        who: Principal,
        hello: ProgressView,
        *,
        position: int,
        hello_id: object,
    ) -> None:
        self._feeds, self._run_id, self._position = feeds, hello.run_id, position
        self._begin = partial(events, ctx, who, position=position, hello=hello, hello_id=hello_id)
        # Proxies must hand on every event at once.
        super().__init__((), headers={"X-Accel-Buffering": "no"}, media_type=MEDIA)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def bounded(part: Message) -> None:
            async with asyncio.timeout(_SEND_S):
                await send(part)

        with self._feeds.place(), self._feeds.tail(self._run_id, self._position) as tail:
            async with aclosing(self._begin(tail)) as feed:
                self.body_iterator = feed
                try:
                    await super().__call__(scope, receive, bounded)
                except TimeoutError:  # the server cuts the connection: the answer has no end
                    log.warning("feed_reader_stuck", run_id=str(self._run_id))
