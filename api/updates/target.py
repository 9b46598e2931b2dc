"""Where an update is meant to go."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from api.auth import Principal
from core.federation.plan import RunSpec
from core.federation.updates import UpdateExpectation


@dataclass(frozen=True)
class Target:
    """Where an update is meant to go, judged before its body is read.

    ``round_state``, ``work_state`` as they were then; ``sent_before``: something of this client
    that it may be, or may be in conflict with; ``masked_bytes``: the size of a masked vector, where
    the round's sum is a secure one (0: nobody can send one yet).
    """

    who: Principal
    run_id: UUID
    number: int
    spec: RunSpec
    client_id: UUID
    update_id: UUID
    work_id: UUID | None
    round_state: str
    work_state: str
    attempt: int
    sent_before: bool
    expected: UpdateExpectation
    masked_bytes: int | None = None

    @property
    def max_bytes(self) -> int:
        return self.expected.max_bytes if self.masked_bytes is None else self.masked_bytes
