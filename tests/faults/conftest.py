"""One federation for many cells; a cell that fails gets the next one a new federation."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.world import World, federation_in


class Lender:
    """Lends the federation to one test at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._exits = ExitStack()
        self._world: World | None = None

    def lend(self) -> World:
        if self._world is None:
            folder = Path(tempfile.mkdtemp(dir=self._folder))
            self._world = self._exits.enter_context(federation_in(folder))
        return self._world

    def break_up(self) -> None:
        self._world = None
        self._exits.close()


@pytest.fixture(scope="module")
def lender(shared_folder: Path) -> Iterator[Lender]:
    made = Lender(shared_folder)
    yield made
    made.break_up()


@pytest.fixture
def world(
    lender: Lender, no_fhv_environment: None, request: pytest.FixtureRequest
) -> Iterator[World]:
    """A federation at rest, with all its processes up."""
    world = lender.lend()
    yield world
    world.proxy.clear()
    if getattr(request.node, "failed", True):
        lender.break_up()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()
    if report.when == "call":
        item.failed = report.failed
