"""Input that the benchmark cannot work with."""

from __future__ import annotations


class Refused(Exception):
    """``field`` names the option or column, ``problem`` says what is wrong, ``mend`` what to do."""

    def __init__(self, field: str, problem: str, mend: str) -> None:
        super().__init__(field, problem, mend)  # all three: the error crosses processes
        self.field, self.problem, self.mend = field, problem, mend

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}; {self.mend}"
