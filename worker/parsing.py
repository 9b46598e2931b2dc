"""Answers of the coordinator as messages; what does not parse becomes a typed error."""

from __future__ import annotations

import json
from typing import TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from core.wire.messages import PlanOffer, WorkOrder
from core.wire.protocol import CONSENT, PROTOCOL_HEADER
from core.wire.secure import SumStep
from worker.answers import Answer, JsonObject
from worker.errors import OrderUnreadable, UnexpectedAnswer

Message = TypeVar("Message", bound=BaseModel)


class PlanPage(BaseModel):
    items: list[PlanOffer]
    next: str | None


def message(kind: type[Message], answer: Answer) -> Message:
    """Raises ``UnexpectedAnswer``."""
    return _validated(kind, answer.content, answer.where)


def messages(kind: type[Message], answer: Answer) -> list[Message]:
    """A JSON array of them. Raises ``UnexpectedAnswer``."""
    try:
        return TypeAdapter(list[kind]).validate_json(answer.content)  # type: ignore[valid-type]
    except ValidationError as error:
        raise UnexpectedAnswer(f"{answer.where}: " + "; ".join(_faults(error))) from error


def order(answer: Answer) -> WorkOrder:
    """Raises ``OrderUnreadable``."""
    return _order(_object(answer.content))


def offer(answer: Answer) -> WorkOrder | SumStep | PlanOffer:
    """What the long poll answered: from protocol 2 on it says what it is."""
    raw, used = _object(answer.content), answer.headers.get(PROTOCOL_HEADER.lower(), "1")
    if not used.isdigit() or int(used) < CONSENT:
        return _order(raw)
    if raw.get("type") == "plan":
        return _validated(PlanOffer, json.dumps(raw.get("plan")), answer.where)
    if raw.get("type") == "step":
        return _validated(SumStep, json.dumps(raw.get("step")), answer.where)
    inner = raw.get("order")
    return _order(inner if isinstance(inner, dict) else {})


def _validated(kind: type[Message], body: bytes | str, where: str) -> Message:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise UnexpectedAnswer(
            f"{where}: not a {kind.__name__}: " + "; ".join(_faults(error))
        ) from error


def _order(raw: JsonObject) -> WorkOrder:
    """A work order; one that does not parse keeps what is needed to give it back."""
    try:
        return WorkOrder.model_validate_json(json.dumps(raw))
    except ValidationError as error:
        work_id, lease = raw.get("work_id"), raw.get("lease_token")
        raise OrderUnreadable(
            _faults(error),
            work_id=work_id if isinstance(work_id, str) else None,
            lease_token=lease if isinstance(lease, str) else None,
        ) from None


def _object(body: bytes) -> JsonObject:
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _faults(error: ValidationError) -> list[str]:
    """Where and what, without the offending values."""
    return [
        f"{'.'.join(str(part) for part in fault['loc']) or 'body'}: {fault['msg']}"
        for fault in error.errors(include_url=False, include_context=False, include_input=False)
    ]
