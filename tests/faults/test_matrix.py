"""The fault matrix with real processes: every process dies at every moment of the protocol.

After each cell: the run has ended by itself, nothing accepted is lost, nothing is applied twice
(each published model is made again from its updates), the coordinator's commits are the sites'
executed events and the rest is listed as lost, and every process works on.
"""

from __future__ import annotations

import pytest

from tests.faults.cells import CELLS, Cell
from tests.faults.strikes import run_cell
from tests.faults.world import World

pytestmark = [pytest.mark.faults, pytest.mark.e2e, pytest.mark.timeout(180)]


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.id)
def test_cell(cell: Cell, world: World) -> None:
    outcome = run_cell(world, cell)
    assert outcome.state == "completed", outcome.why
    if cell.at_most:
        assert outcome.lost <= cell.lost
    else:
        assert outcome.lost == cell.lost
