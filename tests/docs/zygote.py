"""``fedhypevae`` without its start: one process has imported everything, each call is a fork of it.

A page has dozens of commands, and most of the two seconds of each would be imports. The command
itself is the real one, in a process of its own, with the caller's arguments, environment, folder
and streams. Commands that run until a signal get one after ``LONG_S``: they must have come so far.

``python -m tests.docs.zygote SOCKET`` serves; ``PROGRAM`` is what is put on PATH.
"""

from __future__ import annotations

import array
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
from typing import Any, NoReturn

LONG = (
    ("serve",), ("agent", "run"), ("worker", "run"), ("run", "watch"), ("admin", "audit", "follow"),
)  # fmt: skip
LONG_S = 2.0
PATIENCE = "FHV_TEST_PATIENCE"  # seconds, instead of LONG_S
_STOP_S = 20.0

PROGRAM = """#!{python} -IS
import array, json, os, socket, sys
with socket.socket(socket.AF_UNIX) as to:
    to.connect({socket!r})
    call = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    streams = array.array("i", [0, 1, 2])
    to.sendmsg([len(call).to_bytes(4, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
    to.sendall(call)
    answer = to.recv(1)
sys.exit(answer[0] if answer else 70)
"""


def _received(connection: socket.socket) -> tuple[list[str], str, dict[str, str], list[int]]:
    streams = array.array("i")
    size, ancillary, _, _ = connection.recvmsg(4, socket.CMSG_SPACE(3 * streams.itemsize))
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            streams.frombytes(data)
    body = b""
    while len(body) < int.from_bytes(size, "big"):
        body += connection.recv(1 << 16)
    arguments, folder, environment = json.loads(body)
    return arguments, folder, environment, list(streams)


def _become(
    arguments: list[str], folder: str, environment: dict[str, str], streams: Any
) -> NoReturn:
    """Be the command, from its arguments to its exit code."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["fedhypevae", *arguments]
    code = 1
    try:
        from core import cli

        cli.main(arguments)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1 if ended.code else 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except BrokenPipeError:  # as where a process ends: exit code 120
                code = code or 120
            except ValueError:  # closed by the command
                continue
        os._exit(code)


def _kept(call: tuple[list[str], str, dict[str, str], list[int]], caller: socket.socket) -> int:
    """Run the command as a child; its exit code. One that ends only by a signal gets it: when its
    time is over, or when its caller is gone.
    """
    child = os.fork()
    if child == 0:
        caller.close()
        _become(*call)
    for stream in call[3]:
        os.close(stream)
    long = any(tuple(call[0][: len(name)]) == name and "--help" not in call[0] for name in LONG)
    if not long:
        return _code(os.waitpid(child, 0)[1])
    patience = float(call[2].get(PATIENCE, LONG_S))
    if (code := _ended(child, patience, caller)) is not None:
        return code or 1  # by itself: it should have gone on
    os.kill(child, signal.SIGTERM)
    code = _ended(child, _STOP_S, None)
    if code is None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return 75  # it did not stop
    return 0 if code in (0, 130, 128 + signal.SIGTERM) else code


def _ended(child: int, wait_s: float, caller: socket.socket | None) -> int | None:
    """The child's exit code, or None if it lives on after ``wait_s``, or after its caller."""
    until = time.monotonic() + wait_s
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return _code(status)
        if caller is not None and select.select([caller], [], [], 0)[0]:
            return None  # nothing more is ever sent: it was closed
        time.sleep(0.02)
    return None


def _code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _import_all() -> None:
    from core import cli

    cli.prefer_checkout()
    for entry in cli.commands().values():
        cli.load(entry)
    for name in ("torch", "api.app", "worker.client", "worker.agent.loop", "worker.execution",
                 "worker.agent.verify", "worker.agent.local_report",
                 "pyarrow.parquet"):  # fmt: skip
        importlib.import_module(name)
    from worker.agent import enrol

    enrol._PAUSE_S = 0.2  # approvals come at once here


def main(path: str) -> None:
    _import_all()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(16)
        while True:
            connection, _ = server.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                server.close()
                try:
                    code = _kept(_received(connection), connection)
                    connection.sendall(bytes([code & 0xFF]))
                finally:
                    os._exit(0)
            connection.close()


if __name__ == "__main__":
    main(sys.argv[1])
