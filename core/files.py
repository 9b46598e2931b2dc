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


def put_private(path: Path, body: bytes) -> None:
    """A new file, mode 0600 from its first byte, on the disk when this returns. Raises
    ``FileExistsError``, and ``OSError`` as the file system does.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())


def keep_private(path: Path, body: bytes, *, replace: bool) -> None:
    """``path`` holds ``body``, for this user's eyes only and whole, whatever is killed when.

    Raises ``FileExistsError`` if it is there and not to be replaced, and ``OSError``.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.unlink(missing_ok=True)  # of a process that was killed, with a number that came again
    try:
        put_private(part, body)
        if replace:
            part.replace(path)
        else:
            os.link(part, path)  # unlike a rename, it replaces nothing
    finally:
        part.unlink(missing_ok=True)
    flush(path.parent)


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
