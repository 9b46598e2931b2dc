"""Are a file's rows those that its receipt names? They are made again by an exported generator.

Where program, numpy and instruction set are those of the receipt, the bits are the same, and the
content hash says so already. This is the check for other machines, and for files of float16, which
hold less than was hashed (``core.receipts.comparing`` says what is taken for the same).
"""

from __future__ import annotations

from core.receipts.checking import Check
from core.receipts.comparing import NEEDED, TOLERANCE, compare
from core.receipts.reading import RowsFile
from core.receipts.receipt import Receipt
from core.synthesis.card import Card
from core.synthesis.sampler import Generator


def made_again(rows: RowsFile, receipt: Receipt, generator: Generator, card: Card) -> Check:
    """Whether the exported model makes these rows for the receipt's request, up to rounding."""
    if card.receipt.model != receipt.model:
        return False, "the export is of another model than the receipt"
    tolerance = TOLERANCE.get(rows.dtype)
    if tolerance is None:
        return False, f"rows are not of type {rows.dtype!r}"
    made = generator.rows(receipt.request, receipt.asked.seed)
    found = compare(rows.blocks(), made, tolerance)
    share = f"{found.same:,} of {found.rows:,} rows are the same within {tolerance:g}"
    if found.holds:
        return True, share
    if not found.labels:
        return False, f"labels or the number of rows differ; {share}"
    return False, f"these are other rows: {share}, needed are {NEEDED:.0%}"
