"""Issuing a one-time code: the form that says who may come, and the page that shows the code, once.

The code is in the answer to the form and nowhere else: not in an address, a session or the
database, which has an HMAC of it. Answers are ``no-store``, so the browser keeps none either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from api import problems
from api.context import Ctx
from api.dashboard import repository
from api.dashboard.doors import Acting, Operating, Sent
from api.dashboard.render import HOME, PageRoute, page
from api.enrolments import issuing
from api.enrolments.messages import DAY_S, EnrolmentMade, NewEnrolment
from core.errors import DomainError

router = APIRouter(prefix=f"{HOME}/enrolments/new", include_in_schema=False, route_class=PageRoute)
_NAME = "Small letters, digits, dot, hyphen and underscore; at most 63, the first one no sign."
# What fits into a field, beside it and where something did not fit.
HINTS: Mapping[str, str] = {
    "name": f"The client's name in plans and mixtures. {_NAME}",
    "site": "The institution, as people call it; at most 200 letters.",
    "population": "Whose records. Clients over one population of a site share one budget.",
    "unit": "What one unit of privacy is. A population keeps the one with which it began.",
    "space": "Which network made the embeddings. Spaces are registered by 'admin spaces register'.",
    "domain": f"A label that mixtures may name; it may be left out. {_NAME}",
    "epsilon": "Over everything, for ever: above 0, at most 100.",
    "delta": "Between 0 and 1, far below one in the number of units; 0.00001 is usual.",
    "days": "The code must be used in so many days, at most 90.",
    "token_days": "Life of the site's token in days, at most 3660. Its agent renews it in time.",
}
FIRST = {"unit": "record", "delta": "0.00001", "days": "7", "token_days": "180"}
_LETTERS = 300
# Where the API's names of fields are others than those of the form.
_FIELDS = {"expires_in_s": "days"}


@dataclass(frozen=True)
class Wrong:
    """Why there is no code, and beside which field to say so ('' : above the form)."""

    field: str
    text: str


@router.get("")
async def form(
    ctx: Ctx, request: Request, visitor: Operating, existing: str | None = None
) -> Response:
    return await _form(ctx, request, existing or "", FIRST)


@router.post("")
async def issue(ctx: Ctx, request: Request, sent: Acting) -> Response:
    """The form again, with what was typed and what is wrong, if there is no code."""
    existing = sent.fields.get("existing", "")
    try:
        wanted = _wanted(sent, existing)
        async with ctx.database.write() as session:
            made = await issuing.create(ctx, session, sent.visitor.who, wanted)
    except ValidationError as error:
        return await _form(ctx, request, existing, sent.fields, "invalid-request", _misfit(error))
    except DomainError as error:
        if problems.CATALOGUE.get(error.code, (500, ""))[0] >= 500:
            raise
        text = error.message[:1].upper() + error.message[1:].rstrip(".") + "."
        wrong = Wrong(_field(error.field or ""), text)
        return await _form(ctx, request, existing, sent.fields, error.code, wrong)
    return _shown_once(request, made)


def _shown_once(request: Request, made: EnrolmentMade) -> Response:
    return page(
        request,
        "code.html",
        status=201,
        made=made,
        coordinator=f"{request.url.scheme}://{request.url.netloc}",
    )


async def _form(
    ctx: Ctx,
    request: Request,
    existing: str,
    values: Mapping[str, str],
    code: str | None = None,
    wrong: Wrong | None = None,
) -> Response:
    async with ctx.database.read() as session:
        spaces = await repository.space_names(session)
    if code is not None:
        request.scope[problems.SCOPE_KEY] = code
    return page(
        request,
        "code_form.html",
        status=200 if code is None else problems.CATALOGUE[code][0],
        existing=existing,
        values=values,
        spaces=spaces,
        hints=HINTS,
        wrong=wrong,
    )


def _wanted(sent: Sent, existing: str) -> NewEnrolment:
    """Raises ``ValidationError``, and ``InvalidRequest`` for a field that is empty."""
    body: dict[str, Any] = {
        "expires_in_s": _days(sent.text("days")) * DAY_S,
        "token_days": sent.text("token_days"),
    }
    if existing:
        return NewEnrolment.model_validate({**body, "existing": existing})
    client = {
        **{name: sent.text(name, _LETTERS) for name in ("name", "space", "site", "population")},
        "unit": sent.text("unit"),
        "domain": sent.fields.get("domain", "").strip() or None,
        "managed": False,
        "budget": {"epsilon": sent.text("epsilon"), "delta": sent.text("delta")},
    }
    return NewEnrolment.model_validate({**body, "client": client})


def _days(text: str) -> float:
    """Raises ``InvalidRequest``."""
    try:
        return float(text)
    except ValueError:
        raise problems.InvalidRequest("this is no number", field="days") from None


def _field(path: str) -> str:
    """``client.budget.epsilon`` is ``epsilon`` here."""
    last = path.rpartition(".")[2]
    name = _FIELDS.get(last, last)
    return name if name in HINTS else ""


def _misfit(error: ValidationError) -> Wrong:
    """The first field that does not fit; its hint says what does."""
    for one in error.errors(include_url=False, include_context=False, include_input=False):
        if name := _field(".".join(map(str, one["loc"]))):
            return Wrong(name, "This does not fit.")
    return Wrong("", "What was typed does not fit.")
