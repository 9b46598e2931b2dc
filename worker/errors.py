"""What can go wrong at a site or a worker, as types: a sentence for a person and how to mend it.

These stay on this side of the wire. A coordinator only ever learns the two codes of
``core.wire.messages.WorkFailure``; see ``worker.execution``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar


class WorkerError(Exception):
    """Base: ``message`` says what is wrong, ``mend`` what to do, ``field`` which input."""

    code: ClassVar[str] = "worker-error"

    def __init__(self, message: str, *, field: str | None = None, mend: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.mend = mend

    def __str__(self) -> str:
        return self.message if self.mend is None else f"{self.message} {self.mend}"


class ConfigError(WorkerError):
    """A setting or the site's TOML cannot be used; ``problems`` has one line for each fault."""

    code = "config-invalid"

    def __init__(self, message: str, *, problems: Sequence[str] = (), **facts: Any) -> None:
        super().__init__(message, **facts)
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return "\n  ".join((super().__str__(), *self.problems))


class NotEnrolledYet(WorkerError):
    """Nobody has decided yet. The same command goes on waiting."""

    code = "not-enrolled-yet"

    def __init__(self, fingerprint: str) -> None:
        super().__init__(
            f"the coordinator's administrator has not approved yet (fingerprint {fingerprint}).",
            mend="Call the same command again later; the code and the token stay good.",
        )


class EnrolmentRefused(WorkerError):
    """The coordinator's administrator has refused this site."""

    code = "enrolment-refused"

    def __init__(self, why: str) -> None:
        super().__init__(
            f"the coordinator's administrator has refused: {why}",
            mend="Ask for a new code, and for why.",
        )


# --- talking to the coordinator ---


class ClientError(WorkerError):
    """Base of everything that ``worker.client`` raises."""

    code = "client-error"


class Unreachable(ClientError):
    """No answer, or one that says "not now" (429, 502, 503, 504), after all retries.

    ``retry_after_s`` is what the coordinator asked for in its last answer, if it did.
    """

    code = "coordinator-unreachable"

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message, mend="Check FHV_COORDINATOR_URL and that it is running.")
        self.retry_after_s = retry_after_s


class NotNow(Unreachable):
    """The coordinator was there and said "not now". ``problem`` (a stable code) and ``detail`` are
    empty where a proxy said so in its place.
    """

    code = "coordinator-busy"

    def __init__(
        self,
        where: str,
        status: int,
        problem: Mapping[str, Any],
        retry_after_s: float | None,
    ) -> None:
        detail = str(problem.get("detail") or "")
        said = f" {detail}" if detail else ""
        super().__init__(
            f"{where}: the coordinator says {status}, not now.{said}", retry_after_s=retry_after_s
        )
        self.status = status
        self.problem = str(problem.get("code") or "")
        self.detail = detail
        self.field = problem.get("field")
        self.mend = problem.get("mend") or "Try again later."


UNSUPPORTED = "unsupported-protocol"


class ApiProblem(ClientError):
    """The coordinator refused: its problem document. Branch on ``problem`` (a stable code)."""

    code = "api-problem"

    def __init__(
        self,
        *,
        problem: str,
        status: int,
        detail: str,
        field: str | None = None,
        mend: str | None = None,
        errors: Sequence[Mapping[str, Any]] = (),
        request_id: str | None = None,
    ) -> None:
        super().__init__(f"{status} {problem}: {detail}", field=field, mend=mend)
        self.problem = problem
        self.status = status
        self.detail = detail
        self.errors = tuple(errors)
        self.request_id = request_id

    @property
    def needs_person(self) -> bool:
        """True if nothing that we send is heard until somebody mends it: the token, or a version
        that the two sides do not share. What waits to be sent is as good as before.
        """
        return self.status in (401, 403) or self.problem == UNSUPPORTED

    @property
    def final(self) -> bool:
        """True if sending the very same request again cannot help."""
        passes = self.status in (408, 425, 429) or self.needs_person
        return 400 <= self.status < 500 and not passes


class UnexpectedAnswer(ClientError):
    """The answer is not what the protocol says: a proxy's page, or other software."""

    code = "unexpected-answer"


class OrderUnreadable(UnexpectedAnswer):
    """A work order that does not even parse (sigma = 0, another protocol, a field too many).

    Nothing of it is judged or done. ``work_id`` and ``lease_token`` are set if they could be
    read, so that the order can be given back as refused.
    """

    code = "order-unreadable"

    def __init__(
        self, problems: Sequence[str], *, work_id: str | None, lease_token: str | None
    ) -> None:
        super().__init__(
            "the coordinator sent a work order that cannot be accepted: " + "; ".join(problems),
            mend="Compare the versions of site and coordinator.",
        )
        self.problems = tuple(problems)
        self.work_id = work_id
        self.lease_token = lease_token


class FileNotMade(ClientError):
    """The coordinator will not make a file of rows that was asked for; the message says why."""

    code = "file-not-made"


class DownloadCorrupt(ClientError):
    """Downloaded bytes do not have the digest or size under which they were announced."""

    code = "download-corrupt"


class JoinFailed(WorkerError):
    """This client has not joined the run; what was spent on the way is in the site's ledger."""

    code = "join-failed"


class ConsentError(WorkerError):
    """A person's word on a plan cannot be given as it was asked."""

    code = "consent-error"


class EmbeddingError(WorkerError):
    """Images cannot be embedded as it was asked; nothing was written in the output's place."""

    code = "embedding-error"


# --- the site's own state ---


class SiteStateError(WorkerError):
    """The site's folder cannot be trusted with spending a privacy budget."""

    code = "site-state"


class LedgerLost(SiteStateError):
    """The site has a secret but not the ledger that belongs to it: what was spent is unknown."""

    code = "ledger-lost"


class NotReconciled(SiteStateError):
    """The ledger was restored from a backup and may be older than what was executed: nothing may
    be spent until it was completed from the coordinator's."""

    code = "ledger-not-reconciled"


class BackupError(SiteStateError):
    """A backup of the site's ledger cannot be made, or is not one that may be restored."""

    code = "backup-unusable"


class SecretLost(SiteStateError):
    """The site has a ledger with entries but not the secret that belongs to it."""

    code = "secret-lost"


class ClientBusy(SiteStateError):
    """Another process holds this client's lock."""

    code = "client-busy"


class SumOver(WorkerError):
    """A secure sum with which this site does not go on: its secrets are gone, or were of another
    session.
    """

    code = "sum-over"


class AttemptKnown(SiteStateError):
    """The attempt has been reserved before: it must never be executed a second time."""

    code = "attempt-known"


class DataChanged(SiteStateError):
    """The data set is not the one with which this client joined the run."""

    code = "data-changed"
