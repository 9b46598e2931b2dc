"""Making a backup while the coordinator works.

Dump and list of objects are of one snapshot. Objects are only ever added, so that copying them
afterwards finds all of them, but for those that were erased meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg

from api.backup import tools
from api.backup.manifest import (
    DUMP_FILE,
    MANIFEST_FILE,
    OBJECTS_FOLDER,
    Manifest,
    fingerprint,
    sha256_of_file,
)
from api.backup.tools import BackupFailed
from core.backups import new_backup
from core.errors import ObjectMissing
from core.files import flush
from core.storage import ObjectStore

# Everything that a row names and that is not to be erased.
_WANTED = (
    "SELECT o.digest FROM objects o WHERE NOT EXISTS "
    "(SELECT FROM erasures e WHERE e.digest = o.digest) "
    "UNION SELECT digest FROM synthesis_parts ORDER BY 1"
)
_COUNTS = (
    "SELECT (SELECT count(*) FROM clients), (SELECT count(*) FROM runs), "
    "(SELECT count(*) FROM ledger_entries), "
    "(SELECT version_num FROM alembic_version), current_setting('server_version_num')::int / 10000"
)


def make(
    destination: Path, *, database_url: str, store_url: str, pepper: bytes, objects: bool = True
) -> Manifest:
    """Write a backup into the new folder ``destination``.

    Raises ``NoPlaceForBackup``, and ``BackupFailed`` if a program of Postgres is missing or an
    object that a row names cannot be read. The folder then does not exist.
    """
    with new_backup(destination) as part:
        return _written(part, database_url, store_url, pepper, objects=objects)


def _written(
    part: Path, database_url: str, store_url: str, pepper: bytes, *, objects: bool
) -> Manifest:
    made_at = datetime.now(UTC)
    with _snapshot(database_url) as (connection, snapshot):
        clients, runs, entries, migration, major = _row(connection, _COUNTS)
        wanted = _wanted(connection)
        dump = part / DUMP_FILE
        dump.touch(mode=0o600)
        tools.call(
            tools.find("pg_dump", major),
            database_url,
            [
                "--format=custom",
                "--no-owner",
                "--no-privileges",
                "--lock-wait-timeout=30000",
                f"--snapshot={snapshot}",
                f"--file={dump}",
            ],
        )
    copied, size, gone = 0, 0, 0
    if objects:
        copied, size, gone = _copy(part, wanted, database_url, store_url)
    manifest = Manifest(
        made_at=made_at,
        version=version("fedhypevae"),
        migration=migration,
        server_major=major,
        dump_sha256=sha256_of_file(dump),
        dump_bytes=dump.stat().st_size,
        pepper=fingerprint(pepper),
        objects=copied if objects else None,
        object_bytes=size,
        gone=gone,
        clients=clients,
        runs=runs,
        ledger_entries=entries,
    )
    path = part / MANIFEST_FILE
    path.touch(mode=0o600)
    path.write_text(manifest.model_dump_json(indent=2) + "\n")
    flush(dump)
    flush(path)
    return manifest


@contextmanager
def _snapshot(url: str) -> Iterator[tuple[psycopg.Connection[Any], str]]:
    """A moment of the database that other connections can look at, too."""
    try:
        with psycopg.connect(tools.plain_url(url), autocommit=True) as connection:
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            yield connection, str(_row(connection, "SELECT pg_export_snapshot()")[0])
            connection.execute("COMMIT")
    except psycopg.Error as error:
        said = str(error).strip().partition("\n")[0]
        raise BackupFailed(
            f"the database cannot be read: {said}.",
            mend="Check FHV_DATABASE_URL; has 'fedhypevae db upgrade' been run?",
        ) from None


def _row(connection: psycopg.Connection[Any], statement: str) -> tuple[Any, ...]:
    found = connection.execute(statement.encode()).fetchone()
    return tuple(found) if found is not None else ()


def _wanted(connection: psycopg.Connection[Any]) -> list[str]:
    return [row[0] for row in connection.execute(_WANTED.encode())]


def _copy(part: Path, wanted: list[str], database_url: str, store_url: str) -> tuple[int, int, int]:
    """Copy objects; how many, their bytes, and how many were erased meanwhile."""
    source = ObjectStore(store_url)
    target = ObjectStore(f"file://{(part / OBJECTS_FOLDER).resolve()}")
    size = 0
    missing: list[str] = []
    for digest in wanted:
        try:
            body = source.get(digest)  # its digest is checked
        except ObjectMissing:
            missing.append(digest)
            continue
        size += target.put(body).size
    if missing:
        with _snapshot(database_url) as (connection, _):
            still = set(_wanted(connection))
        if lost := [digest for digest in missing if digest in still]:
            raise BackupFailed(
                f"{len(lost)} objects that the database names are not in {store_url}, the first: "
                f"{lost[0]}.",
                field="FHV_OBJECT_STORE_URL",
                mend="Is it the store that the coordinator uses? '--no-objects' leaves them out.",
            )
    return len(wanted) - len(missing), size, len(missing)
