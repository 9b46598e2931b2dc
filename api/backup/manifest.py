"""What a backup says about itself, and reading one like a stranger's."""

from __future__ import annotations

import hashlib
import hmac
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from api.backup.tools import BackupFailed

MANIFEST_FILE = "manifest.json"
DUMP_FILE = "database.dump"
OBJECTS_FOLDER = "objects"
_MEND = "Use another backup."


class Manifest(BaseModel):
    """Of one moment: what the dump holds and which objects belong to it.

    ``migration``: the schema's revision. ``pepper``: a keyed fingerprint, which tells nothing about
    the token pepper but whether another one is it. ``objects``: how many there are in the folder;
    None if they were left out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    made_at: datetime
    version: str
    migration: str = Field(min_length=1)
    server_major: int = Field(ge=1)
    dump_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    dump_bytes: int = Field(ge=1)
    pepper: str = Field(pattern=r"^[0-9a-f]{32}$")
    objects: int | None = Field(default=None, ge=0)
    object_bytes: int = Field(default=0, ge=0)
    gone: int = Field(default=0, ge=0, description="Erased between the dump and the copy.")
    clients: int = Field(ge=0)
    runs: int = Field(ge=0)
    ledger_entries: int = Field(ge=0)


def fingerprint(pepper: bytes) -> str:
    """Whether two peppers are one, without either."""
    return hmac.digest(pepper, b"fedhypevae backup", "sha256").hex()[:32]


def sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unusable(source: Path, why: str) -> BackupFailed:
    return BackupFailed(f"{source} cannot be restored: {why}.", field="SOURCE", mend=_MEND)


def read(source: Path) -> Manifest:
    """Check what can be checked without a database. Raises ``BackupFailed``."""
    try:
        manifest = Manifest.model_validate_json((source / MANIFEST_FILE).read_bytes())
    except ValidationError:
        raise unusable(source, f"its {MANIFEST_FILE} is damaged") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise unusable(source, f"{MANIFEST_FILE}: {reason}") from None
    dump = source / DUMP_FILE
    if not dump.is_file() or dump.stat().st_size != manifest.dump_bytes:
        raise unusable(source, f"its {DUMP_FILE} is missing or cut short")
    if sha256_of_file(dump) != manifest.dump_sha256:
        raise unusable(source, f"its {DUMP_FILE} is not the one that was written")
    return manifest


def digests(source: Path) -> list[str]:
    """The objects of a backup by their names."""
    folder = source / OBJECTS_FOLDER / "sha256"
    return sorted(f"sha256:{path.name}" for path in folder.glob("??/*") if len(path.name) == 64)
