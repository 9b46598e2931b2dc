"""Input that a benchmark cannot work with, and how its command ends then."""

from __future__ import annotations

import sys
from collections.abc import Callable


class Refused(Exception):
    """``field`` names the option or column, ``problem`` says what is wrong, ``mend`` what to do."""

    def __init__(self, field: str, problem: str, mend: str) -> None:
        super().__init__(field, problem, mend)  # all three: the error crosses processes
        self.field, self.problem, self.mend = field, problem, mend

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}; {self.mend}"


def exit_status(program: str, run: Callable[[], None]) -> int:
    """Of a benchmark's command: 0, 2 for input that cannot be used, 130 if stopped."""
    try:
        run()
    except Refused as refused:
        sys.stderr.write(f"{program}: {refused}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped; finished cells are kept, the same command goes on from there\n")
        return 130
    return 0
