"""A caller who goes while rows are being made leaves nothing behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from api.synthesis import service
from core.synthesis.formats import FORMATS
from tests.api.support import Coordinator


async def test_a_caller_who_goes_in_the_middle_of_a_block(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The thread inside of the generator ends its block, then the generator is closed; closing it
    before is an error of Python (``generator already executing``) and leaves it open.
    """
    making, go_on, closed = threading.Event(), threading.Event(), threading.Event()

    def pieces(_: Any) -> Iterator[bytes]:
        try:
            yield b"first"
            making.set()
            assert go_on.wait(10)
            yield b"second"
        finally:
            closed.set()

    monkeypatch.setitem(FORMATS, "ndjson", SimpleNamespace(pieces=pieces))
    draft: Any = SimpleNamespace(
        kind="ndjson", document=None, receipt=SimpleNamespace(content=None)
    )

    async def reads() -> None:
        async for _ in service._pieces(coordinator.ctx, draft):
            pass

    caller = asyncio.create_task(reads())
    assert await asyncio.to_thread(making.wait, 10)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await asyncio.sleep(0.05)
    assert not closed.is_set()
    go_on.set()
    assert await asyncio.to_thread(closed.wait, 10)
    await asyncio.gather(*service._dropping)
    assert "generator already executing" not in caplog.text
