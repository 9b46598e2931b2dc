"""A ledger as a table for auditors: one line an entry, with what an accountant needs of its event.

Outcomes carry their reservation's event too, so that every line can be read by itself; a sum over
an account is over its reservations (``kind`` = reserve), never over all lines.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from uuid import UUID

from api.ledger.service import AccountView, EntryView

MEDIA = "text/csv"
COLUMNS = (
    "at", "entry", "kind", "reservation", "client", "site", "population", "run", "round", "attempt",
    "mechanism", "noise_multiplier", "sample_rate", "steps", "relation", "unit",
    "collude",  # empty: the release is as safe by itself, whoever sees it
)  # fmt: skip


def to_csv(account: AccountView, entries: Iterable[EntryView]) -> str:
    """RFC 4180: a header, then an account's entries, oldest first. Numbers are written so that
    they read back as the same float64.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\r\n")
    writer.writeheader()
    events: dict[UUID, dict[str, object]] = {}  # a reservation comes before its outcome
    for entry in entries:
        if entry.event is not None:
            events[entry.id] = entry.event.model_dump()
        reservation = entry.reserve_id or entry.id  # a reservation names itself
        line: dict[str, object] = {
            "at": entry.at.isoformat(), "entry": entry.id, "kind": entry.kind,
            "reservation": reservation, "client": entry.client,
            "site": _text(account.site), "population": _text(account.population),
            "run": entry.run_id, "round": entry.round, "attempt": entry.attempt,
        }  # fmt: skip
        writer.writerow(line | events[reservation])
    return text.getvalue()


def _text(value: str) -> str:
    """Free text as spreadsheets may see it: what they would take for a formula gets an apostrophe
    (OWASP, CSV injection).
    """
    return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
