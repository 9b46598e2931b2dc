"""The table on the console, and what it means."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from benchmarks.audit.bound import CONFIDENCE
from benchmarks.audit.cases import Audited

WIDTH = 124  # columns; narrower consoles would break the rows
_BROKEN = {"no": "as booked", "all": "too small", "training": "too small in training"}


def table(found: Sequence[Audited]) -> Table:
    """A row a run."""
    made = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    made.add_column("run", no_wrap=True)
    made.add_column("noise", no_wrap=True)
    for name in ("canaries", "right", "lower", "ledger", "perfect", "most"):
        made.add_column(name, justify="right", no_wrap=True)
    made.add_column("so", no_wrap=True)
    for place, one in enumerate(found):
        broken = one.case.broken != "no"
        if place and broken and found[place - 1].case.broken == "no":
            made.add_section()
        made.add_row(
            one.case.name,
            _BROKEN[one.case.broken],
            f"{one.proof.canaries:,}",
            f"{one.proof.right:,}/{one.proof.guesses:,}",
            f"{one.proof.epsilon:.2f}",
            f"{one.upper:.2f}",
            f"{one.ideal:.2f}",
            f"{one.most:.2f}",
            verdict(one),
        )
    return made


def verdict(one: Audited) -> str:
    """What a row says, in words."""
    if one.proof.epsilon > one.upper:
        return "ledger refuted"
    return "not refuted" if one.could_refute else "not refuted (could not be)"


def notes(found: Sequence[Audited]) -> list[str]:
    """What the columns are and how far they carry."""
    lines = [
        f"lower: of epsilon, {CONFIDENCE:.0%} confidence; ledger: upper, from events executed.",
        "perfect: what a perfect attacker on perfect canaries proves of the noise that was booked.",
        "most: what so many canaries prove if every guess is right, whatever the mechanism.",
        "A lower bound below the ledger's shows no gross error; it proves no privacy.",
    ]
    if any(not one.could_refute for one in found):
        lines.append("(could not be): most is below the ledger's bound; compare lower and perfect.")
    return lines
