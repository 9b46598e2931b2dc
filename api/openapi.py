"""How operations are documented: every one has an example of its request and of its answers."""

from __future__ import annotations

from typing import Any

from fastapi import Body

from api.problems import CATALOGUE, CONTENT_TYPE, body_of

REQUEST_ID = "0199c0de-0000-7000-8000-00000000beef"
_ALWAYS = ("unauthenticated", "forbidden", "invalid-request")


def example(value: Any, summary: str = "An example") -> Any:
    """``Body`` of a request, with its example."""
    return Body(openapi_examples={"example": {"summary": summary, "value": value}})


def answers(
    status: int,
    value: Any,
    description: str,
    *codes: str,
    media: str = "application/json",
    public: bool = False,
) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of an operation: its success and its problems, each with an example."""
    success: dict[str, Any] = {"description": description}
    if value is not None:
        success["content"] = {media: {"example": value}}
    documented: dict[int | str, dict[str, Any]] = {status: success}
    for code in (*codes, *(() if public else _ALWAYS)):
        number, title = CATALOGUE[code]
        entry = documented.setdefault(
            number, {"description": title, "content": {CONTENT_TYPE: {"examples": {}}}}
        )
        examples = entry["content"][CONTENT_TYPE]["examples"]
        examples[code] = {
            "summary": title,
            "value": body_of(code, f"{title}.", request_id=REQUEST_ID),
        }
    return documented
