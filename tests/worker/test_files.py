"""Files of rows by the worker's own code, against a real coordinator over HTTP."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from core.receipts.opening import made_with
from core.storage import ObjectStore, Stored
from core.synthesis.formats import FORMATS
from core.wire.synthesis import Claim, SynthesisJob
from tests.worker.real import Federation, federation, issue
from worker import files
from worker.errors import ApiProblem

BODY = {"run": "first", "n": 9_000, "seed": 7, "mixture": {"site-a": 1, "site-b": 1}}
CLAIM = Claim(made_with=made_with())


@pytest.fixture
def fed(database_url: str, tmp_path: Path) -> Iterator[Federation]:
    with federation(database_url, tmp_path) as made:
        for name in ("site-a", "site-b"):
            made.enrol(name, f"{name}/all")
        run = made.start("first", "site-a", "site-b", privacy={"rounds": 0})
        sites = {name: made.config(name, f"{name}/all", name) for name in ("site-a", "site-b")}
        made.complete(run, sites)
        yield made


@pytest.fixture
def http(fed: Federation) -> Iterator[httpx.Client]:
    headers = {
        "Authorization": f"Bearer {issue(fed.settings, 'scientist')}",
        "Accept-Encoding": "identity",
    }
    with httpx.Client(base_url=fed.url, headers=headers, timeout=30) as client:
        yield client


def asked(fed: Federation, http: httpx.Client, **changes: Any) -> tuple[str, SynthesisJob]:
    answer = http.post("/v1/synthesis-jobs", json=BODY | changes)
    assert answer.status_code == 202, answer.text
    job_id = str(answer.json()["id"])
    return job_id, fed.worker.claim_file(job_id, CLAIM)


def make(fed: Federation, job: SynthesisJob) -> str:
    return files.make(job, fed.worker, fed.settings.object_store_url, stop=threading.Event())


@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_a_worker_makes_the_streamed_answer(
    fed: Federation, http: httpx.Client, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(files.parts_of, "__defaults__", (100_000,))
    job_id, job = asked(fed, http, format=kind)
    assert make(fed, job) == "completed"
    shown = http.get(f"/v1/synthesis-jobs/{job_id}").json()
    assert (shown["state"], shown["rows_done"]) == ("done", 9_000)
    file = http.get(shown["file"])
    streamed = http.post("/v1/synthesize", json=BODY | {"format": kind})
    assert file.content == streamed.content
    assert file.headers["ETag"] == streamed.headers["ETag"]
    parts = fed.sql("SELECT count(*) FROM synthesis_parts")[0][0]
    assert parts == -(-len(file.content) // 100_000) > 1


def test_parts_hold_all_bytes_in_order() -> None:
    pieces = [b"a" * 3, b"", b"b" * 10, b"c"]
    assert list(files.parts_of(iter(pieces), 4)) == [b"aaab", b"bbbb", b"bbbb", b"bc"]
    assert list(files.parts_of(iter([b"abcd"]), 4)) == [b"abcd"]
    assert list(files.parts_of(iter([]), 4)) == []


def test_a_part_that_is_missing_is_stored_again(
    fed: Federation, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_PAUSE_S", 0.01)
    real, stored = ObjectStore.put, list[str]()

    def loses_the_first(store: ObjectStore, body: bytes) -> Stored:
        found = real(store, body)
        stored.append(found.digest)
        if len(stored) == 1:
            store.delete(found.digest)
        return found

    monkeypatch.setattr(ObjectStore, "put", loses_the_first)
    job_id, job = asked(fed, http)
    assert make(fed, job) == "completed"
    assert stored[0] == stored[1]
    file = http.get(f"/v1/synthesis-jobs/{job_id}/file")
    assert file.content == http.post("/synthesize", json=BODY | {"format": "parquet"}).content


def test_a_cancelled_job_is_given_up(fed: Federation, http: httpx.Client) -> None:
    job_id, job = asked(fed, http)
    assert http.delete(f"/v1/synthesis-jobs/{job_id}").status_code == 204
    assert make(fed, job) == "work-gone"
    assert http.get(f"/v1/synthesis-jobs/{job_id}").json()["state"] == "cancelled"


def test_a_worker_that_stops_gives_its_job_back(fed: Federation, http: httpx.Client) -> None:
    job_id, job = asked(fed, http)
    stop = threading.Event()
    stop.set()
    assert files.make(job, fed.worker, fed.settings.object_store_url, stop=stop) == files.STOPPED
    shown = http.get(f"/v1/synthesis-jobs/{job_id}").json()
    assert (shown["state"], shown["why"]) == (
        "ready", "worker-stopped: the worker was told to stop",
    )  # fmt: skip


def test_faults_are_named_and_tried_again(
    fed: Federation, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id, job = asked(fed, http)

    def broken(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("core.synthesis.sampler.Generator.load", broken)
    assert make(fed, job) == files.FAILED
    shown = http.get(f"/v1/synthesis-jobs/{job_id}").json()
    assert shown["state"] == "ready"
    assert shown["why"].startswith("file-failed: MemoryError")
    fed.sql("DELETE FROM objects WHERE false")
    lost_id, lost = asked(fed, http, seed=8)
    ObjectStore(fed.settings.object_store_url).delete(lost.frame)
    assert make(fed, lost) == "object-missing"
    gone = http.get(f"/v1/synthesis-jobs/{lost_id}").json()
    assert (gone["state"], gone["why"].partition(":")[0]) == ("failed", "object-missing")


def test_a_message_that_comes_twice_does_no_harm(fed: Federation, http: httpx.Client) -> None:
    job_id, job = asked(fed, http)
    with pytest.raises(ApiProblem) as refused:
        fed.worker.claim_file(job_id, CLAIM)
    assert (refused.value.problem, refused.value.final) == ("work-leased", True)
    assert make(fed, job) == "completed"
    with pytest.raises(ApiProblem) as refused:
        fed.worker.claim_file(job_id, CLAIM)
    assert (refused.value.problem, refused.value.final) == ("work-gone", True)
