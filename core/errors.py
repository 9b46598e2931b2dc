"""Domain errors: a stable ``code``, a sentence for a person, typed facts. No HTTP words.

The API maps ``code`` to a status in one place; command lines print ``message`` and ``mend``.
A code never changes its meaning: clients branch on it.
"""

from __future__ import annotations

from typing import ClassVar

Fact = str | int | float | bool | None


class DomainError(Exception):
    """Base of every error that the domain raises on purpose.

    ``field`` names the offending input (a dotted path); ``mend`` says what to do about it;
    ``facts`` are plain values that a program may read.
    """

    code: ClassVar[str] = "domain-error"

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        mend: str | None = None,
        **facts: Fact,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.mend = mend
        self.facts: dict[str, Fact] = facts

    def __str__(self) -> str:
        return self.message if self.mend is None else f"{self.message} {self.mend}"


# --- records of a site (never sent to the coordinator: see trap 11 in docs/privacy.md) ---


class DataError(DomainError):
    """A site's records cannot be used. Stays in the site's own log and command line."""

    code = "data-unusable"


class DataNotFound(DataError):
    code = "data-not-found"


class DataUnreadable(DataError):
    code = "data-unreadable"


class DataEmpty(DataError):
    code = "data-empty"


class DataWrongWidth(DataError):
    code = "data-wrong-width"


class DataUnknownClass(DataError):
    code = "data-unknown-class"


class DataNotFinite(DataError):
    code = "data-not-finite"


# --- plans, spaces, mixtures, requests ---


class InvalidPlan(DomainError):
    code = "invalid-plan"


class SpaceMismatch(DomainError):
    """The embedding-space contract of a client is not the one of the run."""

    code = "space-mismatch"


class InvalidMixture(DomainError):
    code = "invalid-mixture"


class UnknownMixtureClient(InvalidMixture):
    code = "unknown-mixture-client"


class ClientWithdrawn(InvalidMixture):
    """The client has withdrawn: nothing is made under its code any more."""

    code = "client-withdrawn"


class InvalidSynthesisRequest(DomainError):
    code = "invalid-synthesis-request"


class ReceiptInvalid(DomainError):
    """A receipt that nobody here has signed, or not as it is."""

    code = "receipt-invalid"


class FileUnreadable(DomainError):
    """A file that is not one of those that this program writes."""

    code = "file-unreadable"


class NoPlaceForBackup(DomainError):
    """Something is there already where a backup shall be, or no folder can be made there."""

    code = "no-place-for-backup"


class FileNotWritten(DomainError):
    """A file cannot be written where it was asked for."""

    code = "file-not-written"


# --- updates ---


class UpdateRejected(DomainError):
    """An update that does not count; nothing else changed."""

    code = "update-rejected"


class UpdateUnreadable(UpdateRejected):
    code = "update-unreadable"


class UpdateWrongLayout(UpdateRejected):
    code = "update-wrong-layout"


class UpdateWrongDtype(UpdateRejected):
    code = "update-wrong-dtype"


class UpdateWrongShape(UpdateRejected):
    code = "update-wrong-shape"


class UpdateUnattested(UpdateRejected):
    """Of a secure sum: the vector is not signed as its round's masks ask for."""

    code = "update-unattested"


class UpdateNotFinite(UpdateRejected):
    code = "update-not-finite"


class UpdateNoiseImplausible(UpdateRejected):
    code = "update-noise-implausible"


class UpdateNormImplausible(UpdateRejected):
    code = "update-norm-implausible"


# --- privacy ---


class PrivacyError(DomainError):
    code = "privacy-error"


class UnknownPrivacyEvent(PrivacyError):
    """No accountant knows the event. Refused, never guessed."""

    code = "unknown-privacy-event"


class BudgetExceeded(PrivacyError):
    code = "budget-exceeded"


class PlanRefused(PrivacyError):
    """A site's own policy refuses a work order, before its data are touched."""

    code = "plan-refused"


# --- stored objects ---


class ObjectMissing(DomainError):
    code = "object-missing"


class StoreUnavailable(DomainError):
    """The object store took no bytes: a full disk, a bucket out of reach. Nothing was kept."""

    code = "store-unavailable"


class ObjectCorrupt(DomainError):
    """Stored bytes do not have the digest under which they are filed."""

    code = "object-corrupt"
