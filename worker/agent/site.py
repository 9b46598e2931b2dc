"""A site's state folder: its secret, the ledger that belongs to it, and one lock per client.

Secret and ledger carry the same site id. A folder that has the secret but not its ledger has
lost count of what was spent; it is refused, because starting again at zero would be a lie.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import uuid_utils

from core.files import keep_private
from worker.agent.spend import SiteLedger
from worker.errors import ClientBusy, LedgerLost, SecretLost, SiteStateError

SECRET_FILE = "site.key"  # noqa: S105 (a file name)
LEDGER_FILE = "ledger.sqlite3"
ORPHAN = ".orphan-"
CACHE_FOLDER = "objects"
SECRET_BYTES = 32
_POLL_S = 0.1
_OPENING_S = 30.0


class Site:
    """An opened state folder, on a local disk (its locks do not reach over a network).

    Close it, or use it in ``with``; one per thread.
    """

    def __init__(self, folder: Path, ledger: SiteLedger, secret: bytes) -> None:
        self.folder = folder
        self.ledger = ledger
        self._secret = secret

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open the folder, creating it at first use. Raises ``SiteStateError`` and says why."""
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with opening(folder):
                ledger, secret = _open_pair(folder)
        except OSError as error:
            raise SiteStateError(
                f"the state folder {folder} cannot be used: {error}.",
                field="site.state_dir",
                mend="Make it a folder that only this user can read and write.",
            ) from error
        return cls(folder, ledger, secret)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Site({str(self.folder)!r})"

    def close(self) -> None:
        self.ledger.close()

    def key(self, purpose: str) -> bytes:
        """32 bytes for one purpose, derived from the secret. They never leave the site."""
        return hmac.new(self._secret, b"fhv-site\0" + purpose.encode(), hashlib.sha256).digest()

    @contextmanager
    def lock(self, client: str, *, wait_s: float = 0.0) -> Iterator[None]:
        """Be the only process that spends for ``client``. Raises ``ClientBusy``.

        The kernel releases the lock when its holder dies, however it dies.
        """
        folder = self.folder / "locks"
        folder.mkdir(exist_ok=True, mode=0o700)
        with _locked(folder / f"{client}.lock", wait_s=wait_s):
            yield


@contextmanager
def opening(folder: Path) -> Iterator[None]:
    """Be the only process that makes or restores the pair of ledger and secret."""
    with _locked(folder / ".opening.lock", wait_s=_OPENING_S):
        yield


@contextmanager
def _locked(path: Path, *, wait_s: float) -> Iterator[None]:
    until = time.monotonic() + wait_s
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    holder = os.pread(handle, 20, 0).decode(errors="replace").strip()
                    raise ClientBusy(
                        f"{path} is held by process {holder or '?'}.",
                        mend="One process at a time may spend for a client: stop the other one.",
                    ) from None
                time.sleep(_POLL_S)
        with contextlib.suppress(OSError):  # a full disk: the number only serves messages
            os.ftruncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)


def _open_pair(folder: Path) -> tuple[SiteLedger, bytes]:
    """Ledger and secret that belong together; both new, or both old."""
    secret_path, ledger_path = folder / SECRET_FILE, folder / LEDGER_FILE
    known = read_secret(secret_path)
    if known is not None and not ledger_path.exists():
        raise LedgerLost(
            f"{ledger_path} is gone but {secret_path} is here: what was spent is unknown.",
            mend="Restore the ledger from a backup. If it is lost for good, these records may not "
            "be used again under the old budget: never start a fresh ledger for them.",
        )
    if known is None and not ledger_path.exists():
        # No site was here. The ledger comes first: a crash between the two leaves an unused one.
        os.close(os.open(ledger_path, os.O_WRONLY | os.O_CREAT, 0o600))
    ledger = SiteLedger(ledger_path, site_id=None if known else str(uuid_utils.uuid7()))
    try:
        if known is None:
            if not ledger.is_unused():
                raise SecretLost(
                    f"{secret_path} is gone but {ledger_path} has entries.",
                    mend="Restore the secret from a backup.",
                )
            known = (ledger.site_id, os.urandom(SECRET_BYTES))
            write_secret(secret_path, *known)
        if ledger.site_id != known[0]:
            raise LedgerLost(
                f"{ledger_path} belongs to another site than {secret_path}.",
                mend="Put back the ledger that was written beside this secret.",
            )
        remove_orphans(folder)  # of a restoration that was killed when all but this was done
    except BaseException:
        ledger.close()
        raise
    return ledger, known[1]


def remove_orphans(folder: Path) -> None:
    """Logs that a restoration has put aside (``worker.agent.backup``), once a ledger is in place:
    they may hold secrets of sums, and what was spent since the backup the coordinator has."""
    for path in folder.glob(f"{LEDGER_FILE}-*{ORPHAN}*"):
        path.unlink(missing_ok=True)


def read_secret(path: Path, *, private: bool = True) -> tuple[str, bytes] | None:
    """(site id, secret); None if there is none. ``private``: nobody else may be able to read it.
    Raises ``SiteStateError``.
    """
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="ascii")
    except FileNotFoundError:
        return None
    if private and mode & 0o077:
        raise SiteStateError(f"{path} can be read by others.", mend=f"chmod 600 {path}")
    try:
        value = json.loads(text)
        site_id, secret = str(value["site_id"]), bytes.fromhex(value["secret"])
    except (ValueError, KeyError, TypeError):
        # Without the cause: it may quote the secret.
        raise SiteStateError(f"{path} is damaged.", mend="Restore it from a backup.") from None
    if len(secret) < SECRET_BYTES:
        raise SiteStateError(f"{path} is damaged.", mend="Restore it from a backup.")
    return site_id, secret


def write_secret(path: Path, site_id: str, secret: bytes) -> None:
    """Durably, with mode 0600 from the first byte, and only if there is none yet."""
    text = json.dumps({"site_id": site_id, "secret": secret.hex()})
    keep_private(path, text.encode(), replace=False)
