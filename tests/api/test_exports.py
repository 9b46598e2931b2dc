"""Exports over HTTP: the same rows without the coordinator, conditional downloads, refusals."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

from core.errors import ClientWithdrawn
from core.receipts.checking import PublicKeys
from core.storage import sha256_of
from core.synthesis.export import load, pack
from core.synthesis.request import SynthesisRequest
from core.wire.messages import CONTENT_TYPE_TENSORS
from tests.api.support import Coordinator, problem

BODY = {"mixture": {"site-a": 3, "site-b": 1}, "n": 5000, "mode": "sample"}


async def published(coordinator: Coordinator) -> dict[str, Any]:
    await coordinator.enrol("site-a", "site-b", domain="north")
    await coordinator.enrol("site-c", domain="south")
    names = ("site-a", "site-b", "site-c")
    run = await coordinator.run(*names)
    await coordinator.finish(run, *names)
    return run


async def export(coordinator: Coordinator, run: str = "run-1", **headers: str) -> httpx.Response:
    path = f"/v1/runs/{run}/export"
    answer = await coordinator.call("GET", path, "scientist", headers=headers)
    assert answer.status_code in (200, 206, 304), answer.text
    return answer


async def test_an_export_makes_the_coordinators_rows_and_receipt(coordinator: Coordinator) -> None:
    run = await published(coordinator)
    answer = await export(coordinator)
    assert answer.headers["Content-Type"] == CONTENT_TYPE_TENSORS
    assert 'filename="run-1-round-1.safetensors"' in answer.headers["Content-Disposition"]
    generator, card = load(answer.content)
    asked = {**BODY, "run": "run-1", "seed": 7, "format": "npz"}
    rows = await coordinator.call("POST", "/synthesize", "scientist", json=asked)
    assert rows.status_code == 200, rows.text
    with np.load(io.BytesIO(rows.content)) as archive:
        made = generator.sample(SynthesisRequest.model_validate(asked), 7)
        np.testing.assert_array_equal(archive["embeddings"], made.x)
        np.testing.assert_array_equal(archive["label_ids"], made.y)
    keys = await coordinator.ok("GET", "/v1/receipt-keys", "scientist")
    card.require_signature(PublicKeys.model_validate(keys))
    model = await coordinator.ok("GET", f"/v1/runs/{run['id']}/model", "scientist")
    assert card.receipt.model.frame_digest == model["frame"]["digest"]
    assert card.receipt.model.weights_digest == model["weights"]["digest"]
    assert [one.client for one in card.receipt.per_client] == model["clients"]
    assert all(one.epsilon > 0 for one in card.receipt.per_client)
    assert (card.receipt.label, card.receipt.licence) == ("", "unspecified: ask the operator")


async def test_the_coordinator_verifies_the_receipt_of_a_model(coordinator: Coordinator) -> None:
    await published(coordinator)
    _, card = load((await export(coordinator)).content)
    signed = card.signed.model_dump(mode="json")
    path = "/v1/receipts/verify"
    found = await coordinator.ok("POST", path, "auditor", json=signed)
    assert (found["valid"], found["why"], found["rows"]) == (True, "", "not recorded")
    changed = signed | {"receipt": signed["receipt"] | {"licence": "CC0-1.0"}}
    found = await coordinator.ok("POST", path, "auditor", json=changed)
    assert (found["valid"], "was changed" in found["why"]) == (False, True)


async def test_a_receipt_that_is_made_offline_has_the_coordinators_id(
    coordinator: Coordinator,
) -> None:
    from core.synthesis.offline import document

    await published(coordinator)
    generator, card = load((await export(coordinator)).content)
    for mixture in ("neutral", {"site-b": 1}, {"north": 2, "site-c": 1}):
        asked = {"run": "run-1", "n": 20, "seed": 7, "mixture": mixture}
        answer = await coordinator.ok("POST", "/synthesize", "scientist", json=asked)
        made = document(generator, card, SynthesisRequest.model_validate(asked), 7)
        assert made.receipt["id"] == answer["receipt"]["id"]


async def test_the_same_bytes_again_cost_nothing(coordinator: Coordinator) -> None:
    run = await published(coordinator)
    first = await export(coordinator)
    assert first.headers["ETag"] == f'"{sha256_of(first.content)}"'
    for name in ("run-1", run["id"]):
        again = await export(coordinator, name, **{"If-None-Match": first.headers["ETag"]})
        assert (again.status_code, again.content) == (304, b"")
    part = await export(coordinator, Range="bytes=100-", **{"If-Range": first.headers["ETag"]})
    assert (part.status_code, part.content) == (206, first.content[100:])
    sketch = await coordinator.call(
        "GET", "/v1/runs/run-1/export", "scientist", params={"round": 0}
    )
    assert sketch.content != first.content
    assert load(sketch.content)[1].receipt.model.round == 0
    events = (await coordinator.ok("GET", "/v1/events?kind=model-exported"))["items"]
    assert len(events) == 3  # what was not sent was not taken away


async def test_who_has_withdrawn_is_not_in_it(coordinator: Coordinator) -> None:
    await published(coordinator)
    before, _ = load((await export(coordinator)).content)
    why = {"why": "withdrew"}
    await coordinator.ok("POST", f"/v1/clients/{coordinator.clients['site-b']}/revoke", json=why)
    answer = await export(coordinator)
    generator, card = load(answer.content)
    assert generator.clients == ("site-a", "site-c")
    assert card.receipt.withdrawn == ("site-b",)
    assert before.frame.codes[1].astype(np.float32).tobytes() not in answer.content
    request = SynthesisRequest(run="r", n=10, mixture={"site-a": 1, "site-c": 1})
    np.testing.assert_array_equal(generator.sample(request, 1).x, before.sample(request, 1).x)


async def test_a_domain_is_offline_what_it_is_online(coordinator: Coordinator) -> None:
    await published(coordinator)
    for name in ("site-b", "site-c"):
        path = f"/v1/clients/{coordinator.clients[name]}/revoke"
        await coordinator.ok("POST", path, json={"why": "withdrew"})
    _, card = load((await export(coordinator)).content)
    north = SynthesisRequest(run="r", n=10, mixture={"north": 1})
    assert card.resolved(north).mixture == {"site-a": 1.0}
    for name in ("south", "site-b"):
        with pytest.raises(ClientWithdrawn) as refused:
            card.resolved(SynthesisRequest(run="r", n=10, mixture={name: 1}))
        assert refused.value.field == f"mixture.{name}"


async def test_a_licence_is_the_operators(coordinator: Coordinator) -> None:
    await published(coordinator)
    unspecified = await export(coordinator)
    settings = coordinator.ctx.settings.model_copy(update={"model_licence": "CC-BY-NC-4.0"})
    object.__setattr__(coordinator.ctx, "settings", settings)
    licensed = await export(coordinator)
    assert load(licensed.content)[1].receipt.licence == "CC-BY-NC-4.0"
    assert licensed.headers["ETag"] != unspecified.headers["ETag"]


async def test_not_private_models_are_kept_unless_the_operator_allows(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    await published(coordinator)
    real = coordinator.app.state.generators.get

    async def spoilt(*given: Any) -> Any:
        return replace(await real(*given), caveat="no guarantee at all")

    monkeypatch.setattr("api.synthesis.models.caveat_of", lambda *_: "no guarantee at all")
    refused = await coordinator.call("GET", "/v1/runs/run-1/export", "scientist")
    problem(refused, 403, "not-private", "run")
    settings = coordinator.ctx.settings.model_copy(update={"serve_not_private": True})
    object.__setattr__(coordinator.ctx, "settings", settings)
    monkeypatch.setattr(coordinator.app.state.generators, "get", spoilt)
    _, card = load((await export(coordinator)).content)
    assert (card.receipt.label, card.receipt.caveat) == ("NOT PRIVATE", "no guarantee at all")


async def test_what_is_not_there_or_not_allowed(coordinator: Coordinator) -> None:
    missing = await coordinator.call("GET", "/v1/runs/nothing/export", "scientist")
    problem(missing, 404, "not-found", "run")
    await coordinator.enrol("site-a", "site-b")
    await coordinator.run("site-a", "site-b")
    early = await coordinator.call("GET", "/v1/runs/run-1/export", "scientist")
    problem(early, 404, "not-found", "round")
    odd = await coordinator.call(
        "GET", "/v1/runs/run-1/export", "scientist", params={"round": "last"}
    )
    assert odd.status_code == 422
    for who in ("site-a", "worker", "auditor"):
        problem(await coordinator.call("GET", "/v1/runs/run-1/export", who), 403, "forbidden")


def test_packing_never_rounds() -> None:
    """A model whose numbers do not fit into the file is refused: it would make other rows."""
    from tests.core.test_export import KEY, facts, made

    generator = made()
    odd = replace(generator, offsets=generator.offsets + 1e-12)
    with pytest.raises(ValueError, match="float32"):
        pack(odd, facts(generator), licence="x", sign=KEY.sign)
