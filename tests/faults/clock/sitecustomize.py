"""A wall clock that a test can move, for one process that starts with this folder on PYTHONPATH.

``FHV_TEST_CLOCK`` names a file with seconds to add. It is read at every call, so the clock jumps
while the process works. Monotonic time, which nobody can set, is left alone.
"""

from __future__ import annotations

import datetime
import os
import time
from pathlib import Path

_real_time, _real_datetime = time.time, datetime.datetime
_file = Path(os.environ["FHV_TEST_CLOCK"])


def _offset() -> float:
    try:
        return float(_file.read_text() or 0)
    except FileNotFoundError:
        return 0.0


def _time() -> float:
    return _real_time() + _offset()


class _Kind(type(_real_datetime)):  # type: ignore[misc]
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, _real_datetime)


class _Moved(_real_datetime, metaclass=_Kind):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> _real_datetime:  # type: ignore[override]
        return _real_datetime.now(tz) + datetime.timedelta(seconds=_offset())

    @classmethod
    def utcnow(cls) -> _real_datetime:  # type: ignore[override]
        return _real_datetime.utcnow() + datetime.timedelta(seconds=_offset())


time.time = _time
time.time_ns = lambda: int(_time() * 1e9)
datetime.datetime = _Moved  # type: ignore[misc]
