"""The site's own record of what it has said to plans, in its ledger. Rows are only ever added.

An agent in the mode ``ask`` executes orders of runs that a person has approved HERE, whatever the
coordinator says about consent.
"""

from __future__ import annotations

import sqlite3
from typing import Literal

from worker.agent.records import Decision

_COLUMNS = "run_id, client, spec_digest, joins, decision, decided_by, why"


def last(
    db: sqlite3.Connection, run_id: str, client: str, *, by: Literal["person", "policy"] | None
) -> Decision | None:
    """The newest decision of a person, of the policy, or of whoever it was."""
    row = db.execute(
        f"SELECT {_COLUMNS} FROM consent"  # noqa: S608 (constants only)
        " WHERE run_id = ? AND client = ? AND decided_by = coalesce(?, decided_by)"
        " ORDER BY seq DESC LIMIT 1",
        (run_id, client, by),
    ).fetchone()
    if row is None:
        return None
    run, name, digest, joins, decision, decided_by, why = row
    return Decision(run, name, digest, bool(joins), decision, decided_by, why)


def counting(
    db: sqlite3.Connection, run_id: str, client: str, consent: Literal["ask", "policy"]
) -> Decision | None:
    """The word by which a site goes that asks a person, or one that has a policy: there the newest
    of both counts, but for a person's no.
    """
    person = last(db, run_id, client, by="person")
    if consent == "ask" or (person is not None and person.decision == "refuse"):
        return person
    return last(db, run_id, client, by=None)


def add(db: sqlite3.Connection, new: Decision, at: str) -> None:
    """Saying the same again adds nothing, with whatever reason."""
    old = last(db, new.run_id, new.client, by=new.by)
    same = old is not None and (old.spec_digest, old.joins, old.decision) == (
        new.spec_digest,
        new.joins,
        new.decision,
    )
    if not same:
        db.execute(
            f"INSERT INTO consent ({_COLUMNS}, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
            (new.run_id, new.client, new.spec_digest, int(new.joins), new.decision, new.by,
             new.why, at),
        )  # fmt: skip
