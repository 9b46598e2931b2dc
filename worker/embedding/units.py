"""Whose image is it? A table from the site's own system: a record's name, a patient's id."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from worker.embedding.sources import Record
from worker.errors import EmbeddingError

FILE_COLUMN = "file"
_SHOWN = 5


def read(path: Path, column: str, records: Sequence[Record]) -> list[str]:
    """The unit of each record, from a CSV with the columns ``file`` and ``column``.

    ``file`` is a record's path below the source (or ``train/0`` for a MedMNIST file); it is
    compared and never opened. Rows of other files are no error: a table may be of a whole hospital.
    """
    known = _table(path, column)
    missing = [record.name for record in records if record.name not in known]
    if missing:
        listed = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
        raise EmbeddingError(
            f"{path} names no {column} for {len(missing)} of {len(records)} records: {listed}.",
            field="units",
            mend=f"Write a row for each file, with its path below the source as {FILE_COLUMN!r}.",
        )
    return [known[record.name] for record in records]


def _table(path: Path, column: str) -> dict[str, str]:
    known: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            absent = {FILE_COLUMN, column} - set(rows.fieldnames or ())
            if absent:
                raise _unusable(
                    path,
                    f"it has no column {', '.join(sorted(absent))}; "
                    f"there are {', '.join(rows.fieldnames or ())}",
                )
            for row in rows:
                name = (row[FILE_COLUMN] or "").replace("\\", "/").removeprefix("./")
                unit = (row[column] or "").strip()
                if not name or not unit:
                    raise _unusable(path, f"line {rows.line_num} leaves a column empty")
                if known.setdefault(name, unit) != unit:
                    raise _unusable(path, f"line {rows.line_num} names {name} a second time")
    except (OSError, UnicodeError, csv.Error) as error:
        raise _unusable(path, str(error)) from None
    return known


def _unusable(path: Path, why: str) -> EmbeddingError:
    return EmbeddingError(
        f"{path} is no table of units: {why}.",
        field="units",
        mend="Write a CSV (UTF-8, commas) with the columns 'file' and, by --unit-column, the unit.",
    )
