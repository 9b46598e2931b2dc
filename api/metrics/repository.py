"""SQL of metrics: one statement a scrape, and two of all ledger entries now and then."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID

from api.db.engine import Database

# (what, which, label, value); ``%(clock)s`` is the tests' offset.
_FACTS = """
WITH clock AS (SELECT clock_timestamp() + %(clock)s AS now)
SELECT 'rounds' AS what, '' AS which, state AS label, count(*)::float8 AS value
  FROM rounds GROUP BY state
UNION ALL
SELECT 'wait', '', state,
       max(extract(epoch FROM now - CASE
         WHEN state IN ('keys', 'shares') THEN created_at
         WHEN state = 'open' THEN opened_at ELSE closed_at END))
  FROM rounds, clock WHERE state IN ('open', 'closing', 'aggregating', 'keys', 'shares',
                                     'confirming', 'opening') GROUP BY state
UNION ALL
SELECT 'overdue', '', '', max(extract(epoch FROM now - deadline))
  FROM rounds, clock WHERE state = 'open' GROUP BY ()
UNION ALL
SELECT 'queue', 'work', state, count(*)
  FROM work_items WHERE state IN ('ready', 'leased') GROUP BY state
UNION ALL
SELECT 'queue', kind, state, count(*) FROM jobs WHERE state IN ('ready', 'leased')
  GROUP BY kind, state
UNION ALL
SELECT 'queue', 'synthesis', state, count(*)
  FROM synthesis_jobs WHERE state IN ('ready', 'leased') GROUP BY state
UNION ALL
SELECT 'failed', kind, '', count(*) FROM jobs WHERE state = 'failed' GROUP BY kind
UNION ALL
SELECT 'failed', 'synthesis', '', count(*) FROM synthesis_jobs WHERE state = 'failed' GROUP BY ()
UNION ALL
SELECT 'outbox', '', '', count(*) FROM outbox WHERE sent_at IS NULL
UNION ALL
SELECT 'outbox-age', '', '', coalesce(max(extract(epoch FROM now - created_at)), 0)
  FROM outbox, clock WHERE sent_at IS NULL
UNION ALL
SELECT 'erasures', '', '', count(*) FROM erasures WHERE done_at IS NULL
UNION ALL
SELECT 'deliveries', '', state, count(*) FROM webhook_deliveries
  WHERE state IN ('pending', 'dead') GROUP BY state
UNION ALL
SELECT 'webhooks-disabled', '', '', count(*) FROM webhooks WHERE disabled_at IS NOT NULL
"""

# Every account's reservations as a multiset, by whether they are settled. An outcome is what has a
# ``reserve_id``.
_RESERVED = """
SELECT r.account_id, r.event::text, o.id IS NOT NULL, count(*)
FROM ledger_entries AS r LEFT JOIN ledger_entries AS o ON o.reserve_id = r.id
WHERE r.kind = 'reserve' GROUP BY 1, 2, 3
"""
_CLIENTS = """
SELECT name, account_id, budget_epsilon, budget_delta FROM clients
WHERE revoked_at IS NULL ORDER BY name
"""


@dataclass(frozen=True)
class Enrolled:
    """A client that is not revoked, its account and its budget."""

    name: str
    account_id: UUID
    epsilon: float
    delta: float


@dataclass(frozen=True)
class Facts:
    """(what, which, label) -> value; seconds where it is a time."""

    values: Mapping[tuple[str, str, str], float] = field(default_factory=dict)

    def of(self, what: str) -> dict[tuple[str, str], float]:
        return {(b, c): value for (a, b, c), value in self.values.items() if a == what}

    def one(self, what: str) -> float:
        return self.values.get((what, "", ""), 0.0)


async def facts(database: Database) -> Facts:
    found = await database.glance(_FACTS)
    return Facts({(row[0], row[1], row[2]): float(row[3]) for row in found if row[3] is not None})


async def clients(database: Database) -> list[Enrolled]:
    return [Enrolled(*row) for row in await database.glance(_CLIENTS)]


async def reserved(database: Database) -> dict[UUID, Counter[tuple[str, bool]]]:
    """For every account: how often each event (JSON) is reserved, and whether it is settled."""
    accounts: dict[UUID, Counter[tuple[str, bool]]] = {}
    for account_id, event, settled, count in await database.glance(_RESERVED):
        accounts.setdefault(account_id, Counter())[event, settled] = count
    return accounts
