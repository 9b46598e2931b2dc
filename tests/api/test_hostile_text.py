"""Every text of every operation of the OpenAPI document, with what attackers write into texts.

The fields are read from the document, so a new one is covered: each answer is a clear 4xx after
which nothing is stored, or the text is stored as it is and comes back as it is.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx
import pytest

from api import access
from core.wire.messages import CONTENT_TYPE_TENSORS, LEASE_HEADER
from tests.api.fuzzing import furnish
from tests.api.support import Coordinator

_NUL, _RLO = "\x00", "\u202e"
# SQL, templates, shells, markup, logs, paths, formats, spreadsheets: whatever reads a text next.
LITERAL = {
    "sql": "x'; DROP TABLE clients; --",
    "sql union": "1) OR 1=1 UNION SELECT mac FROM tokens --",
    "template": "{{7*7}}${7*7}#{7*7}<%= 7*7 %>",
    "markup": '<script>alert(1)</script>"><img src=x onerror=alert(1)>',
    "path": "../../../../etc/passwd",
    "encoded path": "..%2f..%2fetc%2fpasswd",
    "shell": "$(touch /tmp/x)`id`;id|id&&id",
    "format": "%s%s%n {0.__class__} %(asctime)s",
    "formula": '=HYPERLINK("http://x","y")',
    "lookup": "${jndi:ldap://x/y}",
    "combined": "e\u0301\u200d\u0489" * 8,
}
REFUSED_IN_LINES = {
    "line breaks": "a\r\nX-Injected: yes",
    "escape": "\x1b[2J\x1b]0;x\x07",
    "turned": f"abc{_RLO}gnp.exe",
    "isolated": "a\u2066b\u2069",
    "separator": "a\u2028b",
}
HEADERS = ("sql", "template", "path", "format", "lookup")
_LONG = "x" * 100_000


@dataclass(frozen=True)
class Field:
    """One text that an operation takes. ``place``: path, query, header, or body."""

    operation: str
    method: str
    path: str
    place: str
    name: tuple[str | int, ...]
    schema: dict[str, Any]

    @property
    def told(self) -> str:
        return f"{self.operation} {self.place} {'.'.join(map(str, self.name))}"


def _resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def _texts(
    document: dict[str, Any], schema: dict[str, Any], value: Any, name: tuple[str | int, ...] = ()
) -> Iterator[tuple[tuple[str | int, ...], dict[str, Any]]]:
    """Paths of all texts that a schema has, those that the example leaves out among them."""
    schema = _resolved(document, schema)
    for kind in ("anyOf", "oneOf", "allOf"):
        for each in schema.get(kind, ()):
            yield from _texts(document, each, value, name)
    if schema.get("type") == "string":
        yield name, schema
    for key, each in schema.get("properties", {}).items():
        inner = value.get(key) if isinstance(value, dict) else None
        yield from _texts(document, each, inner, (*name, key))
    if schema.get("type") == "array":
        first = value[0] if isinstance(value, list) and value else None
        yield from _texts(document, schema.get("items", {}), first, (*name, 0))


def _example(operation: dict[str, Any]) -> Any:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if content is None:
        return None
    (example, *_) = content["examples"].values()
    return example["value"]


def _fields(document: dict[str, Any]) -> Iterator[tuple[Field, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            key = (operation["operationId"], method.upper(), path)
            for one in operation.get("parameters", ()):
                for _, schema in _texts(document, one["schema"], None):
                    yield Field(*key, one["in"], (one["name"],), schema), operation
            body = operation.get("requestBody", {}).get("content", {}).get("application/json")
            if body is not None:
                for name, schema in _texts(document, body["schema"], _example(operation)):
                    yield Field(*key, "body", name, schema), operation


def _put(value: Any, name: tuple[str | int, ...], text: str) -> Any:
    """A copy of an example with a text in it; what lies on the way is made."""
    made = copy.deepcopy(value)
    if not name:
        return text
    at = made
    for key, following in zip(name, (*name[1:], None), strict=True):
        new: Any = text if following is None else [] if isinstance(following, int) else {}
        if isinstance(key, int):
            if not at:
                at.append(new)
            elif following is None or not isinstance(at[0], (dict, list)):
                at[0] = new
            at = at[0]
        else:
            if following is None or not isinstance(at.get(key), (dict, list)):
                at[key] = new
            at = at[key]
    return made


async def contents(coordinator: Coordinator) -> list[str]:
    """A digest of every table, in one statement."""
    tables = await coordinator.sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    each = (
        f"(SELECT md5(coalesce(string_agg(t::text, '|' ORDER BY t::text), '')) FROM {name} t)"
        for (name,) in sorted(tables)
    )
    return list((await coordinator.sql(f"SELECT {', '.join(each)}"))[0])


class Hostile:
    """Asks the coordinator as whoever is let in."""

    def __init__(self, coordinator: Coordinator, document: dict[str, Any]) -> None:
        self.coordinator = coordinator
        self.document = document
        self.ids: dict[str, str] = {}
        self.scopes = {one.id: one.scopes for one in access.operations(coordinator.app)}
        self.asked = 0
        self.statuses: Counter[int] = Counter()

    async def learn(self) -> None:
        rows = await self.coordinator.sql(
            "SELECT (SELECT id FROM runs WHERE name = 'digits-1'), "
            "(SELECT id FROM synthesis_jobs LIMIT 1), (SELECT id FROM jobs LIMIT 1), "
            "(SELECT id FROM work_items LIMIT 1), (SELECT id FROM receipts LIMIT 1), "
            "(SELECT id FROM tokens WHERE scope = 'auditor' LIMIT 1)"
        )
        names = ("run_id", "job_id", "aggregation", "work_id", "receipt_id", "token_id")
        self.ids = {name: str(value) for name, value in zip(names, rows[0], strict=True)}
        self.ids |= {"client_id": self.coordinator.clients["site-a"], "number": "0"}
        self.ids |= {"run": "digits-1", "name": "lite0-digits", "digest": "sha256:" + "0" * 64}

    def who(self, operation: str) -> str:
        scopes = self.scopes[operation]
        if scopes is None or "admin" in scopes:
            return "admin"
        return "site-a" if "client" in scopes else min(scopes)

    async def ask(self, field: Field, operation: dict[str, Any], text: str) -> httpx.Response:
        path, options = field.path, dict[str, Any]()
        headers: dict[str, str] = {}
        for part in {part.split("}")[0] for part in path.split("{")[1:]}:
            value = self.ids.get(part, str(uuid4()))
            if field.place == "path" and part == field.name[0]:
                value = quote(text, safe="")
            path = path.replace(f"{{{part}}}", value)
        if any(one["name"] == LEASE_HEADER for one in operation.get("parameters", ())):
            headers[LEASE_HEADER] = "none"
        if field.place == "query":
            options["params"] = {"run": "digits-1", "n": "2"} if "synth" in path else {}
            options["params"][field.name[0]] = text
        elif field.place == "header":
            headers[str(field.name[0])] = text
        if field.operation == "putUpdate":
            headers["Content-Type"] = CONTENT_TYPE_TENSORS
        body = _example(operation)
        if body is not None:
            body = _put(body, field.name, text) if field.place == "body" else body
            options["content"] = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        self.asked += 1
        who = self.who(field.operation)
        return await self.coordinator.call(field.method, path, who, headers=headers, **options)

    async def try_one(self, field: Field, operation: dict[str, Any], text: str) -> None:
        writes = field.method != "GET"
        before = await contents(self.coordinator) if writes else None
        answer = await self.ask(field, operation, text)
        where = f"{field.told} {text[:40]!r}: {answer.status_code} {answer.text[:300]}"
        self.statuses[answer.status_code] += 1
        assert answer.status_code < 500, where
        assert answer.status_code not in (401, 403), where  # it must get as far as the text
        assert answer.text.strip() != "49", where
        assert "X-Injected" not in answer.headers, where
        if answer.status_code >= 400:
            assert answer.headers["content-type"] == "application/problem+json", where
            assert answer.json()["detail"], where
            if before is not None:
                assert await contents(self.coordinator) == before, where


@pytest.fixture
async def hostile(coordinator: Coordinator) -> Hostile:
    await furnish(coordinator)
    for who in ("admin", "worker", "auditor", "scientist"):
        await coordinator.ok("GET", "/v1/receipt-keys", who)
    await coordinator.ok("GET", "/v1/events")  # readers number the trail: let it be done
    made = Hostile(coordinator, coordinator.app.openapi())
    await made.learn()
    return made


async def test_every_text_of_every_operation(hostile: Hostile) -> None:
    fields = list(_fields(hostile.document))
    assert len(fields) > 150
    assert {field.place for field, _ in fields} == {"path", "query", "header", "body"}
    texts = [*LITERAL.values(), *REFUSED_IN_LINES.values()]
    for index, (field, operation) in enumerate(fields):
        if field.operation == "followRun" and field.place != "path":
            continue  # the feed has no end: tests/api/test_feed.py
        if field.place == "header":
            used = [LITERAL[name] for name in HEADERS]
        else:  # two of the texts for each field, another two for the next, and always one of these
            used = [texts[(2 * index + turn) % len(texts)] for turn in (0, 1)]
            used.append(f"a{_NUL}b" if field.place == "body" or index % 2 else _LONG[:20_000])
        for text in used:
            await hostile.try_one(field, operation, text)
    assert hostile.asked > 500
    # Most are refused by their form; the free texts are taken.
    assert hostile.statuses[422] > 200
    assert hostile.statuses[200] + hostile.statuses[201] > 20


NAMED = {
    "site": ("POST", "/v1/clients", lambda n, t: _client(n, site=t), ("client", "site")),
    "population": (
        "POST", "/v1/clients", lambda n, t: _client(n, population=t), ("client", "population"),
    ),
    "label": ("POST", "/v1/tokens", lambda _, t: {"scope": "auditor", "label": t}, ("label",)),
    "backbone": ("POST", "/v1/spaces", lambda n, t: _space(n, backbone=t), ("backbone",)),
    "preprocessing": (
        "POST", "/v1/spaces", lambda n, t: _space(n, preprocessing=t), ("preprocessing",),
    ),
    "classes": ("POST", "/v1/spaces", lambda n, t: _space(n, classes=["a", t]), ("classes", 1)),
}  # fmt: skip


def _client(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "name": f"new-{number}",
        "space": "space-0",
        "site": "h",
        "population": f"p-{number}",
        "unit": "record",
        "managed": True,
        "budget": {"epsilon": 1.0, "delta": 1e-5},
        **changes,
    }


def _space(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "name": f"space-{number}",
        "backbone": "b",
        "weights_digest": "sha256:" + "0" * 64,
        "preprocessing": "p",
        "dim": 2,
        "classes": ["a", "b"],
        **changes,
    }


async def test_texts_for_people_come_back_as_they_are_or_are_refused(
    coordinator: Coordinator,
) -> None:
    await coordinator.ok("POST", "/v1/spaces", json=_space(0))
    for index, (field, (method, path, body, at)) in enumerate(NAMED.items()):
        start = 100 * (index + 1)
        for number, text in enumerate(LITERAL.values()):
            answer = await coordinator.call(method, path, json=body(start + number, text))
            assert answer.status_code == 201, (text, answer.text)
            found: Any = answer.json()
            for key in at:
                found = found[key]
            assert found == text
            assert answer.headers["content-type"] == "application/json"
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
        before = await contents(coordinator)
        bad = [*REFUSED_IN_LINES.values(), f"a{_NUL}b", "\x7f", "\x85", "a\tb", _LONG]
        for text in bad:
            answer = await coordinator.call(method, path, json=body(start + 99, text))
            assert answer.status_code == 422, (text[:20], answer.text)
            assert answer.json()["field"].split(".")[0] == field, answer.text
        assert await contents(coordinator) == before


NAMES_ONLY = ("../x", "a/b", "A", "x\n", "", ".x", "-x", "x" * 64, "x y", "é", "x\u200b", "%2e%2e")


async def test_a_name_is_letters_digits_and_three_signs(coordinator: Coordinator) -> None:
    await coordinator.ok("POST", "/v1/spaces", json=_space(0))
    for name in NAMES_ONLY:
        for path, body in (
            ("/v1/clients", {**_client(1), "name": name}),
            ("/v1/clients", {**_client(1), "domain": name}),
            ("/v1/spaces", {**_space(1), "name": name}),
        ):
            answer = await coordinator.call("POST", path, json=body)
            assert answer.status_code == 422, (path, name)
            assert answer.json()["field"] in ("name", "domain")
