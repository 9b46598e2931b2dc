"""Structured logs: constant event names, facts as key=value, on standard error.

Never logged, at any level: embeddings, labels, losses, gradient norms, batch sizes, tokens. An
unexpected exception is logged by type and place, not by its text, which may quote a record.
"""

from __future__ import annotations

import logging
import sys
import traceback
from typing import Any

import structlog

_SHOWN_FRAMES = 6
Logger = structlog.typing.FilteringBoundLogger


def configure(level: str = "info") -> None:
    """One line per event: coloured text on a terminal, JSON elsewhere."""
    on_terminal = sys.stderr.isatty()
    renderer: Any = (
        structlog.dev.ConsoleRenderer() if on_terminal else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )


def get(name: str) -> Logger:
    """A logger whose lines carry ``where=name``."""
    logger: Logger = structlog.get_logger(where=name)
    return logger


def place_of(error: BaseException) -> dict[str, Any]:
    """Type and frames of an unexpected exception, without its message or any value."""
    frames = traceback.extract_tb(error.__traceback__)[-_SHOWN_FRAMES:]
    return {
        "error": type(error).__name__,
        "at": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    }
