"""Writes docs/fault-matrix.md from what the cells have recorded (``make fault-matrix``).

Every cell of a test run with ``FAULT_OUTCOMES`` leaves one file with its outcome in words in
that folder. The document is written only if there is one of each cell.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tests.faults import secure
from tests.faults.cells import CELLS, MOMENTS, PROCESSES, Cell
from tests.faults.conditions import CONDITIONS, Condition
from tests.faults.secure import SecureCell
from tests.faults.strikes import Outcome

VARIABLE = "FAULT_OUTCOMES"
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "fault-matrix.md"
NONE = "·"
EVERYTHING: tuple[Cell | SecureCell | Condition, ...] = (
    *CELLS,
    *CONDITIONS,
    *secure.CELLS,
    *secure.CONDITIONS,
)


def words(state: str, lost: int, *, at_most: bool = False) -> str:
    """``resumed, 1 lost``: how the run ended, and reservations spent for nothing."""
    ended = {"completed": "resumed", "failed": "failed with its reason"}[state]
    if not lost:
        return ended
    return f"{ended}, {'at most ' if at_most else ''}{lost} lost"


def expected(cell: Cell | SecureCell | Condition) -> str:
    state = cell.state if isinstance(cell, Condition) else "completed"
    return words(state, cell.lost, at_most=cell.at_most)


def record(cell: Cell | SecureCell | Condition, outcome: Outcome) -> str:
    """The outcome in words; kept for the document if this run is to write one."""
    if cell.at_most and outcome.lost <= cell.lost:
        said = words(outcome.state, cell.lost, at_most=True)
    else:
        said = words(outcome.state, outcome.lost)
    if folder := os.environ.get(VARIABLE):
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / f"{cell.id}.json").write_text(json.dumps(said))
    return said


_HEAD = f"""# Fault matrix

Written by `make fault-matrix` from the outcomes of `tests/faults`; do not edit. Every cell is one
run of three clients (two behind a Celery worker, one with an agent) on real processes, in which one
thing goes wrong at one point of the protocol. After each, the same checks hold:

* the run has ended by itself, and every process works on;
* nothing that was accepted is missing from a sum, and nothing is in it twice: every published
  model is made again from the stored updates and has the same bytes;
* the coordinator's commits are events that the sites have executed; what it has booked beyond
  them, and what a site has executed in vain, is listed as lost. Every reservation has an outcome.

*resumed*: the run was completed with an update of every client in every round. *n lost*: so many
reservations were spent for nothing on the way, and their work was done again under new ones.
{NONE}: the process has no part in this moment; it would be killed idle, as in *waiting*.

## A process dies
"""

_SECURE = """## In secure sums

The same clients and checks, with `aggregation = "secure"`; a published model is made again from the
masked vectors and the transcript that opens their sum. Besides:

* whatever was sent more than once (keys, shares, signatures, openings, masked vectors) was the
  same, byte for byte, each time;
* no site has masked two vectors in one session; an attempt that dies before it has masked may be
  followed by another one.

Where one site may be missing, *resumed* speaks of the others; the missing one is charged nothing.
"""

_FOOT = """
Where only a lease tells (a Celery worker that dies between its claim and its reservation), the plan
of the cell has a lease of 5 s; elsewhere one that outlives a restart, as the default of 600 s does.
"""


def render(outcomes: Mapping[str, str]) -> str:
    """The document. Raises ``KeyError`` if a cell has no outcome."""
    known = {(cell.process, cell.moment): cell.id for cell in CELLS}
    died = [
        [text] + [outcomes[known[who, when]] if (who, when) in known else NONE for when in MOMENTS]
        for who, text in PROCESSES.items()
    ]
    sums = {(cell.process, cell.moment): outcomes[cell.id] for cell in secure.CELLS}
    of_sums = [
        [PROCESSES[who], *(sums.get((who, when), NONE) for when in secure.MOMENTS)]
        for who in secure.PROCESSES
    ]
    silent = [[each.text, each.moment, outcomes[each.id]] for each in secure.CONDITIONS]
    other = [[each.text, each.moment, outcomes[each.id]] for each in CONDITIONS]
    return (
        f"{_HEAD}\n{_table(['', *MOMENTS], died)}\n\n{_moments(MOMENTS)}\n\n"
        f"## Something else goes wrong\n\n{_table(['', 'moment', 'outcome'], other)}\n\n"
        f"{_SECURE}\n{_table(['', *secure.MOMENTS], of_sums)}\n\n{_moments(secure.MOMENTS)}\n\n"
        f"{_table(['', 'moment', 'outcome'], silent)}\n{_FOOT}"
    )


def _moments(texts: Mapping[str, str]) -> str:
    return "The moments:\n\n" + "\n".join(f"* *{name}*: {text}" for name, text in texts.items())


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    lines.insert(1, "|---" * len(head) + "|")
    return "\n".join(lines)


def main() -> int:
    folder = Path(os.environ[VARIABLE])
    outcomes = {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json")}
    try:
        text = render(outcomes)
    except KeyError as missing:
        sys.stderr.write(f"no outcome of {missing} in {folder}: run all cells\n")
        return 1
    DOCUMENT.write_text(text)
    sys.stdout.write(f"{DOCUMENT}: {len(EVERYTHING)} cells\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
