"""Receipts over HTTP: read, verified, proved; keys that rotate; rows by a URL; NOT PRIVATE."""

from __future__ import annotations

import asyncio
import gzip
import io
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy.exc import ProgrammingError

from api import migration
from api.receipts import keys
from api.receipts.keys import Keyring
from api.synthesis import models
from core.receipts.receipt import Receipt
from core.receipts.signing import Signed, verified
from core.synthesis.formats import FORMATS
from tests.api.support import Coordinator, problem

BODY = {"run": "run-1", "mixture": {"site-a": 3, "site-b": 1}, "n": 50, "seed": 7}


async def published(coordinator: Coordinator) -> dict[str, Any]:
    await coordinator.enrol("site-a", "site-b")
    run = await coordinator.run("site-a", "site-b", privacy={"rounds": 0})
    await coordinator.finish(run, "site-a", "site-b")
    return run


async def rows(coordinator: Coordinator, **asked: object) -> httpx.Response:
    answer = await coordinator.call(
        "POST",
        "/synthesize",
        "scientist",
        json=BODY | asked,
        headers={"Accept-Encoding": "identity"},
    )
    assert answer.status_code == 200, answer.text
    return answer


async def verdict(coordinator: Coordinator, signed: dict[str, Any]) -> dict[str, Any]:
    answer = await coordinator.call("POST", "/v1/receipts/verify", "auditor", json=signed)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_a_receipt_is_read_verified_and_proved(coordinator: Coordinator) -> None:
    run = await published(coordinator)
    answer = await rows(coordinator)
    in_body = answer.json()["receipt"]
    link = answer.headers["Link"]
    assert link == f'</v1/receipts/{in_body["id"]}>; rel="describedby"'
    for who in ("scientist", "auditor", "admin"):
        read = await coordinator.call("GET", f"/v1/receipts/{in_body['id']}", who)
        assert read.json() == in_body
    listed = (await coordinator.call("GET", "/v1/receipt-keys", "scientist")).json()["items"]
    public = {key["id"]: bytes.fromhex(key["public"]) for key in listed}
    receipt = verified(Signed.model_validate(in_body), public)
    assert receipt.model.run_id == run["id"]
    assert receipt.content is not None
    assert [one.client for one in receipt.per_client] == ["site-a", "site-b"]
    assert all(one.epsilon > 0 for one in receipt.per_client)
    found = await verdict(coordinator, in_body)
    assert found == {
        "valid": True, "why": "", "key_id": in_body["key_id"], "recorded": True,
        "rows": "as recorded",
    }  # fmt: skip
    proof = await coordinator.call("GET", f"/v1/receipts/{in_body['id']}/regenerate", "scientist")
    assert (proof.json()["same"], proof.json()["why"]) == (True, "")
    assert proof.json()["found"] == in_body["receipt"]["content"]


async def test_the_same_rows_have_one_receipt_whoever_asks_and_in_what_form(
    coordinator: Coordinator,
) -> None:
    run = await published(coordinator)
    first = await rows(coordinator)
    again = await rows(coordinator, run=run["id"], format="parquet", dtype="float64")
    assert again.headers["X-FHV-Receipt"] == first.headers["X-FHV-Receipt"]
    for change in ({"seed": 8}, {"n": 51}, {"temperature": 0.5}, {"labels": "uniform"}):
        other = await rows(coordinator, **change)
        assert other.headers["X-FHV-Receipt"] != first.headers["X-FHV-Receipt"]
    bodies = [await rows(coordinator, format="npz") for _ in range(2)]
    assert bodies[0].content == bodies[1].content
    assert bodies[0].headers["ETag"] == bodies[1].headers["ETag"]
    served = (await coordinator.call("GET", "/v1/events?kind=synthesis-served", "admin")).json()
    assert served["items"][0]["detail"]["receipt"] == first.headers["X-FHV-Receipt"]


async def test_a_changed_receipt_is_told_from_a_genuine_one(coordinator: Coordinator) -> None:
    await published(coordinator)
    signed = (await rows(coordinator)).json()["receipt"]
    changed = dict(signed)
    changed["receipt"] = signed["receipt"] | {"noise_mode": "none"}
    found = await verdict(coordinator, changed)
    assert (found["valid"], found["rows"]) == (False, "not recorded")
    assert "signature" in found["why"]
    unknown = await verdict(coordinator, signed | {"key_id": "0" * 16})
    assert (unknown["valid"], "not known" in unknown["why"]) == (False, True)
    other_id = await verdict(coordinator, signed | {"id": "rcp_" + "0" * 32})
    assert (other_id["valid"], other_id["recorded"]) == (False, False)
    problem(
        await coordinator.call("POST", "/v1/receipts/verify", "auditor", json={"id": "x"}),
        422, "invalid-request", "receipt",
    )  # fmt: skip
    missing = await coordinator.call("GET", "/v1/receipts/rcp_" + "0" * 32, "auditor")
    problem(missing, 404, "not-found", "receipt_id")


async def test_a_streamed_receipt_is_closed_by_the_last_row(coordinator: Coordinator) -> None:
    await published(coordinator)
    answer = await rows(coordinator, n=9_000, format="arrow")
    receipt_id = answer.headers["X-FHV-Receipt"]
    opening = pa.ipc.open_stream(answer.content).schema.metadata[b"fedhypevae.receipt"]
    assert b'"content": null' in opening
    closed = (await coordinator.call("GET", f"/v1/receipts/{receipt_id}", "auditor")).json()
    assert closed["receipt"]["content"]["n"] == 9_000
    parquet = await rows(coordinator, n=9_000, format="parquet")
    footer = pq.read_metadata(io.BytesIO(parquet.content)).metadata[b"fedhypevae.receipt"]
    assert closed["receipt"]["content"]["digest"].encode() in footer


async def test_retired_keys_go_on_verifying_and_revoked_ones_do_not(
    coordinator: Coordinator,
) -> None:
    await published(coordinator)
    old = (await rows(coordinator)).json()["receipt"]
    database, pepper = coordinator.ctx.database, coordinator.ctx.settings.pepper
    async with database.write() as session:
        new = (await keys.rotate(session, database, "console", pepper)).id
    coordinator.app.state.keyring = Keyring(database, pepper)
    signed = (await rows(coordinator)).json()["receipt"]
    assert (signed["key_id"], signed["id"], signed["receipt"]) == (new, old["id"], old["receipt"])
    assert signed["signature"] != old["signature"]
    assert (await verdict(coordinator, old))["valid"] is True
    async with database.write() as session:
        await keys.revoke(session, database, "console", pepper, old["key_id"])
    found = await verdict(coordinator, old)
    assert (found["valid"], "revoked" in found["why"]) == (False, True)
    assert (await verdict(coordinator, signed))["valid"] is True
    async with database.write() as session:
        await keys.revoke(session, database, "console", pepper, new)
    listed = (await coordinator.call("GET", "/v1/receipt-keys", "worker")).json()["items"]
    assert [key["retired_at"] is None for key in listed] == [False, False, True]
    assert [key["revoked_at"] is None for key in listed] == [False, False, True]


async def test_many_replicas_make_one_first_key(coordinator: Coordinator) -> None:
    database, pepper = coordinator.ctx.database, coordinator.ctx.settings.pepper
    rings = [Keyring(database, pepper) for _ in range(5)]
    found = await asyncio.gather(*(ring.active() for ring in rings))
    assert len({key.public for key in found}) == 1
    strange = Keyring(database, b"another pepper of a stranger")
    with pytest.raises(keys.SigningKeySealed, match="another FHV_TOKEN_PEPPER"):
        await strange.active()


QUERY = "run=run-1&mixture=site-a:3,site-b:1&n=50&seed=7"


async def test_rows_by_a_url_are_those_of_the_post(coordinator: Coordinator) -> None:
    await published(coordinator)
    posted = await rows(coordinator, format="parquet", columns=["domain"], dtype="float64")
    path = f"/v1/synthesize?{QUERY}&format=parquet&columns=domain&dtype=float64"
    got = await coordinator.call("GET", path, "scientist")
    assert got.content == posted.content
    assert got.headers["ETag"] == posted.headers["ETag"]
    etag = {"If-None-Match": f'"x", W/{got.headers["ETag"]}'}
    known = await coordinator.call("GET", path, "scientist", headers=etag)
    assert (known.status_code, known.content) == (304, b"")
    other = await coordinator.call("GET", path + "&temperature=2", "scientist", headers=etag)
    assert other.status_code == 200
    counted = await coordinator.call(
        "GET", "/synthesize?run=run-1&class_counts=a:2,c:1&seed=1&round=0", "scientist"
    )
    assert sorted(counted.json()["labels"]) == ["a", "a", "c"]
    shared = await coordinator.call(
        "GET", "/synthesize?run=run-1&n=8&labels=a:1,b:3&seed=1", "scientist"
    )
    assert sorted(shared.json()["labels"]) == ["a"] * 2 + ["b"] * 6


@pytest.mark.parametrize(
    ("query", "code", "field"),
    [
        ("n=3", "invalid-request", "run"),
        ("run=run-1", "invalid-request", None),
        ("run=run-1&n=many", "invalid-request", "n"),
        ("run=run-1&n=3&mixture=site-a", "invalid-request", "mixture.literal['neutral']"),
        ("run=run-1&n=3&mixture=site-a:x", "invalid-request", None),
        ("run=run-1&n=3&mixture=site-a:1,site-a:2", "invalid-request", "mixture"),
        ("run=run-1&n=3&mixture=site-a:1,b", "invalid-request", "mixture"),
        ("run=run-1&n=3&colour=red", "invalid-request", "colour"),
        ("run=run-1&n=3&columns=domain,domain", "invalid-request", "columns"),
        ("run=run-1&n=3&seed=-1", "invalid-request", "seed"),
        ("run=run-1&n=3&temperature=hot", "invalid-request", "temperature"),
        ("run=run-1&n=3&labels=z:1", "invalid-synthesis-request", "labels.z"),
    ],
)
async def test_wrong_urls_name_the_parameter(
    coordinator: Coordinator, query: str, code: str, field: str | None
) -> None:
    await published(coordinator)
    answer = await coordinator.call("GET", f"/v1/synthesize?{query}", "scientist")
    problem(answer, 422, code, field)


async def test_text_is_compressed_for_those_who_ask(coordinator: Coordinator) -> None:
    await published(coordinator)
    for kind in FORMATS:
        for n in (50, 9_000):
            plain = await rows(coordinator, format=kind, n=n)
            assert "Content-Encoding" not in plain.headers
            for coding in ("gzip", "zstd"):
                async with coordinator.stream(
                    "POST",
                    "/v1/synthesize",
                    "scientist",
                    json=BODY | {"format": kind, "n": n},
                    headers={"Accept-Encoding": f"br, {coding};q=0.5"},
                ) as answer:
                    raw = b"".join([piece async for piece in answer.aiter_raw()])
                if kind not in ("json", "ndjson", "csv"):
                    assert "Content-Encoding" not in answer.headers
                    assert raw == plain.content
                    continue
                assert answer.headers["Content-Encoding"] == coding
                assert len(raw) < len(plain.content)
                if coding == "gzip":
                    body = gzip.decompress(raw)
                else:
                    body = pa.input_stream(io.BytesIO(raw), compression="zstd").read()
                assert body == plain.content


async def test_a_model_without_a_guarantee_is_served_only_if_the_operator_says_so(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    await published(coordinator)
    real = models.Models.published

    async def seeded(*args: Any) -> models.Published:
        found = await real(*args)
        model = found.model.model_copy(update={"noise_mode": "seeded"})
        return replace(found, model=model, facts=replace(found.facts, noise_mode="seeded"))

    monkeypatch.setattr(models.Models, "published", seeded)
    refused = await coordinator.call("POST", "/synthesize", "scientist", json=BODY)
    assert "NOT PRIVATE" in problem(refused, 403, "not-private", "run")["detail"]
    ctx = coordinator.app.state.context
    allowed = ctx.settings.model_copy(update={"serve_not_private": True})
    coordinator.app.state.context = replace(ctx, settings=allowed)
    answer = await rows(coordinator)
    receipt = Receipt.model_validate(answer.json()["receipt"]["receipt"])
    assert (receipt.label, answer.headers["X-FHV-Label"]) == ("NOT PRIVATE", "NOT PRIVATE")
    assert "seed" in receipt.caveat
    assert np.isfinite(answer.json()["embeddings"]).all()


async def test_receipts_are_not_thrown_away_by_a_downgrade(coordinator: Coordinator) -> None:
    await published(coordinator)
    await rows(coordinator)
    url = coordinator.ctx.database.url
    with pytest.raises(ProgrammingError, match="there are receipts"):
        await asyncio.to_thread(migration.downgrade, url, "0004")
    assert migration.state(url).current
