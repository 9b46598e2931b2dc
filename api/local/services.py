"""The processes of one folder, each of which is started again when it has ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from api.local.folder import Folder, Record, Service
from core.processes import Child, Processes, ending

_LONGEST_PAUSE_S = 30.0
_STEADY_S = 60.0  # a service that ran for so long begins again with the shortest pause

Say = Callable[[str], None]


class Services:
    """The processes of the set, with how each is started (again)."""

    def __init__(self, processes: Processes, folder: Folder, record: Record) -> None:
        self.record = record
        self._processes = processes
        self._folder = folder
        self._how: dict[str, tuple[list[str], Mapping[str, str]]] = {}
        self._began: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        self._due: dict[str, float] = {}  # when to start it again

    def start(self, name: str, arguments: list[str], environment: Mapping[str, str]) -> None:
        self._how[name] = (arguments, environment)
        self._begin(name, restarts=0)

    def _begin(self, name: str, *, restarts: int) -> None:
        child = self._processes.start(name, *self._how[name])
        self._began[name] = time.monotonic()
        services = {**self.record.services, name: Service(child.pid, restarts)}
        self.write(self.record.having(services=services))

    def write(self, record: Record) -> None:
        self.record = record
        self._folder.write(record)

    def tend(self, say: Say) -> None:
        """Start again what has ended; what ends again and again waits longer each time."""
        now = time.monotonic()
        for child in self._processes.ended:
            self._processes.kill(child.name)  # what it left in its session goes with it
            steady = now - self._began[child.name] > _STEADY_S
            failures = 0 if steady else self._failures.get(child.name, 0)
            self._failures[child.name] = failures + 1
            self._due[child.name] = now + min(_LONGEST_PAUSE_S, 0.5 * 2.0**failures)
            say(f"{child.name} has ended ({_how_it_ended(child)}); it is started again")
        for name in [name for name, due in self._due.items() if due <= now]:
            del self._due[name]
            self._begin(name, restarts=self.record.services[name].restarts + 1)


def _how_it_ended(child: Child) -> str:
    code = child.process.poll()
    return "?" if code is None else ending(code)
