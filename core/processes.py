"""Child processes: started, watched and stopped by our own handles.

Every child is the leader of its own session, so a Ctrl-C in the terminal reaches only the parent,
which then stops the children itself: SIGTERM to all, a wait, SIGKILL to what is left.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self, TypeVar

T = TypeVar("T")

_TAIL_LINES = 25
_POLL_S = 0.1


class ServiceError(RuntimeError):
    """The services cannot go on; the message says what happened and where to look."""


class ChildEnded(ServiceError):
    """A child has ended by itself; the message has the end of its log."""


class Stopped(BaseException):
    """A signal asked this process to end. Not an ``Exception``: nothing may swallow it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into ``Stopped``; later ones cannot cut the stop."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def once(number: int, _: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(number)

    before = {number: signal.signal(number, once) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class Child:
    """A running process and the file that holds all it prints."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def tail(self, lines: int = _TAIL_LINES) -> str:
        try:
            text = self.log.read_text(errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines:])


class Processes:
    """Children of this process; leaving the block stops them all, the last started first."""

    def __init__(self, logs: Path, *, folder: Path | None = None, patience_s: float = 15.0) -> None:
        self._logs = logs
        self._folder = folder  # in which the children run; ours if None
        self._patience_s = patience_s
        self._children: dict[str, Child] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def running(self) -> list[Child]:
        return list(self._children.values())

    def start(self, name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> Child:
        """Start a child under a name of its own; a name is free again after ``kill`` or ``end``."""
        if name in self._children:
            raise ServiceError(f"there is a process {name!r} already")
        self._logs.mkdir(parents=True, exist_ok=True)
        log = self._logs / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                list(arguments),
                cwd=self._folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        child = Child(name, process, log)
        self._children[name] = child
        return child

    @property
    def ended(self) -> list[Child]:
        """Those that have ended by themselves; ``kill`` makes room for another of the name."""
        return [child for child in self._children.values() if child.process.poll() is not None]

    def check(self) -> None:
        """Raise ``ChildEnded`` with the end of its log if a child has ended by itself."""
        for child in self._children.values():
            code = child.process.poll()
            if code is not None:
                raise ChildEnded(
                    f"the process {child.name!r} ended by itself ({ending(code)}). "
                    f"Last lines of {child.log}:\n{child.tail()}"
                )

    def kill(self, name: str) -> int:
        """SIGKILL one child, as a crash would; returns its exit status."""
        child = self._children.pop(name)
        _signal_group(child, signal.SIGKILL)
        return child.process.wait()

    def stop(self) -> None:
        """SIGTERM to all, ``patience_s`` to end, SIGKILL to the rest. Safe to call again."""
        children = list(reversed(self._children.values()))
        for child in children:
            _signal_group(child, signal.SIGTERM)
        deadline = time.monotonic() + self._patience_s
        for child in children:
            try:
                child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _signal_group(child, signal.SIGKILL)
                child.process.wait()
            # What the leader left behind in its session goes with it.
            _signal_group(child, signal.SIGKILL)
            self._children.pop(child.name, None)


def _signal_group(child: Child, number: signal.Signals) -> None:
    try:
        os.killpg(child.pid, number)
    except ProcessLookupError:
        return  # ended already, and nothing of its session is left


def ending(code: int) -> str:
    return f"by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def wait_for(
    what: str,
    look: Callable[[], T | None],
    *,
    seconds: float,
    check: Callable[[], None],
    state: Callable[[], str] | None = None,
    pause_s: float = _POLL_S,
) -> T:
    """Call ``look`` until it gives something; ``ServiceError`` says for what and what was seen.

    ``check`` raises when waiting has become pointless (a process has died).
    """
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found is not None:
            return found
        check()
        if time.monotonic() > deadline:
            seen = f" Last seen: {state()}" if state is not None else ""
            raise ServiceError(f"waited {seconds:.0f} s for {what}, in vain.{seen}")
        time.sleep(pause_s)
