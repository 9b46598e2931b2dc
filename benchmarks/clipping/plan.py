"""What is measured: rows of the table, which methods on which row, and the limits of a cell.

Fixed before anything was measured; ``benchmarks/README.md`` states the same rule. Pure Python: the
parent process never imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal

from core.models.architecture import Architecture, Form

Opponent = Literal["hooks", "ghost", "vmap"]
Method = Literal["non-private", "ours", "hooks", "ghost", "vmap"]
OPPONENTS: tuple[Opponent, ...] = ("hooks", "ghost", "vmap")
# These hold a gradient a record, [B, P], at the least.
WRITTEN_OUT: tuple[Opponent, ...] = ("hooks", "vmap")

THREADS = 2
CLASSES, CODE_DIM, LATENT_DIM, RANK = 10, 16, 16, 4
CODE_DROPOUT = 0.25
CLIP_NORM = 1.0

FORMS: tuple[Form, ...] = ("film", "lowrank", "full")
TRUNKS = (8, 64)
INPUTS = (384, 768, 1280)
HIDDEN = (64, 256)
BATCHES = (64, 256, 1024)


@dataclass(frozen=True)
class Row:
    """``trunk`` t, ``inputs`` d, ``hidden`` units of encoder and decoder, ``batch`` B records."""

    form: Form
    trunk: int
    inputs: int
    hidden: int
    batch: int

    @property
    def network(self) -> Architecture:
        return Architecture(
            form=self.form, inputs=self.inputs, classes=CLASSES, code_dim=CODE_DIM,
            trunk=(self.trunk,), latent_dim=LATENT_DIM, decoder=(self.hidden,),
            encoder=(self.hidden,), rank=RANK,
        )  # fmt: skip

    @property
    def name(self) -> str:
        return f"{self.form} t={self.trunk} d={self.inputs} h={self.hidden} B={self.batch}"


@dataclass(frozen=True)
class Limits:
    """Of one cell: ``seconds`` that its process lives, ``data_bytes`` of memory it may write to.

    ``budget`` seconds of repeats are wanted, but ``repeats`` at least.
    """

    seconds: float = 60.0
    data_bytes: int = 12 << 30
    budget: float = 1.0
    repeats: int = 5


LIMITS = Limits()
# Every opponent is measured here, and the targets against opponents are about this row.
KEY = Row("full", 8, 768, 256, 256)


def rows(only_targets: bool = False) -> list[Row]:
    """All combinations; with ``only_targets`` those that a target is about."""
    combinations = product(FORMS, TRUNKS, INPUTS, HIDDEN, BATCHES)
    return [row for row in (Row(*c) for c in combinations) if _has_target(row) or not only_targets]


def _has_target(row: Row) -> bool:
    return row.batch >= 256


def opponents(row: Row, only_targets: bool = False) -> tuple[Opponent, ...]:
    """All or none of them: they take seconds a cell, and 108 rows of that would take hours."""
    if only_targets:
        chosen = row == KEY
    else:
        chosen = row.hidden == 256 and row.trunk == 8 and row.batch >= 256
    return OPPONENTS if chosen else ()


def written_out_bytes(row: Row) -> int:
    """A float32 gradient a record: the least that a method of ``WRITTEN_OUT`` allocates."""
    return 4 * row.batch * row.network.size
