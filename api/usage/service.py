"""Who may ask for how much: requests a minute and rows a day of a token, answers at once.

Requests and rows are counted in the database, so replicas share them. What is asked for is charged
before it is made, whatever becomes of it: a caller that goes away has had the work done. A request
that is refused, or wrong, costs nothing. Answers at once are counted by each process for itself:
they protect its processors and memory.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from uuid import UUID

from pydantic import BaseModel, Field

from api.auth import Principal
from api.config import Settings
from api.context import Context
from api.problems import QuotaExceeded, TooManyAnswers
from api.usage import repository
from core.errors import InvalidSynthesisRequest

_SOON_S = 2  # until one of the answers at once may have ended


class UsageView(BaseModel):
    requests_this_minute: int
    requests_per_minute: int = Field(description="The limit.")
    rows_today: int = Field(description="Since midnight UTC.")
    rows_per_day: int = Field(description="The limit.")
    rows_per_request: int = Field(description="The limit.")
    answers_at_once: int = Field(description="The limit of one coordinator process.")


class TokenUsage(BaseModel):
    token_id: UUID
    label: str
    scope: str
    requests_this_minute: int
    rows_today: int


def must_be_allowed(settings: Settings, rows: int, field: str) -> None:
    """Raises ``InvalidSynthesisRequest`` for what no waiting makes possible."""
    most = min(settings.synthesis_max_rows, settings.synthesis_rows_per_day)
    if rows > most:
        raise InvalidSynthesisRequest(
            f"{rows:,} rows are more than the {most:,} that one request may have here",
            field=field,
            mend="Ask for fewer, several times with different seeds.",
        )


async def charge(ctx: Context, who: Principal, rows: int) -> dict[str, str]:
    """Headers that say what is left. Raises ``QuotaExceeded``; then nothing was charged."""
    settings = ctx.settings
    limits = (settings.synthesis_requests_per_minute, settings.synthesis_rows_per_day)
    charged = await repository.charge(
        ctx.database, who.token_id, rows, requests_limit=limits[0], rows_limit=limits[1]
    )
    if charged is None:
        raise _refusal(await repository.used(ctx.database, who.token_id), rows, *limits)
    left = [max(0, limit - count) for limit, count in zip(limits, charged, strict=True)]
    # https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/
    return {
        "RateLimit-Policy": f'"requests";q={limits[0]};w=60, "rows";q={limits[1]};w=86400',
        "RateLimit": f'"requests";r={left[0]}, "rows";r={left[1]}',
    }


def _refusal(
    used: repository.Used, rows: int, requests_limit: int, rows_limit: int
) -> QuotaExceeded:
    now = used.at.astimezone(UTC)
    if used.requests >= requests_limit:
        minute = now.replace(second=0, microsecond=0) + timedelta(minutes=1)
        return QuotaExceeded(
            f"this token has asked {used.requests} times this minute and may {requests_limit} "
            "times",
            mend="Ask for more rows at once, or wait.",
            quota="requests-per-minute",
            retry_after_s=_until(now, minute),
        )
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    return QuotaExceeded(
        f"this token has had {used.rows:,} of its {rows_limit:,} rows of today; {rows:,} more are "
        "too many",
        field="n",
        mend="Ask for fewer rows, wait for midnight UTC, or ask the operator for more.",
        quota="rows-per-day",
        retry_after_s=_until(now, midnight),
    )


def _until(now: datetime, then: datetime) -> int:
    return max(1, math.ceil((then - now).total_seconds()))


async def usage(ctx: Context, who: Principal) -> UsageView:
    used, settings = await repository.used(ctx.database, who.token_id), ctx.settings
    return UsageView(
        requests_this_minute=used.requests,
        requests_per_minute=settings.synthesis_requests_per_minute,
        rows_today=used.rows,
        rows_per_day=settings.synthesis_rows_per_day,
        rows_per_request=settings.synthesis_max_rows,
        answers_at_once=settings.synthesis_at_once_per_token,
    )


class Answers:
    """How many answers this process makes just now, in all and of each token."""

    def __init__(self, settings: Settings) -> None:
        self._most = settings.synthesis_at_once
        self._most_of_token = settings.synthesis_at_once_per_token
        self._of_token: Counter[UUID] = Counter()

    @contextmanager
    def place(self, token_id: UUID) -> Iterator[None]:
        """Held while an answer is made. Raises ``TooManyAnswers``."""
        if self._of_token[token_id] >= self._most_of_token:
            raise TooManyAnswers(
                f"{self._most_of_token} answers to this token are being made",
                mend="Wait for one of them to end.",
                retry_after_s=_SOON_S,
            )
        if self._of_token.total() >= self._most:
            raise TooManyAnswers(
                f"this coordinator makes {self._most} answers already",
                mend="Try again in a moment.",
                retry_after_s=_SOON_S,
            )
        self._of_token[token_id] += 1
        try:
            yield
        finally:
            self._of_token[token_id] -= 1
            if not self._of_token[token_id]:
                del self._of_token[token_id]
