"""Files that are there when they are complete, or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from core.errors import FileNotWritten


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that is there when it is complete, or not at all. Raises ``FileNotWritten``."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise _not_written(path, error) from error
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.chmod(0o666 & ~_umask())
        part.replace(path)
    except OSError as error:
        raise _not_written(path, error) from error
    finally:
        part.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """A file's bytes, or a folder's names, are on the disk when this returns."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _not_written(path: Path, error: OSError) -> FileNotWritten:
    return FileNotWritten(
        f"cannot write {path}: {error.strerror or error}.",
        field="out",
        mend="Give a path in a folder that takes files, on a disk with room.",
    )


def _umask() -> int:
    """Of this process; it can only be read by setting it."""
    present = os.umask(0)
    os.umask(present)
    return present
