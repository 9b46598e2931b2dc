"""problem+json (RFC 9457) for every error, from one catalogue: code -> status and title.

Domain errors say what is wrong; only this file knows which HTTP status that is. A test walks all
subclasses of ``DomainError`` and fails if one has no entry here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import iter_route_contexts
from sqlalchemy.exc import DataError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from core.errors import DomainError

CONTENT_TYPE = "application/problem+json"
SCOPE_KEY = "fhv.problem"  # where a request's ASGI scope holds the code that it was answered with
log = structlog.get_logger(__name__)


class Unauthenticated(DomainError):
    code = "unauthenticated"


class Forbidden(DomainError):
    code = "forbidden"


class NotFound(DomainError):
    code = "not-found"


class Conflict(DomainError):
    code = "conflict"


class PayloadTooLarge(DomainError):
    code = "payload-too-large"


class RequestTimeout(DomainError):
    code = "request-timeout"


class HeadersTooLarge(DomainError):
    code = "headers-too-large"


class NotAcceptable(DomainError):
    code = "not-acceptable"


class UnsupportedMediaType(DomainError):
    code = "unsupported-media-type"


class InvalidRequest(DomainError):
    code = "invalid-request"


class RoundClosed(DomainError):
    code = "round-closed"


class LeaseLost(DomainError):
    code = "lease-lost"


class WorkLeased(DomainError):
    code = "work-leased"


class WorkGone(DomainError):
    code = "work-gone"


class UpdateConflict(DomainError):
    code = "update-conflict"


class StepAnswered(Conflict):
    """Another answer to a step of a secure sum counts already."""

    code = "step-answered"


class StepClosed(Conflict):
    code = "step-closed"


class StepRejected(DomainError):
    """An answer of which a secure sum would have no use."""

    code = "step-rejected"


class IdentityKeySet(Conflict):
    code = "identity-key-set"


class SpaceConflict(Conflict):
    code = "space-name-taken"


class ClientNameTaken(Conflict):
    code = "client-name-taken"


class RunNameTaken(Conflict):
    code = "run-name-taken"


class IdempotencyKeyReused(Conflict):
    code = "idempotency-key-reused"


class RangeNotSatisfiable(DomainError):
    code = "range-not-satisfiable"


class UnsupportedProtocol(DomainError):
    code = "unsupported-protocol"


class NotReady(DomainError):
    code = "not-ready"


class JobNeeded(DomainError):
    """So many rows are not made while the caller waits."""

    code = "job-needed"


class FileNotReady(Conflict):
    code = "file-not-ready"


class FileGone(DomainError):
    code = "file-gone"


class PartMissing(Conflict):
    """A part that the worker names is not in the store: it is to be stored again."""

    code = "part-missing"


class QuotaExceeded(DomainError):
    """``retry_after_s``: whole seconds until the same request may pass."""

    code = "quota-exceeded"


class TooManyAnswers(DomainError):
    code = "too-many-answers"


class NotPrivate(DomainError):
    code = "not-private"


class SigningKeySealed(DomainError):
    code = "signing-key-sealed"


class NotReplayable(Conflict):
    """A round that cannot be recomputed: it is not published, or bytes that it needs are gone."""

    code = "not-replayable"


class Overloaded(DomainError):
    """This process holds as many connections as it may."""

    code = "overloaded"


class TooManyFailures(DomainError):
    """An address has sent too much that is no token or code. ``retry_after_s``: whole seconds."""

    code = "too-many-failures"


class CodeUnknown(DomainError):
    code = "enrolment-code-unknown"


class CodeUsed(Conflict):
    code = "enrolment-code-used"


class EnrolmentClosed(DomainError):
    code = "enrolment-closed"


class TokenReplaced(Conflict):
    code = "token-replaced"


class TooManyStreams(DomainError):
    """This process serves as many event streams as it may."""

    code = "too-many-streams"


class Refused(HTTPException):
    """A domain error where only an ``HTTPException`` is let through: while a body is read."""

    def __init__(self, problem: DomainError, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(CATALOGUE[problem.code][0], problem.message, headers)
        self.problem = problem


# code -> (status, title). A code is never removed and never changes its status.
CATALOGUE: Mapping[str, tuple[int, str]] = {
    "domain-error": (400, "The request cannot be carried out"),
    "unauthenticated": (401, "A valid bearer token is needed"),
    "forbidden": (403, "This token may not do that"),
    "not-private": (403, "The model has no privacy guarantee"),
    "not-found": (404, "There is no such thing"),
    "method-not-allowed": (405, "The method is not allowed here"),
    "enrolment-code-unknown": (404, "There is no such enrolment code"),
    "not-acceptable": (406, "None of the accepted formats is served"),
    "request-timeout": (408, "The request came too slowly"),
    "conflict": (409, "The state of the resource forbids it"),
    "space-name-taken": (409, "Another embedding space has this name"),
    "client-name-taken": (409, "Another client has this name"),
    "run-name-taken": (409, "Another run has this name"),
    "idempotency-key-reused": (409, "The Idempotency-Key belongs to another request"),
    "enrolment-code-used": (409, "The enrolment code was used by somebody else"),
    "token-replaced": (409, "The token was replaced by another one"),
    "round-closed": (409, "The round takes no more updates"),
    "lease-lost": (409, "The lease has ended"),
    "work-leased": (409, "Somebody else holds the lease"),
    "work-gone": (409, "The work is no longer on offer"),
    "update-conflict": (409, "Another update of this client counts already"),
    "step-answered": (409, "The step was answered already"),
    "step-closed": (409, "The step takes no more answers"),
    "identity-key-set": (409, "The client has another identity key"),
    "not-replayable": (409, "The round cannot be recomputed"),
    "budget-exceeded": (409, "The privacy budget does not allow it"),
    "plan-refused": (409, "A site refuses the plan"),
    "file-not-ready": (409, "The file is not made yet"),
    "part-missing": (409, "The store does not hold this part"),
    "file-gone": (410, "The file is there no more"),
    "enrolment-closed": (410, "The enrolment is over"),
    "client-withdrawn": (410, "The client has withdrawn"),
    "payload-too-large": (413, "The body is too large"),
    "unsupported-media-type": (415, "The content type is not understood"),
    "range-not-satisfiable": (416, "The range lies outside the object"),
    "unsupported-protocol": (400, "The protocol version is not spoken here"),
    "invalid-request": (422, "The request is not valid"),
    "invalid-plan": (422, "The plan is not valid"),
    "space-mismatch": (422, "The embedding spaces differ"),
    "invalid-mixture": (422, "The mixture is not valid"),
    "unknown-mixture-client": (422, "The mixture names an unknown client"),
    "job-needed": (422, "So many rows are made in the background"),
    "invalid-synthesis-request": (422, "The synthesis request is not valid"),
    "file-unreadable": (422, "The file cannot be read"),
    "file-not-written": (500, "The file cannot be written"),
    "receipt-invalid": (422, "The receipt cannot be verified"),
    "update-rejected": (422, "The update does not count"),
    "update-unreadable": (422, "The update cannot be read"),
    "update-wrong-layout": (422, "The update has another layout"),
    "update-wrong-dtype": (422, "The update has another number type"),
    "update-wrong-shape": (422, "The update has another shape"),
    "update-unattested": (422, "The masked vector is not signed for its masks"),
    "update-not-finite": (422, "The update holds NaN or infinity"),
    "update-noise-implausible": (422, "The update is not as noisy as promised"),
    "update-norm-implausible": (422, "The update is larger than the plan allows"),
    "step-rejected": (422, "The answer does not count"),
    "privacy-error": (422, "Privacy cannot be accounted for"),
    "unknown-privacy-event": (422, "No accountant knows this event"),
    "data-unusable": (422, "The records cannot be used"),
    "data-not-found": (422, "There are no records"),
    "data-unreadable": (422, "The records cannot be read"),
    "data-empty": (422, "There are no records"),
    "data-wrong-width": (422, "The embeddings have another width"),
    "data-unknown-class": (422, "A label is not in the vocabulary"),
    "data-not-finite": (422, "A record holds NaN or infinity"),
    "tensor-file-unreadable": (422, "The tensor file cannot be read"),
    "quota-exceeded": (429, "The token has had its share"),
    "too-many-answers": (429, "Too many answers are being made"),
    "too-many-failures": (429, "Too many invalid tokens or codes"),
    "too-many-streams": (429, "Too many event streams are open"),
    "headers-too-large": (431, "The request's head is too large"),
    "backup-failed": (500, "The backup cannot be made or restored"),
    "no-place-for-backup": (500, "The backup cannot be put there"),
    "schema-too-new": (500, "The database belongs to a newer program"),
    "internal-error": (500, "Something went wrong here"),
    "signing-key-sealed": (500, "The signing key cannot be opened"),
    "object-missing": (500, "A stored object is missing"),
    "object-corrupt": (500, "A stored object is damaged"),
    "store-unavailable": (503, "The object store takes no bytes"),
    "overloaded": (503, "Too many connections are open"),
    "not-ready": (503, "The service is not ready"),
}

_LATER_S = 10
_CODE_OF_STATUS = {
    401: "unauthenticated",
    403: "forbidden",
    404: "not-found",
    405: "method-not-allowed",
    406: "not-acceptable",
    413: "payload-too-large",
    415: "unsupported-media-type",
    422: "invalid-request",
    503: "not-ready",
}


def body_of(
    code: str,
    detail: str,
    *,
    request_id: str,
    field: str | None = None,
    mend: str | None = None,
    errors: list[dict[str, str]] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The JSON of one problem. ``facts`` are extension members; they never hide standard ones."""
    status, title = CATALOGUE[code]
    standard = {
        "type": f"urn:fedhypevae:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": request_id,
    }
    optional = {"field": field, "mend": mend, "errors": errors}
    return {**(facts or {}), **standard, **{k: v for k, v in optional.items() if v is not None}}


def request_id_of(request: Request) -> str:
    return str(request.scope.get("fhv.request_id", ""))


def _answer(
    request: Request, body: dict[str, Any], headers: Mapping[str, str] | None = None
) -> JSONResponse:
    request.scope[SCOPE_KEY] = body["code"]
    extra = dict(headers or {})
    if body["status"] == 401:
        extra.setdefault("WWW-Authenticate", 'Bearer realm="fedhypevae"')
    return JSONResponse(body, body["status"], headers=extra, media_type=CONTENT_TYPE)


def of_domain_error(error: DomainError, request_id: str) -> dict[str, Any]:
    code = error.code if error.code in CATALOGUE else "internal-error"
    return body_of(
        code,
        error.message,
        request_id=request_id,
        field=error.field,
        mend=error.mend,
        facts=error.facts,
    )


async def _on_domain_error(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, DomainError):
        raise error
    body = of_domain_error(error, request_id_of(request))
    if body["status"] >= 500:
        log.error("request_failed", code=error.code, detail=error.message)
        body["detail"] = "The coordinator cannot answer; its log has the request id."
    if body["status"] != 429:
        return _answer(request, body)
    seconds = error.facts.get("retry_after_s", _LATER_S)
    return _answer(request, body, {"Retry-After": str(seconds)})


def _path(location: tuple[Any, ...]) -> str:
    """``plan.privacy.epsilon`` rather than FastAPI's (body, plan, privacy, epsilon)."""
    return ".".join(str(part) for part in location[1:] or location)


async def _on_database_trouble(request: Request, error: Exception) -> JSONResponse:
    """The database is away, restarting, or a lock was not to be had: the same request may succeed
    in a moment, so say so instead of "crashed".
    """
    log.error("database_trouble", error=type(error).__name__)
    detail = "The database does not answer just now."
    body = body_of("not-ready", detail, request_id=request_id_of(request), mend="Try again.")
    return _answer(request, body, {"Retry-After": "2"})


async def _on_invalid(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, RequestValidationError):
        raise error
    errors = []
    for item in error.errors():
        message = str(item["msg"]).removeprefix("Value error, ")
        path = _path(item["loc"])
        # Validators over several fields name theirs first: "privacy.delta: must be below ...".
        inner, colon, _ = message.partition(": ")
        if item["type"] == "value_error" and colon and " " not in inner:
            path = f"{path}.{inner}" if path != "body" else inner
        errors.append({"field": path, "message": message})
    first = errors[0]
    body = body_of(
        "invalid-request",
        f"{first['field']}: {first['message']}",
        request_id=request_id_of(request),
        field=first["field"],
        errors=errors,
    )
    return _answer(request, body)


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, HTTPException):
        raise error
    if isinstance(error, Refused):
        body = of_domain_error(error.problem, request_id_of(request))
        return _answer(request, body, error.headers)
    code = _CODE_OF_STATUS.get(error.status_code)
    if code is None:
        code = "invalid-request" if error.status_code < 500 else "internal-error"
    body = body_of(code, str(error.detail), request_id=request_id_of(request))
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_methods(request))
    return _answer(request, body, headers)


def _methods(request: Request) -> list[str]:
    """Methods of all routes of this path: the router names those of the first one only."""
    found: set[str] = set()
    for each in iter_route_contexts(request.app.routes):
        pattern, _, _ = compile_path(each.path or "/")
        if pattern.match(request.scope["path"]):
            found |= set(each.methods or ())
    return sorted(found)


async def _on_unstorable(request: Request, error: Exception) -> JSONResponse:
    """The database cannot hold a value: a NUL in a path, a number beyond its column. What comes in
    a body is named by its field before it gets here; this is the net under everything else.
    """
    log.warning("unstorable_value", error=type(error).__name__)
    detail = "A value of the request is out of range, or holds U+0000."
    return _answer(request, body_of("invalid-request", detail, request_id=request_id_of(request)))


def install(app: FastAPI) -> None:
    app.add_exception_handler(DomainError, _on_domain_error)
    for kind in (OperationalError, InterfaceError, PoolTimeout, psycopg.OperationalError):
        app.add_exception_handler(kind, _on_database_trouble)
    app.add_exception_handler(DataError, _on_unstorable)
    app.add_exception_handler(psycopg.DataError, _on_unstorable)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_exception)
