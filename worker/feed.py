"""Server-sent events as a run's feed sends them: lines in, events out. No network here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from worker.errors import UnexpectedAnswer

END = "end"
# Longest silence of a healthy feed is the coordinator's heartbeat, 15 s unless it was changed.
SILENCE_S = 60.0


@dataclass(frozen=True)
class RunEvent:
    """``kind`` is ``state``, ``end`` or a kind of the audit trail; ``id`` is None where the event
    is no place to go on from.
    """

    kind: str
    id: str | None
    data: dict[str, Any]


def parse(lines: Iterable[str]) -> Iterator[RunEvent]:
    """Events of a stream, each once its blank line has come; comments and ``retry`` are skipped.
    An event that was cut off is dropped: it comes again after a reconnect.
    """
    kind, event_id = "", None
    data: list[str] = []
    for line in lines:
        if not line:
            if data:
                yield RunEvent(kind, event_id, _object("\n".join(data)))
            kind, event_id, data = "", None, []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "event":
                kind = value
            case "id":
                event_id = value
            case "data":
                data.append(value)


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UnexpectedAnswer("an event of the feed is not JSON") from error
    if not isinstance(value, dict):
        raise UnexpectedAnswer("an event of the feed is not a JSON object")
    return value
