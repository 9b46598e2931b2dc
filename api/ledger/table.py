"""A ledger as a table for auditors: one line an entry, with what an accountant needs of its event.

Outcomes carry their reservation's event too, so that every line can be read by itself; a sum over
an account is over its reservations (``kind`` = reserve), never over all lines.
"""

from __future__ import annotations

import csv
import io
from uuid import UUID

from api.ledger.service import EntryView, LedgerView

MEDIA = "text/csv"
COLUMNS = (
    "at", "entry", "kind", "reservation", "client", "site", "population", "run", "round", "attempt",
    "mechanism", "noise_multiplier", "sample_rate", "steps", "relation", "unit",
)  # fmt: skip


def to_csv(ledger: LedgerView) -> str:
    """RFC 4180: a header, then the entries in order. Numbers are written so that they read back
    as the same float64.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\r\n")
    writer.writeheader()
    events = {entry.id: entry.event for entry in ledger.entries if entry.kind == "reserve"}
    for entry in ledger.entries:
        event = events[_reservation(entry)]
        line: dict[str, object] = {
            "at": entry.at.isoformat(), "entry": entry.id, "kind": entry.kind,
            "reservation": _reservation(entry), "client": entry.client,
            "site": _text(ledger.account.site), "population": _text(ledger.account.population),
            "run": entry.run_id, "round": entry.round, "attempt": entry.attempt,
        }  # fmt: skip
        writer.writerow(line | (event.model_dump() if event is not None else {}))
    return text.getvalue()


def _reservation(entry: EntryView) -> UUID:
    """A reservation names itself."""
    return entry.id if entry.reserve_id is None else entry.reserve_id


def _text(value: str) -> str:
    """Free text as spreadsheets may see it: what they would take for a formula gets an apostrophe
    (OWASP, CSV injection).
    """
    return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
