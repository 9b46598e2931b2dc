"""Where an update is meant to go."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from api.auth import Principal
from api.db.run_models import Round, Run
from core.federation.plan import RunSpec
from core.federation.updates import UpdateExpectation


@dataclass(frozen=True)
class Target:
    """Where an update is meant to go, judged before its body is read."""

    who: Principal
    run: Run
    row: Round
    spec: RunSpec
    client_id: UUID
    update_id: UUID
    work_id: UUID | None
    expected: UpdateExpectation
