"""One repair of the broker's client library: a message that cannot be acknowledged is let go.

The library counts a message as "in hand" until the broker has heard the acknowledgement. If the
broker is away at that moment, it stays counted for ever; with one message at a time in hand, the
worker then waits for ever and looks as if it were idle. Letting go is safe here: a message is only
a hint, its row at the coordinator is the truth, and a second claim of it is refused.
"""

from __future__ import annotations

from typing import Any

from kombu.transport import redis, virtual


class LettingGo(redis.QoS):
    """Forgets a message once its acknowledgement was tried, whether the broker heard it or not."""

    def ack(self, delivery_tag: Any) -> None:
        try:
            super().ack(delivery_tag)  # type: ignore[no-untyped-call]
        finally:
            virtual.QoS.ack(self, delivery_tag)  # type: ignore[no-untyped-call]

    def reject(self, delivery_tag: Any, requeue: bool = False) -> None:
        try:
            super().reject(delivery_tag, requeue=requeue)  # type: ignore[no-untyped-call]
        finally:
            virtual.QoS.ack(self, delivery_tag)  # type: ignore[no-untyped-call]


def install() -> None:
    """For all Redis connections of this process, whatever the scheme of their URL."""
    redis.Channel.QoS = LettingGo
