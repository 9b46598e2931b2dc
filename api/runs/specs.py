"""Specifications as they were validated once. A run's never changes and is named by its digest,
so nothing that is kept here can be out of date.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from api.db.engine import Database
from api.db.run_models import Run
from core.federation.plan import RunSpec
from core.federation.updates import UpdateExpectation, expectation
from core.privacy.premise import View
from core.privacy.views import views_of_secure
from core.recent import Recent

_MOST = 256
_specs = Recent[str, RunSpec](_MOST)
_views = Recent[tuple[str, int], tuple[View, ...]](_MOST)
_expected = Recent[tuple[str, int], UpdateExpectation](_MOST)
_BODY = "SELECT spec FROM runs WHERE id = %(run_id)s"


def spec_of(run: Run) -> RunSpec:
    """A run's specification."""
    return _spec(run.spec_digest, run.spec)


async def spec_by_digest(database: Database, run_id: UUID, digest: str) -> RunSpec:
    """The same for who knows a run's digest and has not read the rest of its row."""
    if (known := _specs.get(digest)) is not None:
        return known
    return _spec(digest, (await database.glance(_BODY, run_id=run_id))[0][0])


def expected_of(digest: str, spec: RunSpec, round_number: int) -> UpdateExpectation:
    """What an update of this round of this specification must look like."""
    key = (digest, round_number)
    if (known := _expected.get(key)) is None:
        known = _expected.keep(key, expectation(spec, round_number))
    return known


async def views_of(spec: RunSpec, founding: int) -> list[View]:
    """What a plan with secure sums costs one of ``founding`` clients, by who looks; empty for
    other plans. The accountant's work is done on a thread, and once.
    """
    if spec.plan.aggregation != "secure":
        return []
    key = spec.digest, founding
    if (known := _views.get(key)) is None:
        known = _views.keep(key, await asyncio.to_thread(views_of_secure, spec, founding))
    return list(known)


def _spec(digest: str, body: Mapping[str, Any]) -> RunSpec:
    if (known := _specs.get(digest)) is None:
        known = _specs.keep(digest, RunSpec.model_validate(body))
    return known
