"""Which runs a site may have forgotten after its ledger was restored from a backup. Pure.

Who has signed a view of a sum, or masked a vector, must not do it again; a backup of before knows
of neither, nor of the approval. What tells such a run from a new one is its id: a UUIDv7, which
names the moment at which it was made. It is the coordinator's claim, so it is held to the site's
own clock when the run is approved and with each step: one of a time that has not come is refused.
Hence whatever this site took part in before a restoration has an id of no later than ``AHEAD``
after it, whoever made it up; that its clock was not set back meanwhile is all that is assumed.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from core.errors import PlanRefused

AHEAD = timedelta(minutes=10)  # by which two honest clocks may differ
_MS = timedelta(milliseconds=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def made_ms(run_id: str) -> int | None:
    """When a run was made, in milliseconds since 1970; None for an id that is no UUIDv7."""
    try:
        found = UUID(run_id)
    except ValueError:
        return None
    return found.int >> 80 if found.version == 7 and str(found) == run_id else None


def require_made(run_id: str, now: datetime) -> None:
    """Raises ``PlanRefused`` for a run of more than ``AHEAD`` after ``now``."""
    made = made_ms(run_id)
    if made is not None and made > (now + AHEAD - _EPOCH) // _MS:
        raise PlanRefused(
            f"the run says that it was made more than {AHEAD // timedelta(minutes=1)} minutes from "
            "now, by this site's clock",
            field="run_id",
            mend="Compare this machine's clock with the coordinator's. If it was wrong, set it, "
            f"then 'fedhypevae agent approve {run_id}'; if not, the administrator makes a new run.",
        )


def may_be_of_before(run_id: str, restored: datetime) -> bool:
    """Whether the run may have been approved before a restoration, as far as its id tells."""
    made = made_ms(run_id)
    return made is None or made <= (restored + AHEAD - _EPOCH) // _MS
