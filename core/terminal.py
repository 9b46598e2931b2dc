"""What command lines share: text that steers no terminal, and rows into a file or down a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def printable(text: str) -> str:
    """What comes from the other side, or from anybody's file, steers no terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


@contextmanager
def target(out: Path) -> Iterator[BinaryIO]:
    """The file, there when it is complete or not at all; standard output for ``-``. Raises
    ``FileNotWritten``.
    """
    from core.files import whole_file

    if str(out) == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with whole_file(out) as file:
        yield file
