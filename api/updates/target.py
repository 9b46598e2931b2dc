"""Where an update is meant to go."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from api.auth import Principal
from api.secure_sums.vectors import MaskedTarget
from core.federation.plan import RunSpec
from core.federation.updates import UpdateExpectation


@dataclass(frozen=True)
class Target:
    """Where an update is meant to go, judged before its body is read.

    ``round_state``, ``work_state`` as they were then; ``sent_before``: something of this client
    that it may be, or may be in conflict with; ``masked``: what a masked vector must be, where
    the round's sum is a secure one.
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
    masked: MaskedTarget | None = None

    @property
    def max_bytes(self) -> int:
        return self.expected.max_bytes if self.masked is None else self.masked.size
