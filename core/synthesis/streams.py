"""Counter-based draws: what a row is made of depends on its place and on nothing before it.

Philox has a counter of four words. The last three name the place of a draw (chunk, block, purpose
and code), the first one counts on from 0; so any block can be made alone, in any order, by any
process, and no two places ever share a number.
"""

from __future__ import annotations

import numpy as np

BLOCK_ROWS = 4_096  # rows that are made together
CHUNK_ROWS = 512  # the one shape of all products, so that a row's bits do not depend on n

# What draws are for.
LABELS, DOMAINS, ROWS, GUIDED = range(1, 5)
_PURPOSES = 16  # more than there are, so that purpose and code share a word


def stream(
    seed: int, purpose: int, block: int, *, chunk: int = 0, code: int = 0
) -> np.random.Generator:
    """The draws of one place: independent of those of all others. ``code``: which one of a
    request's codes the rows are made under.
    """
    counter = [0, chunk, block, purpose + _PURPOSES * code]
    return np.random.Generator(np.random.Philox(key=seed, counter=counter))
