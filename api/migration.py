"""Alembic from within the program: what `fedhypevae db` and the start-up check need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class State:
    found: str | None
    head: str

    @property
    def current(self) -> bool:
        return self.found == self.head


def _config(url: str) -> Config:
    config = Config(str(_ROOT / "alembic.ini"))
    config.set_main_option("script_location", str(_ROOT / "migrations"))
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    return config


def state(url: str) -> State:
    """Which migration the database is at, and which is the newest."""
    head = ScriptDirectory.from_config(_config(url)).get_current_head()
    engine = create_engine(url, poolclass=NullPool)
    try:
        with engine.connect() as connection:
            found = MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()
    return State(found, head or "")


def upgrade(url: str, revision: str = "head") -> None:
    command.upgrade(_config(url), revision)


def downgrade(url: str, revision: str) -> None:
    command.downgrade(_config(url), revision)


def known() -> set[str]:
    """All migrations of this program."""
    scripts = ScriptDirectory.from_config(_config(""))
    return {script.revision for script in scripts.walk_revisions()}
