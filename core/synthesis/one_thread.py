"""One thread for linear algebra while rows are made: its number must not decide their bits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from threadpoolctl import ThreadpoolController

_lock = threading.Lock()
_inside = 0
_limit: object = None


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()  # looks through all loaded libraries: once


@contextmanager
def one_thread() -> Iterator[None]:
    """Products use one thread, in all threads of this process, until the last one leaves.

    Hold it for long: threads that are let loose again and again spin in between, and cost as much
    as the products.
    """
    global _inside, _limit
    with _lock:
        if _inside == 0:
            _limit = _controller().limit(limits=1, user_api="blas")
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _limit.restore_original_limits()  # type: ignore[attr-defined]
