"""Are these the rows of this model? They are made again and compared, number by number.

Where program, numpy and instruction set are those of the receipt, the bits are the same, and the
content hash says so already. On another machine products are summed in another order: numbers
then differ in their last digits, and a file of float16 holds less than was hashed. This is the
check for both.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest

import numpy as np

from core.receipts.checking import Check
from core.receipts.reading import RowsFile
from core.receipts.receipt import Receipt
from core.synthesis.card import Card
from core.synthesis.request import SynthesisRequest
from core.synthesis.rows import Block
from core.synthesis.sampler import Generator

# Rows have length sqrt(d), so their numbers are about 1. float32 rounds them by 6e-8, float16 by
# 5e-4, each relative; sums in another order cost roundings of float64, and one of float32.
TOLERANCE = {"float32": 1e-5, "float64": 1e-5, "float16": 1e-3}


def compare(rows: RowsFile, receipt: Receipt, generator: Generator, card: Card) -> Check:
    """Whether a file's rows are those that the exported model makes for the receipt's request:
    the same labels, and every number within ``TOLERANCE`` * (1 + its size).
    """
    if card.receipt.model != receipt.model:
        return False, "the export is of another model than the receipt"
    asked = receipt.asked.model_dump(exclude={"seed"})
    request = SynthesisRequest.model_validate(asked | {"run": receipt.model.run_id})
    tolerance, largest, n = TOLERANCE.get(rows.dtype), 0.0, 0
    if tolerance is None:
        return False, f"rows are not of type {rows.dtype!r}"
    for found, made in _pairs(rows, generator, request, receipt.asked.seed):
        if found is None or made is None or found.x.shape != made.x.shape:
            return False, f"the file has not {receipt.n:,} rows of {generator.spec.space.dim}"
        if not np.array_equal(found.y, made.y):
            return False, f"labels differ among rows {n:,} to {n + len(made.y):,}"
        apart = np.abs(found.x - made.x) / (1.0 + np.abs(made.x))
        largest, n = max(largest, float(apart.max())), n + len(made.y)
        if not largest <= tolerance:
            return False, f"these are other rows: numbers differ by up to {largest:.2g}"
    same = "bit by bit" if largest == 0.0 else f"to {largest:.1e}, within {tolerance:g}"
    return True, f"{n:,} rows, made again by the exported model: the same {same}"


def _pairs(
    rows: RowsFile, generator: Generator, request: SynthesisRequest, seed: int
) -> Iterator[tuple[Block | None, Block | None]]:
    return zip_longest(rows.blocks(), generator.rows(request, seed))
