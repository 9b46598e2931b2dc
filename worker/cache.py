"""Downloaded public objects (model frames and weights) in a folder, filed by digest.

A cached file is believed only after its digest has been checked again, so a torn or altered
file costs a download and nothing else. Safe between processes: files appear by rename.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

from worker import logs

_log = logs.get("worker.cache")

DEFAULT_LIMIT = 512 * 1024 * 1024  # bytes


def digest_of_bytes(body: bytes) -> str:
    """``sha256:<hex>`` of bytes, the name of every object on the wire."""
    return "sha256:" + hashlib.sha256(body).hexdigest()


class ObjectCache:
    """At most ``limit`` bytes; the files that were used longest ago go first."""

    def __init__(self, folder: Path, *, limit: int = DEFAULT_LIMIT) -> None:
        self._folder = folder
        self._limit = limit

    def get(self, digest: str) -> bytes | None:
        """The object's bytes if they are here and intact."""
        path = self._path(digest)
        try:
            body = path.read_bytes()
        except FileNotFoundError:
            return None
        if digest_of_bytes(body) != digest:
            path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(FileNotFoundError):  # another process may just have pruned it
            os.utime(path)
        return body

    def put(self, digest: str, body: bytes) -> None:
        """File ``body`` under its (checked) digest. Losing it in a crash would be harmless, and so
        is a full disk: the object is downloaded again.
        """
        if len(body) > self._limit:
            return
        try:
            self._write(digest, body)
        except OSError as error:
            _log.warning("object_not_cached", error=type(error).__name__, number=error.errno)
            return
        self._prune()

    def _write(self, digest: str, body: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, name = tempfile.mkstemp(dir=self._folder, prefix=".part-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(body)
            Path(name).replace(self._path(digest))
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def _path(self, digest: str) -> Path:
        kind, _, value = digest.partition(":")
        if kind != "sha256" or len(value) != 64 or not set(value) <= set("0123456789abcdef"):
            raise ValueError(f"{digest!r} is not the digest of an object")
        return self._folder / value

    def _prune(self) -> None:
        files = []
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                files.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self._limit:
                return
            path.unlink(missing_ok=True)
            total -= size
