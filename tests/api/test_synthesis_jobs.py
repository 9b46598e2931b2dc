"""Synthesis jobs: the same bytes as the stream, under leases, cancelled, expired, downloaded."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from api.db.synthesis_models import SynthesisJob, SynthesisPart
from api.synthesis_jobs import making
from core.receipts.content import Content
from core.receipts.opening import made_with
from core.storage import sha256_of
from core.synthesis.formats import FORMATS
from core.synthesis.sampler import Generator
from core.wire import synthesis as wire
from core.wire.jobs import TASK_SYNTHESISE
from core.wire.messages import LEASE_HEADER
from tests.api.support import Coordinator, problem
from worker.files import parts_of

BODY = {"run": "run-1", "n": 5_000, "seed": 7, "mixture": {"site-a": 1, "site-b": 3}}
CLAIM = {"made_with": made_with().model_dump(mode="json")}
PART = 40_000


@pytest.fixture
async def run(coordinator: Coordinator) -> dict[str, Any]:
    await coordinator.enrol("site-a", "site-b")
    run = await coordinator.run("site-a", "site-b", privacy={"rounds": 0})
    await coordinator.finish(run, "site-a", "site-b")
    return run


async def ask(coordinator: Coordinator, who: str = "scientist", **asked: Any) -> dict[str, Any]:
    answer = await coordinator.call("POST", "/v1/synthesis-jobs", who, json=BODY | asked)
    assert answer.status_code == 202, answer.text
    made: dict[str, Any] = answer.json()
    assert answer.headers["Location"] == f"/v1/synthesis-jobs/{made['id']}"
    assert "RateLimit" in answer.headers
    return made


async def claim(coordinator: Coordinator, made: dict[str, Any]) -> wire.SynthesisJob:
    path = f"/v1/synthesis-jobs/{made['id']}/claim"
    return wire.SynthesisJob.model_validate(
        await coordinator.ok("POST", path, "worker", json=CLAIM)
    )


async def tell(coordinator: Coordinator, job: wire.SynthesisJob, what: str, body: Any) -> Any:
    return await coordinator.call(
        "POST",
        f"/v1/synthesis-jobs/{job.job_id}/{what}",
        "worker",
        json=body,
        headers={LEASE_HEADER: job.lease_token},
    )


async def report(
    coordinator: Coordinator, job: wire.SynthesisJob, number: int, body: bytes, rows: int = 0
) -> Any:
    stored = coordinator.ctx.store.put(body)
    part = {"number": number, "digest": stored.digest, "size": stored.size, "rows": rows}
    return await tell(coordinator, job, "parts", part)


async def make(coordinator: Coordinator, job: wire.SynthesisJob) -> bytes:
    """As ``worker.files`` does it, but for its parts being small and the closed receipt fetched
    beforehand: this test has one thread only.
    """
    store = coordinator.ctx.store
    generator = Generator.load(store.get(job.frame), store.get(job.weights), job.spec)
    found: list[Content] = []

    def keep(content: Content) -> dict[str, Any]:
        found.append(content)
        return {}

    for _ in FORMATS[job.format].pieces(
        generator.document(job.request, job.seed, lambda _: job.receipt, keep)
    ):
        pass
    closed = await tell(coordinator, job, "close", found[0].model_dump(mode="json"))
    assert closed.status_code == 200, closed.text
    document = generator.document(
        job.request, job.seed, lambda _: job.receipt, lambda _: closed.json()
    )
    bodies = list(parts_of(FORMATS[job.format].pieces(document), PART))
    for number, body in enumerate(bodies):
        answer = await report(coordinator, job, number, body, min(5_000, 1_000 * number))
        assert answer.status_code == 200, answer.text
    whole = b"".join(bodies)
    done = await tell(coordinator, job, "complete", {"parts": len(bodies), "size": len(whole)})
    assert done.status_code == 204, done.text
    return whole


async def shown(coordinator: Coordinator, made: dict[str, Any]) -> dict[str, Any]:
    return dict(await coordinator.ok("GET", f"/v1/synthesis-jobs/{made['id']}", "scientist"))


@pytest.mark.parametrize("kind", sorted(FORMATS))
async def test_the_file_is_the_streamed_answer(
    coordinator: Coordinator, run: dict[str, Any], kind: str
) -> None:
    streamed = await coordinator.call(
        "POST",
        "/v1/synthesize",
        "scientist",
        json=BODY | {"format": kind},
        headers={"Accept-Encoding": "identity"},
    )
    made = await ask(coordinator, format=kind)
    assert (made["state"], made["rows"], made["rows_done"], made["file"]) == (
        "ready",
        5_000,
        0,
        None,
    )
    assert "queue synthesis" in made["why"]
    (message,) = await coordinator.messages(TASK_SYNTHESISE)
    assert (str(message.subject), message.queue) == (made["id"], "synthesis")
    job = await claim(coordinator, made)
    assert (await shown(coordinator, made))["state"] == "leased"
    whole = await make(coordinator, job)
    assert whole == streamed.content
    done = await shown(coordinator, made)
    assert (done["state"], done["rows_done"], done["size"]) == ("done", 5_000, len(whole))
    assert done["receipt_id"] == streamed.headers["X-FHV-Receipt"]
    file = await coordinator.call("GET", done["file"], "scientist")
    assert file.content == whole
    assert file.headers["ETag"] == streamed.headers["ETag"]
    assert file.headers["content-type"].split(";")[0] == FORMATS[kind].media
    assert file.headers["content-length"] == str(len(whole))
    assert file.headers["content-disposition"].endswith(f'seed-7.{kind}"')
    receipt = await coordinator.ok("GET", done["receipt"], "auditor")
    assert receipt["receipt"]["content"]["n"] == 5_000
    scraped = (await coordinator.call("GET", "/metrics", "auditor")).text
    for way in ("answer", "file"):
        assert f'fhv_synthesis_rows_total{{format="{kind}",way="{way}"}} 5000.0' in scraped


async def test_ranges_go_over_parts(coordinator: Coordinator, run: dict[str, Any]) -> None:
    made = await ask(coordinator, format="npy")
    whole = await make(coordinator, await claim(coordinator, made))
    path = (await shown(coordinator, made))["file"]
    size = len(whole)
    assert size > 3 * PART
    etag = (await coordinator.call("GET", path, "scientist")).headers["ETag"]
    for text, first, last in (
        (f"bytes={PART - 3}-{2 * PART + 5}", PART - 3, 2 * PART + 5),
        (f"bytes={PART}-{PART}", PART, PART),
        ("bytes=-10", size - 10, size - 1),
        (f"bytes={size - 1}-", size - 1, size - 1),
        ("bytes=0-99999999", 0, size - 1),
    ):
        answer = await coordinator.call(
            "GET", path, "scientist", headers={"Range": text, "If-Range": etag}
        )
        assert answer.status_code == 206
        assert answer.content == whole[first : last + 1]
        assert answer.headers["content-range"] == f"bytes {first}-{last}/{size}"
    changed = {"Range": "bytes=0-1", "If-Range": '"other"'}
    assert (await coordinator.call("GET", path, "scientist", headers=changed)).content == whole
    known = await coordinator.call("GET", path, "scientist", headers={"If-None-Match": etag})
    assert (known.status_code, known.content) == (304, b"")
    beyond = await coordinator.call("GET", path, "scientist", headers={"Range": f"bytes={size}-"})
    problem(beyond, 416, "range-not-satisfiable", "Range")


async def test_large_requests_are_sent_to_jobs(
    coordinator: Coordinator, run: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(coordinator.ctx.settings), "synthesis_job_rows", 4_999, raising=False)
    settings = coordinator.ctx.settings.model_copy(update={"synthesis_job_rows": 4_999})
    object.__setattr__(coordinator.ctx, "settings", settings)
    answer = await coordinator.call("POST", "/synthesize", "scientist", json=BODY)
    assert "/v1/synthesis-jobs" in problem(answer, 422, "job-needed", "n")["mend"]
    assert (await ask(coordinator))["state"] == "ready"


@pytest.mark.parametrize(
    ("change", "status", "code", "field"),
    [
        ({"n": 0}, 422, "invalid-request", "n"),
        ({"mixture": {"nobody": 1}}, 422, "unknown-mixture-client", "mixture.nobody"),
        ({"labels": {"z": 1}}, 422, "invalid-synthesis-request", "labels.z"),
        ({"run": "nothing"}, 404, "not-found", "run"),
        ({"round": 7}, 404, "not-found", "round"),
    ],
)
async def test_wrong_requests_are_refused_when_they_are_made(
    coordinator: Coordinator,
    run: dict[str, Any],
    change: dict[str, Any],
    status: int,
    code: str,
    field: str,
) -> None:
    answer = await coordinator.call("POST", "/v1/synthesis-jobs", "scientist", json=BODY | change)
    problem(answer, status, code, field)
    assert await coordinator.rows(SynthesisJob) == []


async def test_a_repeated_request_makes_one_job(
    coordinator: Coordinator, run: dict[str, Any]
) -> None:
    key = {"Idempotency-Key": "once"}
    path = "/v1/synthesis-jobs"
    first = await coordinator.call("POST", path, "scientist", json=BODY, headers=key)
    again = await coordinator.call("POST", path, "scientist", json=BODY, headers=key)
    assert first.json() == again.json()
    assert again.headers["Idempotency-Replayed"] == "true"
    assert len(await coordinator.rows(SynthesisJob)) == 1
    used = await coordinator.ok("GET", "/v1/usage", "scientist")
    assert used["rows_today"] == 5_000


async def test_jobs_are_their_owners(coordinator: Coordinator, run: dict[str, Any]) -> None:
    mine = await ask(coordinator)
    coordinator.tokens["other"] = await coordinator.token("scientist")
    theirs = await ask(coordinator, "other")
    for method, suffix in (("GET", ""), ("GET", "/file"), ("DELETE", "")):
        answer = await coordinator.call(method, f"/v1/synthesis-jobs/{mine['id']}{suffix}", "other")
        problem(answer, 404, "not-found")
    own = await coordinator.ok("GET", "/v1/synthesis-jobs", "other")
    assert [item["id"] for item in own["items"]] == [theirs["id"]]
    page = await coordinator.ok("GET", "/v1/synthesis-jobs?limit=1", "admin")
    rest = await coordinator.ok("GET", f"/v1/synthesis-jobs?after={page['next']}", "admin")
    assert [item["id"] for item in page["items"] + rest["items"]] == [mine["id"], theirs["id"]]
    problem(await coordinator.call("GET", "/v1/synthesis-jobs", "worker"), 403, "forbidden")


async def test_few_jobs_of_a_token_are_under_way(
    coordinator: Coordinator, run: dict[str, Any]
) -> None:
    most = coordinator.ctx.settings.synthesis_jobs_per_token
    jobs = [await ask(coordinator, seed=number) for number in range(most)]
    answer = await coordinator.call("POST", "/v1/synthesis-jobs", "scientist", json=BODY)
    problem(answer, 429, "too-many-answers")
    assert int(answer.headers["Retry-After"]) > 0
    await coordinator.ok("DELETE", f"/v1/synthesis-jobs/{jobs[0]['id']}", "scientist")
    await ask(coordinator)
    not_charged = await coordinator.ok("GET", "/v1/usage", "scientist")
    assert not_charged["rows_today"] == 5_000 * (most + 1)


async def test_a_killed_worker_changes_nothing(
    coordinator: Coordinator, run: dict[str, Any]
) -> None:
    made = await ask(coordinator, format="npy")
    first = await claim(coordinator, made)
    assert (await report(coordinator, first, 0, b"x" * 10, rows=100)).status_code == 200
    held = await coordinator.call(
        "POST", f"/v1/synthesis-jobs/{made['id']}/claim", "worker", json=CLAIM
    )
    problem(held, 409, "work-leased")
    coordinator.pass_time(coordinator.ctx.settings.job_lease_s + 1)
    await coordinator.sweep()
    given_back = await shown(coordinator, made)
    assert (given_back["state"], given_back["why"]) == ("ready", "the worker's lease ended")
    coordinator.pass_time(3)
    second = await claim(coordinator, made)
    assert second.receipt == first.receipt
    problem(await report(coordinator, first, 1, b"late"), 409, "lease-lost")
    for what, body in (
        ("complete", {"parts": 1, "size": 10}),
        ("fail", {"code": "x", "detail": ""}),
        ("close", {"n": 5_000, "digest": "sha256:" + "0" * 64}),
    ):
        problem(await tell(coordinator, first, what, body), 409, "lease-lost")
    whole = await make(coordinator, second)
    done = wire.FileMade(parts=-(-len(whole) // PART), size=len(whole)).model_dump(mode="json")
    problem(await report(coordinator, second, done["parts"], b"more"), 409, "lease-lost")
    assert (await tell(coordinator, second, "complete", done)).status_code == 204
    file = await coordinator.call("GET", f"/v1/synthesis-jobs/{made['id']}/file", "scientist")
    assert file.content == whole
    assert (await shown(coordinator, made))["attempt"] == 2
    # What the first attempt left is deleted, what the file is made of stays.
    assert coordinator.ctx.store.exists(sha256_of(b"x" * 10))
    await coordinator.sweep()
    assert not coordinator.ctx.store.exists(sha256_of(b"x" * 10))
    file = await coordinator.call("GET", f"/v1/synthesis-jobs/{made['id']}/file", "scientist")
    assert file.content == whole


async def test_parts_come_in_order_are_stored_and_the_same_again_is_accepted(
    coordinator: Coordinator, run: dict[str, Any]
) -> None:
    job = await claim(coordinator, await ask(coordinator))
    problem(await report(coordinator, job, 1, b"second"), 409, "conflict", "number")
    assert (await report(coordinator, job, 0, b"first")).status_code == 200
    assert (await report(coordinator, job, 0, b"first")).status_code == 200
    problem(await report(coordinator, job, 0, b"other"), 409, "conflict", "digest")
    missing = {"number": 1, "digest": "sha256:" + "0" * 64, "size": 3, "rows": 1}
    problem(await tell(coordinator, job, "parts", missing), 409, "part-missing")
    many = await report(coordinator, job, 1, b"second", rows=5_001)
    problem(many, 422, "invalid-request", "rows")
    wrong = await tell(coordinator, job, "complete", {"parts": 2, "size": 5})
    problem(wrong, 409, "conflict")
    wrong = await tell(coordinator, job, "close", {"n": 4, "digest": "sha256:" + "0" * 64})
    problem(wrong, 409, "conflict", "n")
    assert len(await coordinator.rows(SynthesisJob)) == 1


async def test_attempts_are_few(coordinator: Coordinator, run: dict[str, Any]) -> None:
    made = await ask(coordinator)
    for attempt in range(1, coordinator.ctx.settings.job_attempts + 1):
        job = await claim(coordinator, made)
        failure = {"code": "file-failed", "detail": "MemoryError"}
        assert (await tell(coordinator, job, "fail", failure)).status_code == 204
        seen = await shown(coordinator, made)
        assert (seen["attempt"], seen["why"]) == (attempt, "file-failed: MemoryError")
        coordinator.pass_time(61)
    assert seen["state"] == "failed"
    gone = await coordinator.call("GET", f"/v1/synthesis-jobs/{made['id']}/file", "scientist")
    problem(gone, 410, "file-gone")
    problem(
        await coordinator.call(
            "POST", f"/v1/synthesis-jobs/{made['id']}/claim", "worker", json=CLAIM
        ),
        409,
        "work-gone",
    )


async def test_a_cancelled_job_is_told_to_its_worker_and_leaves_nothing(
    coordinator: Coordinator, run: dict[str, Any]
) -> None:
    made = await ask(coordinator)
    not_yet = await coordinator.call("GET", f"/v1/synthesis-jobs/{made['id']}/file", "scientist")
    problem(not_yet, 409, "file-not-ready")
    job = await claim(coordinator, made)
    assert (await report(coordinator, job, 0, b"before")).status_code == 200
    for _ in range(2):
        await coordinator.ok("DELETE", f"/v1/synthesis-jobs/{made['id']}", "scientist")
    problem(await report(coordinator, job, 1, b"after"), 409, "work-gone")
    problem(await tell(coordinator, job, "complete", {"parts": 2, "size": 11}), 409, "work-gone")
    assert (await shown(coordinator, made))["state"] == "cancelled"
    await making.look_after(coordinator.ctx)
    for body in (b"before", b"after"):
        assert not coordinator.ctx.store.exists(sha256_of(body))


async def test_files_have_their_time_and_shared_bytes_stay(
    coordinator: Coordinator, run: dict[str, Any]
) -> None:
    first, second = [await ask(coordinator, format="npy") for _ in range(2)]
    whole = await make(coordinator, await claim(coordinator, first))
    coordinator.pass_time(3_600)
    assert await make(coordinator, await claim(coordinator, second)) == whole
    ttl = timedelta(seconds=coordinator.ctx.settings.synthesis_job_ttl_s)
    coordinator.pass_time(ttl.total_seconds() - 1_800)
    await coordinator.sweep()
    assert (await shown(coordinator, first))["state"] == "expired"
    gone = await coordinator.call("GET", f"/v1/synthesis-jobs/{first['id']}/file", "scientist")
    problem(gone, 410, "file-gone")
    kept = await coordinator.call("GET", f"/v1/synthesis-jobs/{second['id']}/file", "scientist")
    assert kept.content == whole
    coordinator.pass_time(3_600)
    for _ in range(3):
        await coordinator.sweep()
    assert (await shown(coordinator, second))["state"] == "expired"
    async with coordinator.ctx.database.read() as session:
        assert await session.get(SynthesisPart, (second["id"], 1, 0)) is None
    assert not coordinator.ctx.store.exists(sha256_of(whole[:PART]))
    kinds = [event["kind"] for event in (await coordinator.ok("GET", "/v1/events"))["items"]]
    assert kinds.count("synthesis-job-expired") == 2


async def test_who_withdraws_is_in_no_file_from_then_on(
    coordinator: Coordinator, run: dict[str, Any]
) -> None:
    done, waiting = [await ask(coordinator, format="npy", seed=seed) for seed in range(2)]
    await make(coordinator, await claim(coordinator, done))
    path = f"/v1/clients/{coordinator.clients['site-a']}/revoke"
    await coordinator.ok("POST", path, json={"why": "asked to"})
    file = await coordinator.call("GET", f"/v1/synthesis-jobs/{done['id']}/file", "scientist")
    problem(file, 410, "client-withdrawn", "mixture.site-a")
    refused = await coordinator.call(
        "POST", f"/v1/synthesis-jobs/{waiting['id']}/claim", "worker", json=CLAIM
    )
    problem(refused, 410, "client-withdrawn")
    seen = await shown(coordinator, waiting)
    assert (seen["state"], seen["why"].partition(":")[0]) == ("failed", "client-withdrawn")
