"""From what each process is started: it gets the environment that it needs and no more. Only the
coordinator gets the database's URL and the pepper.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from api.config import Secrets, load
from api.local.folder import MARK, Folder
from core.secret_files import from_file

# The coordinator's alone; a worker that is taken over must not find them.
_SET_HERE = ("DATABASE_URL", "BROKER_URL", "OBJECT_STORE_URL", "TOKEN_PEPPER")
_COORDINATORS = ("DATABASE_URL", "TOKEN_PEPPER", "TOKEN", "METRICS_TOKEN", "ENV", "HOST", "PORT")


@dataclass(frozen=True)
class Options:
    """``site``: a site's TOML file; its managed clients are served, too."""

    port: int
    site: Path | None = None


def from_files() -> None:
    """Settings of which a file was named, into the environment of this process. Raises
    ``SettingFileError``.
    """
    for name in _SET_HERE:
        if (value := from_file(name.lower(), os.environ)) is not None:
            os.environ[f"FHV_{name}"] = value
            del os.environ[f"FHV_{name}_FILE"]


def _without(environment: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    gone = {f"FHV_{name}{end}" for name in names for end in ("", "_FILE")}
    return {name: value for name, value in environment.items() if name not in gone}


def _base(folder: Folder) -> dict[str, str]:
    """The caller's environment; one thread a process, unless the caller says otherwise."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**one, **os.environ, "PYTHONUNBUFFERED": "1", MARK: str(folder.path)}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "core.cli", *arguments]


@dataclass(frozen=True)
class Needs:
    """Where everything is; what a service is started from."""

    folder: Folder
    options: Options
    database: str
    broker: str
    store: str
    pepper: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.options.port}"

    def secrets(self) -> Secrets:
        return load(Secrets, env="prod", database_url=self.database, token_pepper=self.pepper)

    def coordinator(self) -> dict[str, str]:
        return {
            **_without(_base(self.folder), ("ENV", "HOST", "PORT")),
            "FHV_ENV": "prod",
            "FHV_HOST": "127.0.0.1",
            "FHV_PORT": str(self.options.port),
            "FHV_DATABASE_URL": self.database,
            "FHV_BROKER_URL": self.broker,
            "FHV_OBJECT_STORE_URL": self.store,
            "FHV_TOKEN_PEPPER": self.pepper,
        }

    def worker(self, token: str, *, site: Path | None) -> dict[str, str]:
        kept = _without(_base(self.folder), _COORDINATORS)
        kept |= {
            "FHV_COORDINATOR_URL": self.url,
            "FHV_BROKER_URL": self.broker,
            "FHV_TOKEN": token,
        }
        if site is None:
            return kept | {"FHV_OBJECT_STORE_URL": self.store}
        return _without(kept, ("OBJECT_STORE_URL", "SITE_CONFIG")) | {"FHV_SITE_CONFIG": str(site)}
