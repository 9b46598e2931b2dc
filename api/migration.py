"""Alembic from within the program: what `fedhypevae db` and the start-up check need.

An older program may serve a newer database if every migration since only expanded it (added what
the older one does not look at). A migration says so of itself by ``expands = True``. Whoever
upgrades writes the oldest program that still fits where older programs find it: into the comment of
Alembic's table. So a release can be taken back without touching the database.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from core.errors import DomainError

_ROOT = Path(__file__).resolve().parent.parent
_IN_THE_WAY = frozenset({"40P01", "55P03"})  # a deadlock; a lock that was not to be had in time
_ATTEMPTS = 6
_PAUSE_S = 0.3
_COMMENT = "fedhypevae serves it from migration "


class SchemaTooNew(DomainError):
    """The database is of a newer program, and not one that this one can serve."""

    code = "schema-too-new"


@dataclass(frozen=True)
class State:
    """``found``: the database's migration. ``newer``: this program does not have it. ``fits``: and
    can serve it all the same.
    """

    found: str | None
    head: str
    newer: bool = False
    fits: bool = False

    @property
    def current(self) -> bool:
        return self.found == self.head

    @property
    def usable(self) -> bool:
        return self.current or self.fits


def _config(url: str) -> Config:
    config = Config(str(_ROOT / "alembic.ini"))
    config.set_main_option("script_location", str(_ROOT / "migrations"))
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    return config


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config(""))


def newest() -> str:
    """The newest migration that this program has."""
    return _scripts().get_current_head() or ""


def known() -> set[str]:
    """All migrations that this program has."""
    return {each.revision for each in _scripts().walk_revisions()}


def oldest_program(revision: str) -> str:
    """The migration of the oldest program that can serve a database at ``revision``."""
    for script in _scripts().walk_revisions("base", revision):  # the newest first
        if not getattr(script.module, "expands", False):
            return script.revision
    return revision


def state(url: str) -> State:
    """Which migration the database is at, and which is the newest."""
    head = newest()
    engine = create_engine(url, poolclass=NullPool)
    try:
        with engine.connect() as connection:
            found = MigrationContext.configure(connection).get_current_revision()
            if found is None or found in known():
                return State(found, head)
            return State(found, head, newer=True, fits=_noted(connection) in known())
    finally:
        engine.dispose()


def upgrade(url: str, revision: str = "head") -> None:
    """Apply migrations. Leaves a newer database that this program can serve as it is; raises
    ``SchemaTooNew`` for one that it cannot.
    """
    before = state(url)
    if before.newer and not before.fits:
        raise SchemaTooNew(
            f"the database is at migration {before.found}, of a newer program; this one knows "
            f"{before.head}, and what came since does not fit it.",
            mend="Run the newer program, or restore a backup of before the upgrade.",
        )
    if before.newer:
        return
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            command.upgrade(_config(url), revision)
            break
        except OperationalError as error:
            # Programs at work hold locks, in an order of their own. Nothing was applied.
            if attempt == _ATTEMPTS or getattr(error.orig, "sqlstate", None) not in _IN_THE_WAY:
                raise
            time.sleep(_PAUSE_S * attempt)
    _note(url)


def downgrade(url: str, revision: str) -> None:
    command.downgrade(_config(url), revision)
    _note(url)


def _noted(connection: Connection) -> str | None:
    said = connection.execute(text("SELECT obj_description('alembic_version'::regclass)"))
    value = said.scalar_one_or_none() or ""
    return value.removeprefix(_COMMENT) if value.startswith(_COMMENT) else None


def _note(url: str) -> None:
    """Write down the oldest program that fits."""
    found = state(url).found
    if found is None:
        return
    oldest = oldest_program(found)
    if not re.fullmatch(r"\w+", oldest):  # a comment takes no parameter
        raise ValueError(f"{oldest!r} is no name of a migration")
    engine = create_engine(url, poolclass=NullPool)
    try:
        with engine.begin() as connection:
            connection.execute(text(f"COMMENT ON TABLE alembic_version IS '{_COMMENT}{oldest}'"))
    finally:
        engine.dispose()
