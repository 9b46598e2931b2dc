"""The token of this site or worker: given once, or read from a file that may be replaced.

A file is looked at before each request, so that a running agent goes on with a new token without
a restart. A new token is written beside the old one first and takes its place when the coordinator
has accepted it: whatever is killed when, one of the two files holds a token that works.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from core.files import flush, keep_private
from worker.errors import ConfigError

TOKEN_FILE = "token"  # noqa: S105 (a file name)
TokenSource = Callable[[], str]
_LARGEST = 4_096


def checked(text: str, where: str = "FHV_TOKEN") -> str:
    """The token in ``text``. Raises ``ConfigError``; the text is in no error."""
    text = text.strip()
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigError(
            f"{where} does not hold one line of printable ASCII without spaces.",
            field="token",
            mend="Put the token there as it was shown.",
        )
    return text


class TokenFile:
    """``path`` holds the token that works; ``path.<purpose>`` one that is not accepted yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int, int] | None = None
        self._token = ""

    def __repr__(self) -> str:
        return f"TokenFile({str(self.path)!r})"

    def __call__(self) -> str:
        """The token that the file holds now. Raises ``ConfigError``."""
        try:
            found = self.path.stat()
            state = (found.st_mtime_ns, found.st_size, found.st_ino)
            if state != self._seen:
                self._token = checked(self._read(self.path), str(self.path))
                self._seen = state
        except OSError as error:
            raise ConfigError(
                f"cannot read the token file {self.path}: {error.strerror or error}.",
                field="token_file",
                mend="Make it readable for this user, or enrol: fedhypevae agent enrol CODE.",
            ) from None
        return self._token

    def exists(self) -> bool:
        return self.path.exists()

    def next(self, purpose: str) -> str | None:
        """The token that was put aside for ``purpose``, if there is one."""
        try:
            return checked(self._read(self._aside(purpose)), str(self._aside(purpose)))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _not_kept(self._aside(purpose), error) from None

    def put_aside(self, purpose: str, token: str) -> str:
        """Keep a token that nobody has accepted yet: on the disk before it is on the wire."""
        self._write(self._aside(purpose), token)
        return token

    def accept(self, purpose: str) -> None:
        """What was put aside takes the place of the token."""
        try:
            self._aside(purpose).replace(self.path)
            flush(self.path.parent)
        except OSError as error:
            raise _not_kept(self.path, error) from None

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Be the only process that replaces this token. Raises ``ConfigError`` if another is."""
        lock = self.path.with_name(f".{self.path.name}.lock")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _not_kept(lock, error) from None
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConfigError(
                    f"another process is replacing the token in {self.path}.",
                    field="token_file",
                    mend="Wait for it.",
                ) from None
            yield
        finally:
            os.close(handle)

    def _aside(self, purpose: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{purpose}")

    @staticmethod
    def _read(path: Path) -> str:
        with path.open("rb") as file:
            return file.read(_LARGEST).decode("ascii", "replace")

    @staticmethod
    def _write(path: Path, token: str) -> None:
        """For this user's eyes only, and on the disk when this returns."""
        try:
            keep_private(path, f"{token}\n".encode(), replace=True)
        except OSError as error:
            raise _not_kept(path, error) from None


def _not_kept(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"cannot keep a token in {path}: {error.strerror or error}.",
        field="token_file",
        mend="Make its folder one that this user can write, on a disk with room.",
    )
