"""A coordinator that may send to loopback, a receiver there, and who delivers."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from api.config import Settings
from api.webhooks.delivery import Courier
from tests.api.support import Coordinator
from tests.api.webhooks.receiver import Receiver, Verified, receiving

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(
        update={
            "webhooks_allow_private": True,
            "webhooks_attempts": 3,
            "webhooks_timeout_s": 1.0,
            "webhooks_backoff_s": 60.0,
            "webhooks_stuck_s": 900.0,
        }
    )


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


@pytest.fixture
async def courier(coordinator: Coordinator) -> AsyncIterator[Courier]:
    found = Courier(coordinator.ctx)
    yield found
    await found.close()


@pytest.fixture(scope="session")
def verified() -> Verified:
    """The receiver's side as docs/webhooks.md shows it."""
    text = (ROOT / "docs/webhooks.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(snippet, names)  # noqa: S102 (our own document)
    found: Verified = names["verified"]
    return found
