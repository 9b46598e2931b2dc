"""What ``fedhypevae doctor --coordinator`` checks: settings, database, broker, store."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psycopg
import redis
from obstore.exceptions import BaseError as BackendError
from sqlalchemy.exc import SQLAlchemyError

from api import migration
from api.config import Settings, SettingsError, database_url, load
from api.console import first_line
from core.errors import DomainError
from core.findings import Check, Finding, failed, ok, warn
from core.secret_files import SettingFileError, from_file
from core.storage import ObjectStore

_CONNECT_S = 5
_SKEW_S = 2.0
_OLDEST_POSTGRES = 14
_LITTLE_SPACE, _SOME_SPACE = 500 << 20, 5 << 30  # bytes
_MENDS = {
    "FHV_DATABASE_URL": "Set FHV_DATABASE_URL=postgresql://user:password@host/database.",
    "FHV_TOKEN_PEPPER": "Set FHV_TOKEN_PEPPER to the same 16 or more random characters as before; "
    "for a new coordinator: openssl rand -base64 32. With another one no old token is known.",
    "FHV_OBJECT_STORE_URL": "Set FHV_OBJECT_STORE_URL=file:///folder or s3://bucket/prefix.",
}


def checks() -> Iterator[Check]:
    yield Check("settings", settings)
    yield Check("database", database)
    yield Check("broker", broker)
    yield Check("object store", store)


def settings() -> Iterator[Finding]:
    """All at once: every setting that cannot be used has a line of its own."""
    try:
        found = load(Settings)
    except SettingsError as error:
        for problem in str(error).split("; FHV_"):
            text = problem if problem.startswith("FHV_") else f"FHV_{problem}"
            name = text.partition(":")[0]
            yield failed("settings", text, _MENDS.get(name, f"Change {name}, or leave it out."))
        return
    if found.env == "dev":
        yield warn(
            "settings",
            "FHV_ENV=dev: tokens are made with a pepper that everybody knows",
            "Leave FHV_ENV out, and set FHV_TOKEN_PEPPER, wherever others can reach this machine.",
        )
    else:
        yield ok("settings", f"usable; the coordinator listens on {found.host}:{found.port}")


def _setting(name: str) -> str:
    """From the environment or a file; empty where ``settings`` has said what is wrong."""
    try:
        found = from_file(name, os.environ)
    except SettingFileError:
        return ""
    return found or os.environ.get(f"FHV_{name.upper()}", "")


# --- the database ---


def database() -> Iterator[Finding]:
    try:
        url = database_url()
    except SettingsError:
        return  # ``settings`` has said so
    plain = url.replace("postgresql+psycopg://", "postgresql://", 1)
    try:
        with psycopg.connect(plain, connect_timeout=_CONNECT_S, autocommit=True) as connection:
            number = connection.info.server_version // 10_000
            row = connection.execute(
                "SELECT extract(epoch FROM clock_timestamp())::float8 - %s", (time.time(),)
            ).fetchone()
    except psycopg.Error as error:
        yield _refused(error)
        return
    if number < _OLDEST_POSTGRES:
        yield failed(
            "database",
            f"Postgres {number} is too old",
            f"Use Postgres {_OLDEST_POSTGRES} or newer.",
        )
    else:
        yield ok("database", f"Postgres {number} answers")
    skew = float(row[0]) if row else 0.0
    if abs(skew) > _SKEW_S:
        yield warn(
            "database clock",
            f"it is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} this machine's",
            "Let both machines set their clocks by NTP. Deadlines are told by the database's.",
        )
    yield from _migration(url)


def _refused(error: psycopg.Error) -> Finding:
    said = " ".join(str(error).split())
    if "password authentication failed" in said or "no password supplied" in said:
        return failed(
            "database",
            "it refuses the user or the password",
            "Correct user and password in FHV_DATABASE_URL; characters such as @ / : in a "
            "password are written as %40 %2F %3A.",
        )
    if "does not exist" in said:
        return failed(
            "database",
            f"{said.rpartition('FATAL:')[2].strip() or said}",
            "Correct the name in FHV_DATABASE_URL, or make it: createdb NAME, createuser USER.",
        )
    return failed(
        "database",
        f"no connection: {said[:300]}",
        "Start Postgres, and check host, port and firewall in FHV_DATABASE_URL.",
    )


def _migration(url: str) -> Iterator[Finding]:
    try:
        state = migration.state(url)
    except SQLAlchemyError as error:
        yield failed(
            "migration",
            f"it cannot be read: {first_line(error)}",
            "Give the user of FHV_DATABASE_URL rights on the schema public.",
        )
        return
    if state.current:
        yield ok("migration", f"{state.found}, the newest")
    elif state.fits:
        yield warn(
            "migration",
            f"the database is at {state.found}, of newer software; this program can serve it",
            "Run the newer software once it is to stay.",
        )
    elif not state.newer:
        yield failed(
            "migration",
            f"the database is at {state.found or 'none'}, this program needs {state.head}",
            "Make a backup, then call: fedhypevae db upgrade",
        )
    else:
        yield failed(
            "migration",
            f"the database is at {state.found}, which this program does not know",
            "Newer software has used it: run that, or restore a backup of before the upgrade.",
        )


# --- broker and store ---


def broker() -> Iterator[Finding]:
    url = _setting("broker_url")
    if not url:
        yield warn(
            "broker",
            "FHV_BROKER_URL is not set: workers hear of nothing, rounds are not summed",
            "Set FHV_BROKER_URL=redis://host:6379/0 and start Valkey or Redis there.",
        )
        return
    where = urlsplit(url).hostname or "?"
    try:
        client = redis.Redis.from_url(
            url, socket_connect_timeout=_CONNECT_S, socket_timeout=_CONNECT_S
        )
        try:
            client.ping()
        finally:
            client.close()
    except redis.AuthenticationError:
        yield failed(
            "broker",
            f"{where} refuses the password",
            "Write it into FHV_BROKER_URL: redis://:password@host:6379/0.",
        )
    except (redis.RedisError, OSError, ValueError) as error:
        yield failed(
            "broker",
            f"{where} does not answer ({type(error).__name__})",
            "Start Valkey or Redis, and check host and port in FHV_BROKER_URL.",
        )
    else:
        yield ok("broker", f"{where} answers")


def store() -> Iterator[Finding]:
    """A small object of random bytes is written, read and deleted."""
    url = _setting("object_store_url")
    if not url:
        return  # ``settings`` has said so
    body = secrets.token_bytes(64)
    try:
        kept = ObjectStore(url)
        digest = kept.put(body).digest
        same = kept.get(digest) == body
        kept.delete(digest)
    except (DomainError, BackendError, OSError, ValueError) as error:
        said = getattr(error, "message", None) or str(error).partition("\n")[0]
        yield failed("object store", said, _store_mend(url))
        return
    if same:
        yield ok("object store", f"{url} can be written, read and deleted from")
    yield from _space(url)


def _store_mend(url: str) -> str:
    if url.startswith("file:"):
        return f"Make {unquote(urlsplit(url).path)} a folder that this user may write."
    return (
        "Check bucket, region and credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, "
        "AWS_ENDPOINT_URL), and that they may write and delete."
    )


def _space(url: str) -> Iterator[Finding]:
    if not url.startswith("file:"):
        return
    free = shutil.disk_usage(Path(unquote(urlsplit(url).path))).free
    text = f"{free / 2**30:.1f} GiB are free"
    mend = "Make room, or set FHV_UPDATE_RETENTION_DAYS so that old updates are erased."
    if free < _LITTLE_SPACE:
        yield failed("space in store", text, mend)
    elif free < _SOME_SPACE:
        yield warn("space in store", text, mend)
    else:
        yield ok("space in store", text)
