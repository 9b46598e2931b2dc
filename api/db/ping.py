"""Is a pooled connection still alive when it is taken? Asked of the server only in doubt.

A server that was stopped or restarted has closed the connection's socket, and a closed socket can
be read at once, as an idle healthy one cannot: one system call tells. Who was idle for long is
asked all the same, for a firewall may drop a connection and tell nobody.
"""

from __future__ import annotations

import select
import time
from typing import Any

from sqlalchemy import event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry

_TRUSTED_S = 10.0
_RETURNED = "returned"


def check_when_taken(engine: AsyncEngine) -> None:
    """Instead of ``pool_pre_ping``, whose question at every transaction is a round trip of it."""
    dialect = engine.dialect

    def returned(_: Any, entry: ConnectionPoolEntry) -> None:
        entry.info[_RETURNED] = time.monotonic()

    def taken(connection: Any, entry: ConnectionPoolEntry, _: Any) -> None:
        since = entry.info.get(_RETURNED)
        if since is None:
            return  # new
        if time.monotonic() - since < _TRUSTED_S and not _readable(connection):
            return
        try:
            dialect.do_ping(connection)
        except dialect.loaded_dbapi.Error as error:
            raise DisconnectionError("the server has closed this connection") from error

    event.listen(engine.sync_engine, "checkin", returned)
    event.listen(engine.sync_engine, "checkout", taken)


def _readable(connection: Any) -> bool:
    """Has the server said or closed something? (Also true of a closed file descriptor.)"""
    try:
        handle = connection.driver_connection.fileno()
    except Exception:  # psycopg: the connection is closed
        return True
    poller = select.poll()
    poller.register(handle, select.POLLIN)
    return bool(poller.poll(0))
