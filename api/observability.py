"""Logs: one JSON object a line on standard error, constant event names, facts as keys.

Never logged: bodies, tokens, query strings, embeddings, labels, losses.
"""

from __future__ import annotations

import logging
import re
import sys

import structlog
from structlog.typing import EventDict, Processor

# Libraries that would write URLs, statements or bodies at DEBUG or INFO.
_QUIET = ("sqlalchemy", "psycopg", "kombu", "celery", "amqp", "asyncio", "uvicorn.access")

# No event names a secret. A library's message or a traceback might: the line is searched as it is
# written. Bearer tokens, lease tokens (``api.auth.lease_token``), secrets of webhooks and the
# password of a URL; enrolment codes (``core.wire.credentials``).
_SECRETS = re.compile(
    r"(?P<scope>\bfhv_[a-z]+_)[A-Za-z0-9_-]{16,}"
    r"|(?P<lease>\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\.\d+\.)[0-9a-f]{64}\b"
    r"|(?P<webhook>\bwhsec_)[A-Za-z0-9+/=_-]{16,}"
    r"|(?P<user>\b[a-z][a-z0-9+.]*://[^\s:/@\"]*:)[^\s/@\"]+(?=@)"
    r"|(?P<code>\b)[0-9A-Z]{5}(?:-[0-9A-Z]{5}){4}\b"
)
_HIDDEN = "[hidden]"


def scrubbed(line: str) -> str:
    """A log line without the secrets that can be known by their form."""
    return _SECRETS.sub(lambda found: f"{found[found.lastgroup or 0]}{_HIDDEN}", line)


def _rendered(logger: object, name: str, event: EventDict) -> str:
    return scrubbed(str(_AS_JSON(logger, name, event)))


_AS_JSON = structlog.processors.JSONRenderer()


def configure(level: str) -> None:
    """Route structlog and the standard library's loggers through one JSON renderer."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _rendered,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
