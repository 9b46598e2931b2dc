"""Putting a backup into an empty database. Objects first: no row names bytes that are not there.

What happened after the backup is unknown to the coordinator from then on. Sites know what they have
spent: see ``docs/deployment.md``.
"""

from __future__ import annotations

from pathlib import Path

import psycopg

from api import migration
from api.backup import tools
from api.backup.manifest import (
    DUMP_FILE,
    MANIFEST_FILE,
    OBJECTS_FOLDER,
    Manifest,
    digests,
    fingerprint,
    read,
    unusable,
)
from api.backup.tools import BackupFailed
from core.errors import ObjectCorrupt
from core.storage import ObjectStore


def restore(source: Path, *, database_url: str, store_url: str, pepper: bytes) -> Manifest:
    """Put ``source`` into an empty database and its store, and bring the schema up to date.

    Raises ``BackupFailed`` if the backup is damaged or of a newer program, if the database holds
    anything, or if the pepper is another one. The database is then as it was.
    """
    manifest = read(source)
    if manifest.migration not in migration.known():
        raise unusable(
            source,
            f"its schema {manifest.migration} is of a newer program ({manifest.version})",
        )
    if manifest.pepper != fingerprint(pepper):
        raise BackupFailed(
            "FHV_TOKEN_PEPPER is not the one that the backup was made with: every token would be "
            "void and every signing key sealed for good.",
            field="FHV_TOKEN_PEPPER",
            mend="Set the pepper of then.",
        )
    major = _empty_server(database_url)
    if manifest.objects is not None:
        _put_objects(source, manifest, store_url)
    tools.call(
        tools.find("pg_restore", max(major, manifest.server_major)),
        database_url,
        [
            "--single-transaction",
            "--exit-on-error",
            "--no-owner",
            "--no-privileges",
            f"--dbname={tools.environment(database_url).get('PGDATABASE', '')}",
            str(source / DUMP_FILE),
        ],
    )
    migration.upgrade(database_url)
    return manifest


def _empty_server(url: str) -> int:
    """The server's major version, if the database holds no table."""
    try:
        with psycopg.connect(tools.plain_url(url)) as connection:
            found = connection.execute(
                "SELECT (SELECT count(*) FROM pg_tables WHERE schemaname = 'public'), "
                "current_setting('server_version_num')::int / 10000"
            ).fetchone()
    except psycopg.Error as error:
        said = str(error).strip().partition("\n")[0]
        raise BackupFailed(
            f"the database cannot be read: {said}.", mend="Check FHV_DATABASE_URL."
        ) from None
    tables, major = found or (0, 0)
    if tables:
        raise BackupFailed(
            f"the database holds {tables} tables: a restore never replaces what may know more.",
            field="FHV_DATABASE_URL",
            mend="Create an empty database and name it.",
        )
    return int(major)


def _put_objects(source: Path, manifest: Manifest, store_url: str) -> None:
    names = digests(source)
    if len(names) != manifest.objects:
        raise unusable(
            source, f"it has {len(names)} objects, its {MANIFEST_FILE} says {manifest.objects}"
        )
    copy = ObjectStore(f"file://{(source / OBJECTS_FOLDER).resolve()}")
    store = ObjectStore(store_url)
    for digest in names:
        try:
            store.put(copy.get(digest))
        except ObjectCorrupt:
            raise unusable(source, f"its object {digest} is not what was written") from None
