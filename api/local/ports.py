"""Ports of this machine: is one free, does somebody listen, is the coordinator there ready?"""

from __future__ import annotations

import http.client
import socket

from core.processes import Processes, ServiceError, wait_for

_READY_S = 90.0


class PortTaken(ServiceError):
    """Another program listens where the coordinator shall."""


def must_be_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise PortTaken(
                f"cannot listen on 127.0.0.1:{port}: {error.strerror or error}. "
                "Give another port with --port."
            ) from error


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2.0).close()
    except OSError:
        return False
    return True


def readiness(port: int) -> tuple[bool, str]:
    """What the coordinator on this port says of itself: is it ready, and its words."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5.0)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        return answer.status == 200, answer.read(2_000).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return False, f"no answer ({type(error).__name__})"
    finally:
        connection.close()


def wait_until_ready(port: int, processes: Processes) -> None:
    last = "no answer yet"

    def look() -> bool | None:
        nonlocal last
        ready, last = readiness(port)
        return True if ready else None

    wait_for(
        "the coordinator to be ready",
        look,
        seconds=_READY_S,
        check=processes.check,
        state=lambda: last,
    )
