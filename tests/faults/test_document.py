"""docs/fault-matrix.md has the cells that are tested, with the outcomes that are asserted."""

from __future__ import annotations

from benchmarks.demo.stack import ROOT
from tests.faults import document
from tests.faults.cells import CELLS, MOMENTS, PROCESSES
from tests.faults.repeat import ALWAYS, SHARED, share


def test_every_cell_has_an_id_of_its_own() -> None:
    ids = [cell.id for cell in document.EVERYTHING]
    assert len(set(ids)) == len(ids)


def test_every_process_and_every_moment_is_there() -> None:
    assert {cell.process for cell in CELLS} == set(PROCESSES)
    assert {cell.moment for cell in CELLS} == set(MOMENTS)


def test_the_document_is_of_these_cells() -> None:
    """Run ``make fault-matrix`` after a change of the cells."""
    known = {cell.id: document.expected(cell) for cell in document.EVERYTHING}
    assert document.DOCUMENT.read_text() == document.render(known)


def test_repetitions_play_every_shared_test_once_a_turn() -> None:
    ids = [str(number) for number in range(23)]
    played = [each for number in range(5) for each in share(ids, number, 5)]
    assert sorted(played) == sorted(ids)
    assert share(ids, 5, 5) == share(ids, 0, 5)


def test_what_is_repeated_is_there() -> None:
    paths = [*ALWAYS, *(path for _, group in SHARED for path in group)]
    assert [path for path in paths if not (ROOT / path).exists()] == []
