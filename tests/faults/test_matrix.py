"""The fault matrix with real processes: every process dies at every moment of the protocol.

After each cell: the run has ended by itself, nothing accepted is lost, nothing is applied twice
(each published model is made again from its updates), the coordinator's commits are the sites'
executed events and the rest is listed as lost, and every process works on.
"""

from __future__ import annotations

import os

import pytest

from tests.faults import document, secure
from tests.faults.cells import CELLS, Cell
from tests.faults.conditions import CONDITIONS, Condition
from tests.faults.strikes import run_cell
from tests.faults.world import World

pytestmark = [pytest.mark.faults, pytest.mark.e2e, pytest.mark.timeout(180)]

# All of them take many minutes; the tests play the most telling ones (``make fault-matrix``: all).
EVERY = os.environ.get("FAULT_CELLS") == "all"
PLAIN_CELLS = [cell for cell in CELLS if cell.always or EVERY]
SECURE_CELLS = [cell for cell in secure.CELLS if cell.always or EVERY]


@pytest.mark.parametrize("cell", PLAIN_CELLS, ids=lambda cell: cell.id)
def test_a_process_dies(cell: Cell, world: World) -> None:
    outcome = run_cell(world, cell)
    assert document.record(cell, outcome) == document.expected(cell), outcome.why
    world.processes.check()


@pytest.mark.parametrize("cell", SECURE_CELLS, ids=lambda cell: cell.id)
def test_a_process_dies_in_a_secure_sum(cell: secure.SecureCell, world: World) -> None:
    outcome = secure.run_cell(world, cell)
    assert document.record(cell, outcome) == document.expected(cell), outcome.why
    world.processes.check()


@pytest.mark.parametrize("condition", secure.CONDITIONS, ids=lambda condition: condition.id)
def test_a_site_falls_silent_in_a_secure_sum(condition: Condition, world: World) -> None:
    outcome = condition.run(world)
    assert document.record(condition, outcome) == document.expected(condition), outcome.why
    world.processes.check()


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda condition: condition.id)
def test_something_else_goes_wrong(condition: Condition, world: World) -> None:
    # Full for real: nothing that only pretends to be a full disk fails as one does, at each write.
    if condition.needs_disk and not world.store.mounted:
        pytest.skip("a disk that can be filled needs the right to mount one")
    outcome = condition.run(world)
    assert document.record(condition, outcome) == document.expected(condition), outcome.why
    world.processes.check()
