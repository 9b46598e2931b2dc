"""A backup's folder: there when it is complete or not at all, never in the place of another."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.errors import NoPlaceForBackup
from core.files import flush


@contextmanager
def new_backup(destination: Path) -> Iterator[Path]:
    """A folder (mode 0700) beside ``destination`` to be filled; it gets that name afterwards.

    Raises ``NoPlaceForBackup``. Whatever else is raised, nothing is left.
    """
    if destination.exists() or destination.is_symlink():
        raise NoPlaceForBackup(
            f"{destination} exists: a backup never replaces another one.",
            field="DEST",
            mend="Choose a new name, for example with the date in it.",
        )
    part = destination.with_name(f".{destination.name}.{os.getpid()}")
    try:
        part.mkdir(mode=0o700)
    except OSError as error:
        raise NoPlaceForBackup(
            f"the backup {destination} cannot be written: {error.strerror or error}.",
            field="DEST",
            mend="Give a place that this user may write to, on a disk with room.",
        ) from error
    try:
        yield part
        flush(part)
        part.rename(destination)
        flush(destination.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
