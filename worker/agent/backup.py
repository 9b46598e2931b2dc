"""Backups of a site's ledger and secret, and putting one back.

A backup is a folder (mode 0700) of three files (0600): the ledger, copied by SQLite's online backup
while agents work, the secret that belongs to it, and a manifest with the digest of both. It is
written beside its final name, synced, read back like a stranger's, and only then renamed. Digests
find damage, not somebody who can write all three files: against that one, the comparison with the
coordinator stands (``worker.agent.reconcile``).

A backup protects records no better than the folder that it was made of: it holds the secret.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core.backups import new_backup
from core.errors import NoPlaceForBackup
from core.files import flush, put_private
from worker.agent import schema, sum_states
from worker.agent.site import (
    LEDGER_FILE,
    ORPHAN,
    SECRET_FILE,
    Site,
    opening,
    read_secret,
    remove_orphans,
    write_secret,
)
from worker.agent.spend import SiteLedger
from worker.errors import BackupError

MANIFEST_FILE = "manifest.json"
_SIDE_FILES = ("-wal", "-shm", "-journal")


class Manifest(BaseModel):
    """What a backup says about itself. ``files``: name -> SHA-256."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    site_id: str = Field(min_length=1)
    made_at: str = Field(min_length=1)
    entries: int = Field(ge=0)
    files: dict[str, str]


def make(state_dir: Path, destination: Path) -> Manifest:
    """Write a backup of ``state_dir`` to the new folder ``destination``. Agents may be at work.

    Raises ``BackupError`` if the destination exists or the copy does not read back.
    """
    if destination.resolve().is_relative_to(state_dir.resolve()):
        raise BackupError(
            f"{destination} lies in the state folder itself.",
            field="DEST",
            mend="Choose a place on another disk.",
        )
    with _failing("written", destination), new_backup(destination) as part:
        made = _write(state_dir, part)
        read(part)
    return made


def read(source: Path) -> Manifest:
    """Check everything that can be checked without the state folder. Raises ``BackupError``."""
    with _failing("read", source):
        try:
            manifest = Manifest.model_validate_json((source / MANIFEST_FILE).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            raise _unusable(source, f"it has no {MANIFEST_FILE}") from None
        except ValidationError:
            raise _unusable(source, f"its {MANIFEST_FILE} is damaged") from None
        for name in (LEDGER_FILE, SECRET_FILE):
            path = source / name
            if not path.is_file():
                raise _unusable(source, f"it has no {name}")
            if _digest(path) != manifest.files.get(name):
                raise _unusable(source, f"its {name} is not the one that was written")
        entries, site_id = _look_inside(source)
        if _secret(source)[0] != site_id:
            raise _unusable(source, "its ledger and its secret belong to different sites")
        if (entries, site_id) != (manifest.entries, manifest.site_id):
            raise _unusable(source, f"its ledger is not the one that its {MANIFEST_FILE} describes")
    return manifest


def restore(source: Path, state_dir: Path) -> Manifest:
    """Put a backup in place where the ledger is gone; nothing can be spent before it was completed.

    Raises ``BackupError`` if a ledger is there, or the secret there is another one.
    """
    manifest = read(source)
    with _failing("restored", source):
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        with opening(state_dir):
            _refuse_to_replace(source, state_dir)
            _set_aside(state_dir)
            ledger, part = state_dir / LEDGER_FILE, state_dir / f".{LEDGER_FILE}.{os.getpid()}"
            try:
                _copy(source / LEDGER_FILE, part)
                with closing(SiteLedger(part)) as copy:
                    copy.mark_restored(manifest.made_at)
                flush(part)
                if not (state_dir / SECRET_FILE).exists():
                    write_secret(state_dir / SECRET_FILE, *_secret(source))
                os.link(part, ledger)  # unlike a rename, it replaces nothing
            finally:
                for suffix in ("", *_SIDE_FILES):
                    part.with_name(part.name + suffix).unlink(missing_ok=True)
            flush(state_dir)
            remove_orphans(state_dir)
            flush(state_dir)
    return manifest


# --- inside ---


def _write(state_dir: Path, folder: Path) -> Manifest:
    ledger, secret = folder / LEDGER_FILE, folder / SECRET_FILE
    os.close(os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    with Site.open(state_dir) as site, closing(sqlite3.connect(ledger)) as copy:
        site.ledger.copy_to(copy)
        copy.execute("PRAGMA secure_delete = ON")
        sum_states.wipe_all(copy)  # what unmasks a vector is of no use to who restores
        copy.commit()
        copy.execute("PRAGMA journal_mode = DELETE")  # one file, without a log beside it
    _copy(state_dir / SECRET_FILE, secret)
    entries, site_id = _look_inside(folder)
    manifest = Manifest(
        site_id=site_id,
        made_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        entries=entries,
        files={path.name: _digest(path) for path in (ledger, secret)},
    )
    described = json.dumps(manifest.model_dump(), indent=2).encode()
    put_private(folder / MANIFEST_FILE, described)
    flush(ledger)
    return manifest


def _look_inside(folder: Path) -> tuple[int, str]:
    """(number of entries, site id) of a backup's ledger, read without changing a byte of it."""
    path = folder / LEDGER_FILE
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?immutable=1", uri=True)) as db:
            (sound,) = db.execute("PRAGMA integrity_check(1)").fetchone()
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if sound != "ok":
                raise _unusable(folder, f"its ledger is damaged ({sound})")
            if not 0 < version <= schema.VERSION:
                raise BackupError(
                    f"{folder} holds a ledger of schema version {version}, this software knows "
                    f"{schema.VERSION}.",
                    mend="Use the software that wrote it, or a newer one.",
                )
            (entries,) = db.execute("SELECT count(*) FROM entry").fetchone()
            (site_id,) = db.execute("SELECT id FROM site").fetchone()
    except (sqlite3.DatabaseError, TypeError) as error:
        raise _unusable(folder, f"its ledger is damaged ({error})") from error
    return int(entries), str(site_id)


def _secret(folder: Path) -> tuple[str, bytes]:
    """(site id, secret) of a backup; the medium that it came from may not keep file modes."""
    found = read_secret(folder / SECRET_FILE, private=False)
    if found is None:
        raise _unusable(folder, f"it has no {SECRET_FILE}")
    return found


def _refuse_to_replace(source: Path, state_dir: Path) -> None:
    if (state_dir / LEDGER_FILE).exists():
        raise BackupError(
            f"there is a ledger in {state_dir}: a backup may be older, and would forget what was "
            "spent.",
            field="site.state_dir",
            mend="Keep the ledger that is there. If it cannot be opened, move it away first, "
            "together with the files beside it whose names begin like its own.",
        )
    secret = state_dir / SECRET_FILE
    if secret.exists() and read_secret(secret) != _secret(source):
        raise BackupError(
            f"{secret} is not the secret that belongs to {source}.",
            field="SRC",
            mend="Restore a backup of this site, or restore into an empty state folder.",
        )


def _set_aside(state_dir: Path) -> None:
    """A log of the ledger that is gone would be replayed into the restored one. It is removed when
    that one is in place, and not before: a restoration that stops half-way takes nothing away.
    """
    for suffix in _SIDE_FILES:
        path = state_dir / f"{LEDGER_FILE}{suffix}"
        if path.exists():
            stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
            path.rename(path.with_name(f"{path.name}{ORPHAN}{stamp}"))


def _copy(source: Path, target: Path) -> None:
    put_private(target, source.read_bytes())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _unusable(source: Path, why: str) -> BackupError:
    return BackupError(
        f"{source} is no usable backup: {why}.", field="SRC", mend="Use another backup."
    )


@contextmanager
def _failing(what: str, where: Path) -> Iterator[None]:
    """Trouble with files as an error that a person can mend."""
    try:
        yield
    except NoPlaceForBackup as error:
        raise BackupError(error.message, field=error.field, mend=error.mend) from None
    except (OSError, sqlite3.Error) as error:
        raise BackupError(
            f"the backup {where} cannot be {what}: {error}.",
            mend="Check the path, its permissions and the space on its disk.",
        ) from error
