"""A whole run over HTTP: sketch, training, publication, ledger, model, download, synthesis."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from api.problems import NotAcceptable
from api.synthesis.negotiation import chosen
from core.privacy.accounting import epsilon
from core.privacy.events import PrivacyEvent
from core.storage import sha256_of
from core.synthesis.formats import FORMATS, RECEIPT_KEY
from core.synthesis.request import MAX_ROWS
from tests.api.support import Coordinator, problem


async def test_a_run_ends_with_its_planned_rounds_and_a_ledger_of_executed_events(
    coordinator: Coordinator,
) -> None:
    await coordinator.enrol("site-a", "site-b")
    run = await coordinator.run("site-a", "site-b")
    ended = await coordinator.finish(run, "site-a", "site-b")
    assert (ended["state"], ended["rounds_published"], ended["current_round"]) == (
        "completed",
        2,
        1,
    )
    rounds = await coordinator.ok("GET", f"/v1/runs/{run['id']}/rounds")
    assert [item["state"] for item in rounds["items"]] == ["published", "published"]
    ledger = await coordinator.ledger("site-a")
    assert [entry["kind"] for entry in ledger["entries"]] == ["reserve", "commit"] * 2
    events = [
        PrivacyEvent.model_validate(entry["event"])
        for entry in ledger["entries"]
        if entry["kind"] == "reserve"
    ]
    assert ledger["epsilon_total"] == epsilon(events, 1e-5) == ended["epsilon_planned"]
    assert ledger["epsilon_committed"] == ledger["epsilon_total"]
    assert ledger["epsilon_reserved"] == 0.0
    assert ledger["epsilon_total"] <= 4.0
    answer = await coordinator.call(
        "GET", f"/v1/clients/{coordinator.clients['site-a']}/ledger.csv", "auditor"
    )
    assert answer.headers["content-type"].startswith("text/csv")
    lines = list(csv.DictReader(io.StringIO(answer.text, newline="")))
    assert [line["kind"] for line in lines] == ["reserve", "commit"] * 2
    assert all(line["client"] == "site-a" for line in lines)
    for reserved, committed in zip(lines[::2], lines[1::2], strict=True):
        assert committed["reservation"] == reserved["reservation"] == reserved["entry"]
    fields = PrivacyEvent.model_fields
    read = [
        PrivacyEvent.model_validate({name: line[name] or None for name in fields})
        for line in lines
        if line["kind"] == "reserve"
    ]
    assert read == events  # to the last bit: an auditor's epsilon is ours


async def test_the_model_is_served_to_participants_and_nothing_else_is(
    coordinator: Coordinator,
) -> None:
    await coordinator.enrol("site-a", "site-b", "outsider")
    run = await coordinator.run("site-a", "site-b", privacy={"rounds": 0})
    problem(await coordinator.call("GET", f"/v1/runs/{run['id']}/model"), 404, "not-found")
    await coordinator.finish(run, "site-a", "site-b")
    model = await coordinator.ok("GET", f"/v1/runs/{run['id']}/model", "site-a")
    assert model["clients"] == ["site-a", "site-b"]
    assert model["round"] == 0
    assert [spent["client"] for spent in model["per_client"]] == ["site-a"]
    shown = await coordinator.ok("GET", f"/v1/runs/{run['id']}/rounds/0", "site-a")
    assert [item["client"] for item in shown["clients"]] == ["site-a"]
    for which in ("latest", "0"):
        model = await coordinator.ok("GET", f"/v1/runs/{run['id']}/model?round={which}")
    assert [spent["client"] for spent in model["per_client"]] == ["site-a", "site-b"]
    for which, status, code in (("9", 404, "not-found"), ("-1", 422, "invalid-request")):
        other = await coordinator.call("GET", f"/v1/runs/{run['id']}/model?round={which}")
        problem(other, status, code)
    assert all(0 < spent["epsilon"] <= 4.0 for spent in model["per_client"])
    digest = model["weights"]["digest"]
    got = await coordinator.call("GET", f"/v1/objects/{digest}", "site-b")
    assert sha256_of(got.content) == digest
    assert got.headers["ETag"] == f'"{digest}"'
    again = await coordinator.call(
        "GET", f"/v1/objects/{digest}", "site-b", headers={"If-None-Match": f'"{digest}"'}
    )
    assert (again.status_code, again.content) == (304, b"")
    part = await coordinator.call(
        "GET", f"/v1/objects/{digest}", "site-b", headers={"Range": "bytes=10-"}
    )
    assert (part.status_code, part.content) == (206, got.content[10:])
    assert part.headers["Content-Range"] == f"bytes 10-{len(got.content) - 1}/{len(got.content)}"
    other = await coordinator.call(
        "GET",
        f"/v1/objects/{digest}",
        "site-b",
        headers={"Range": "bytes=0-3", "If-Range": '"another"'},
    )
    assert other.status_code == 200
    beyond = await coordinator.call(
        "GET", f"/v1/objects/{digest}", "site-b", headers={"Range": "bytes=99999999-"}
    )
    problem(beyond, 416, "range-not-satisfiable")
    problem(await coordinator.call("GET", f"/v1/objects/{digest}", "outsider"), 404, "not-found")
    (update,) = await coordinator.sql("SELECT digest FROM updates LIMIT 1")
    (optimiser,) = await coordinator.sql("SELECT optimiser_digest FROM rounds LIMIT 1")
    for secret in (update[0], optimiser[0]):
        for who in ("admin", "site-a", "worker", "auditor", "scientist"):
            problem(await coordinator.call("GET", f"/v1/objects/{secret}", who), 404, "not-found")


async def test_synthesis_in_json_and_parquet_with_receipts(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a", "site-b")
    run = await coordinator.run("site-a", "site-b", privacy={"rounds": 0})
    await coordinator.finish(run, "site-a", "site-b")
    body = {"run": "run-1", "mixture": {"site-a": 0.7, "site-b": 0.3}, "n": 5, "seed": 7}
    first = await coordinator.call("POST", "/synthesize", "scientist", json=body)
    second = await coordinator.call("POST", "/v1/synthesize", "scientist", json=body)
    assert first.json() == second.json()
    answer = first.json()
    receipt = answer["receipt"]["receipt"]
    assert (len(answer["embeddings"]), len(answer["embeddings"][0])) == (5, 6)
    assert receipt["asked"]["mixture"] == {"site-a": 0.7, "site-b": 0.3}
    assert (receipt["model"]["run_id"], receipt["model"]["round"]) == (run["id"], 0)
    assert receipt["asked"]["seed"] == 7
    assert receipt["label"] == ""
    assert first.headers["X-FHV-Seed"] == "7"
    assert first.headers["X-FHV-Model"] == receipt["model"]["weights_digest"]
    assert first.headers["X-FHV-Receipt"] == answer["receipt"]["id"]
    assert "X-FHV-Label" not in first.headers
    drawn = await coordinator.call(
        "POST", "/synthesize", "scientist", json={"run": run["id"], "n": 2}
    )
    asked = drawn.json()["receipt"]["receipt"]["asked"]
    assert drawn.headers["X-FHV-Seed"] == str(asked["seed"])
    assert asked["mixture"] == "neutral"
    counts = {"run": "run-1", "class_counts": {"a": 2, "c": 1}, "seed": 1}
    parquet = await coordinator.call(
        "POST",
        "/synthesize",
        "scientist",
        json=counts,
        headers={"Accept": "application/vnd.apache.parquet"},
    )
    assert parquet.headers["content-type"] == "application/vnd.apache.parquet"
    table = pq.read_table(io.BytesIO(parquet.content))
    assert sorted(table["label"].to_pylist()) == ["a", "a", "c"]
    assert RECEIPT_KEY.encode() in pq.read_metadata(io.BytesIO(parquet.content)).metadata


async def test_long_answers_are_streamed_and_equal_in_every_format(
    coordinator: Coordinator,
) -> None:
    await coordinator.enrol("site-a", "site-b")
    run = await coordinator.run("site-a", "site-b", privacy={"rounds": 0})
    await coordinator.finish(run, "site-a", "site-b")
    body = {
        "run": "run-1", "mixture": {"site-a": 3, "site-b": 1}, "mode": "sample", "n": 9_000,
        "seed": 7, "columns": ["domain"], "labels": "uniform",
    }  # fmt: skip
    answers = {
        kind: await coordinator.call(
            "POST", "/synthesize", "scientist", json=body | {"format": kind}
        )
        for kind in FORMATS
    }
    for kind, answer in answers.items():
        assert answer.status_code == 200
        text = "; charset=utf-8" if kind == "csv" else ""
        assert answer.headers["content-type"] == FORMATS[kind].media + text
        assert ("content-length" in answer.headers) is False
    document = answers["json"].json()
    parquet = pq.read_table(io.BytesIO(answers["parquet"].content))
    arrow = pa.ipc.open_stream(answers["arrow"].content).read_all()
    npz = np.load(io.BytesIO(answers["npz"].content))
    x = npz["embeddings"]
    assert x.shape == (9_000, 6)
    for table in (parquet, arrow):
        np.testing.assert_array_equal(np.stack(table["embedding"].to_numpy()), x)
        assert table["domain"].to_pylist() == document["domains"]
        assert table["label_id"].to_pylist() == document["label_ids"]
    np.testing.assert_array_equal(np.asarray(document["embeddings"], np.float32), x)
    assert npz["label_ids"].tolist() == document["label_ids"]
    assert [str(npz["domains"][i]) for i in npz["sources"]] == document["domains"]
    footer = pq.read_metadata(io.BytesIO(answers["parquet"].content)).metadata
    for closed in (footer[RECEIPT_KEY.encode()], str(npz["receipt"])):
        assert json.loads(closed) == document["receipt"]
    opening = json.loads(arrow.schema.metadata[RECEIPT_KEY.encode()])
    assert opening["receipt"] == document["receipt"]["receipt"] | {"content": None}
    lines = [json.loads(line) for line in answers["ndjson"].text.splitlines()]
    assert [line["label_id"] for line in lines] == document["label_ids"]
    records = np.load(io.BytesIO(answers["npy"].content))
    np.testing.assert_array_equal(records["x"], x)
    assert records["domain"].tolist() == document["domains"]
    csv = pd.read_csv(io.BytesIO(answers["csv"].content), dtype={"e0": np.float32})
    np.testing.assert_array_equal(csv["e0"], x[:, 0])
    assert {answer.headers["X-FHV-Receipt"] for answer in answers.values()} == {
        document["receipt"]["id"]
    }
    receipt = document["receipt"]["receipt"]
    assert receipt["asked"]["mixture"] == {"site-a": 0.75, "site-b": 0.25}
    assert [code["domain"] for code in receipt["codes"]] == ["site-a", "site-b"]
    plain = {"Accept-Encoding": "identity"}
    short = await coordinator.call(
        "POST", "/synthesize", "scientist", json=body | {"n": 1_000}, headers=plain
    )
    assert short.headers["content-length"] == str(len(short.content))


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ("*/*", "application/json"),
        ("application/vnd.apache.arrow.stream", "application/vnd.apache.arrow.stream"),
        ("text/html, application/x-npz;q=0.3, */*;q=0.1", "application/x-npz"),
        (
            "application/json;q=0.5, application/vnd.apache.parquet",
            "application/vnd.apache.parquet",
        ),
        ("application/*, application/x-npz", "application/x-npz"),
        ("image/png", None),
        ("application/json;q=0", None),
        ("application/json;q=much", None),
    ],
)
def test_accept_chooses_the_format(accept: str, media: str | None) -> None:
    if media is None:
        with pytest.raises(NotAcceptable, match="served as application/json"):
            chosen(None, accept)
    else:
        assert FORMATS[chosen(None, accept)].media == media
    assert chosen("npz", accept) == "npz"
    assert chosen(None, None) == "json"


@pytest.mark.parametrize(
    ("change", "status", "code", "field"),
    [
        ({"n": 0}, 422, "invalid-request", "n"),
        ({"n": MAX_ROWS + 1}, 422, "invalid-request", "n"),
        ({"mixture": {"site-a": 0.0}}, 422, "invalid-request", None),
        ({"mixture": {"site-a": 1.5, "site-b": -0.5}}, 422, "invalid-request", None),
        ({"mode": "sample"}, 422, "invalid-request", None),
        ({"labels": {"z": 1.0}}, 422, "invalid-synthesis-request", "labels.z"),
        ({"temperature": 0}, 422, "invalid-request", "temperature"),
        ({"dtype": "int8"}, 422, "invalid-request", "dtype"),
        ({"columns": ["colour"]}, 422, "invalid-request", "columns.0"),
        ({"columns": ["domain", "domain"]}, 422, "invalid-request", "columns"),
        ({"mode": "mix"}, 422, "invalid-request", "mode"),
        ({"guidance": "maybe"}, 422, "invalid-request", "guidance"),
        ({"seed": -1}, 422, "invalid-request", "seed"),
        ({"seed": 2**63}, 422, "invalid-request", "seed"),
        ({"temperature": 4.1}, 422, "invalid-request", "temperature"),
        ({"n": None, "class_counts": {"a": -1}}, 422, "invalid-request", "class_counts.a"),
        ({"class_counts": {"a": 1}}, 422, "invalid-request", None),
        ({"run": ""}, 422, "invalid-request", "run"),
        ({"format": "xlsx"}, 422, "invalid-request", "format"),
        ({"n": 2_000_000}, 422, "invalid-synthesis-request", "n"),
        ({"mixture": {"nobody": 1.0}}, 422, "unknown-mixture-client", None),
        ({"n": None, "class_counts": {"z": 1}}, 422, "invalid-synthesis-request", None),
        ({"n": None}, 422, "invalid-request", None),
        ({"run": "nothing"}, 404, "not-found", "run"),
        ({"round": 3}, 404, "not-found", "round"),
        ({"colour": "red"}, 422, "invalid-request", "colour"),
    ],
)
async def test_bad_requests_for_synthesis_name_the_field(
    coordinator: Coordinator, change: dict, status: int, code: str, field: str | None
) -> None:
    await coordinator.enrol("site-a")
    run = await coordinator.run("site-a", privacy={"rounds": 0}, round={"quorum": 1})
    await coordinator.finish(run, "site-a")
    body = {"run": "run-1", "n": 3, **change}
    body = {k: v for k, v in body.items() if v is not None}
    response = await coordinator.call("POST", "/synthesize", "scientist", json=body)
    found = problem(response, status, code, field)
    if "mixture" in change:
        assert found["field"].startswith("mixture")
