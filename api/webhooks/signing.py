"""Secrets of webhooks and the signatures made with them, in the form of Standard Webhooks.

``webhook-signature`` is ``v1,`` and the base64 of HMAC-SHA256 over ``id.timestamp.body``. While a
secret is being changed there are two of them, with a space between: a receiver takes either.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from collections.abc import Iterable
from uuid import UUID

from api import sealing

_PREFIX = "whsec_"
_BYTES = 32
_PURPOSE = "webhook secret"


def new() -> bytes:
    return os.urandom(_BYTES)


def shown(secret: bytes) -> str:
    """As the receiver keeps it: ``whsec_`` and base64."""
    return _PREFIX + base64.b64encode(secret).decode()


def sealed(secret: bytes, webhook_id: UUID, pepper: bytes) -> bytes:
    return sealing.seal(secret, pepper=pepper, purpose=_PURPOSE, row=str(webhook_id))


def opened(stored: bytes, webhook_id: UUID, pepper: bytes) -> bytes:
    """Raises ``sealing.OtherPepper``."""
    return sealing.opened(stored, pepper=pepper, purpose=_PURPOSE, row=str(webhook_id))


def headers(
    secrets: Iterable[bytes], message_id: UUID, seconds: int, body: bytes
) -> dict[str, str]:
    """What is sent with a body; ``seconds``: Unix time of this attempt."""
    signed = f"{message_id}.{seconds}.".encode() + body
    macs = (hmac.new(secret, signed, hashlib.sha256).digest() for secret in secrets)
    return {
        "webhook-id": str(message_id),
        "webhook-timestamp": str(seconds),
        "webhook-signature": " ".join(f"v1,{base64.b64encode(mac).decode()}" for mac in macs),
    }
