"""The coordinator's object store: content-addressed, written once, verified when read.

A folder (``file:///path``) or any S3-compatible bucket (``s3://bucket/prefix``, credentials from
the environment as obstore documents). An object's key is the SHA-256 of its bytes, so that a
second write of the same bytes is harmless and a torn or altered file is noticed when it is read.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlparse

import obstore
from obstore.exceptions import AlreadyExistsError, NotFoundError
from obstore.exceptions import BaseError as BackendError
from obstore.store import LocalStore, from_url
from obstore.store import ObjectStore as Backend

from core.errors import ObjectCorrupt, ObjectMissing, StoreUnavailable
from core.files import flush


@dataclass(frozen=True)
class Stored:
    """Where bytes went: ``digest`` is ``sha256:<hex>``, ``size`` is in bytes."""

    digest: str
    size: int


def sha256_of(body: bytes) -> str:
    """``sha256:<hex>`` of bytes; the name of every stored object."""
    return "sha256:" + hashlib.sha256(body).hexdigest()


def _key(digest: str) -> str:
    kind, _, value = digest.partition(":")
    if kind != "sha256" or len(value) != 64 or not set(value) <= set("0123456789abcdef"):
        raise ObjectMissing(f"{digest!r} is not the digest of an object", field="digest")
    return f"sha256/{value[:2]}/{value}"


class ObjectStore:
    """Blocking client; call it from a thread in asynchronous code. Safe between processes."""

    def __init__(self, url: str) -> None:
        parts = urlparse(url)
        self.url = url
        self._folder: Path | None = None
        self._named: set[Path] = set()  # folders whose names are on the disk
        if parts.scheme == "file":
            self._folder = Path(unquote(parts.path))
            self._folder.mkdir(parents=True, exist_ok=True)
            self._backend: Backend = LocalStore(prefix=self._folder)
        elif parts.scheme:
            self._backend = from_url(url)
        else:
            raise ValueError(
                f"object store URL {url!r} has no scheme; write file:///... or s3://..."
            )

    def put(self, body: bytes) -> Stored:
        """Store bytes unless they are there; they are durable when this returns. Raises
        ``StoreUnavailable``; then nothing counts as stored.
        """
        try:
            return self._put(body)
        except (BackendError, OSError) as error:
            said = str(error).partition("\n")[0]
            raise StoreUnavailable(
                f"the object store cannot be written: {said}",
                mend="Free space on it or reach it again; nothing was accepted, so send it again.",
            ) from error

    def _put(self, body: bytes) -> Stored:
        digest = sha256_of(body)
        key = _key(digest)
        try:
            obstore.put(self._backend, key, body, mode="create")
        except AlreadyExistsError:
            if self._folder is None:
                return Stored(digest, len(body))
            # A power cut may have kept the name and lost the bytes; only these bytes belong here.
            if (self._folder / key).read_bytes() != body:
                obstore.put(self._backend, key, body, mode="overwrite")
        if self._folder is not None:
            _sync(self._folder / key, self._named)
        return Stored(digest, len(body))

    def get(self, digest: str) -> bytes:
        """The bytes of an object. Raises ``ObjectMissing`` or ``ObjectCorrupt``."""
        try:
            body = bytes(obstore.get(self._backend, _key(digest)).bytes())
        except (NotFoundError, FileNotFoundError) as error:
            raise ObjectMissing(f"no object {digest} in {self.url}", digest=digest) from error
        if sha256_of(body) != digest:
            raise ObjectCorrupt(f"the stored bytes of {digest} are not what was written")
        return body

    def delete(self, digest: str) -> bool:
        """Remove an object for good; False if there was none. It stays away when this returns."""
        key = _key(digest)
        try:
            obstore.delete(self._backend, key)
            found = True
        except (NotFoundError, FileNotFoundError):
            found = False
        # Also where nothing was found: a deletion before a power cut may not have been flushed.
        if self._folder is not None and (self._folder / key).parent.is_dir():
            flush((self._folder / key).parent)
        return found

    def exists(self, digest: str) -> bool:
        try:
            obstore.head(self._backend, _key(digest))
        except (NotFoundError, FileNotFoundError):
            return False
        return True


def _sync(path: Path, named: set[Path]) -> None:
    """Flush a new file and the names that lead to it: a row may now refer to it. ``named``: folders
    whose own names are on the disk already; nobody removes a folder, so once is enough.
    """
    flush(path)
    flush(path.parent)
    if path.parent not in named:
        flush(path.parent.parent)
        named.add(path.parent)
