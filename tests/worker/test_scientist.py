"""The data scientist's client against a real coordinator over HTTP, and against broken ones."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from torch.utils.data import DataLoader

from core.receipts.opening import made_with
from core.synthesis.export import load
from core.synthesis.request import SynthesisRequest
from core.wire.synthesis import Claim
from tests.worker import real
from worker import files
from worker.client import CoordinatorClient, Retry
from worker.errors import DownloadCorrupt, UnexpectedAnswer
from worker.scientist import (
    ApiProblem,
    Coordinator,
    FileNotMade,
    NotNow,
    Rows,
    Stream,
    Unreachable,
)
from worker.scientist.files import download

ROOT = Path(__file__).resolve().parents[2]
ONCE = Retry(attempts=1)


@pytest.fixture
def federation(database_url: str, tmp_path: Path) -> Iterator[real.Federation]:
    """With a run "wards" of two sites, trained for one round."""
    with real.federation(database_url, tmp_path) as fed:
        sites = {}
        for name in ("site-a", "site-b"):
            fed.enrol(name, f"{name}/all", site=name)
            sites[name] = fed.config(f"state-{name}", f"{name}/all", name)
        run = fed.start("wards", *sites)
        fed.complete(run, sites, rounds=2)
        yield fed


@pytest.fixture
def coordinator(
    federation: real.Federation, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Coordinator]:
    monkeypatch.setenv("FHV_COORDINATOR_URL", federation.url)
    monkeypatch.setenv("FHV_TOKEN", real.issue(federation.settings, "scientist"))
    with Coordinator() as found:
        yield found


def test_from_the_run_to_rows_and_their_proof(coordinator: Coordinator, tmp_path: Path) -> None:
    (run,) = coordinator.runs()
    assert (run.name, run.state, run.dim, run.classes) == ("wards", "completed", 6, ("a", "b", "c"))
    model = coordinator.model("wards")
    assert model.clients == ("site-a", "site-b")
    assert set(model.epsilon) == {"site-a", "site-b"}
    assert 0 < model.epsilon["site-a"] <= 4.0
    assert (model.unit, model.delta) == ("record", 1e-5)

    rows = coordinator.synthesize(
        "wards", 5000, mixture={"site-a": 3, "site-b": 1}, mode="sample", seed=7, columns=["domain"]
    )
    assert (len(rows), rows.dim, rows.run, rows.seed) == (5000, 6, "wards", 7)
    assert rows.epsilon == model.epsilon
    x, y = rows.numpy()
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((5000, 6), np.float32, (5000,), np.int64)
    assert [run.classes[i] for i in y] == rows.labels

    frame = rows.dataframe()
    assert list(frame.columns[:3]) == ["label", "label_id", "domain"]
    np.testing.assert_array_equal(frame[[f"e{i}" for i in range(6)]].to_numpy(), x)
    assert frame["label"].dtype == "category"
    assert 0.7 < (frame["domain"] == "site-a").mean() < 0.8

    batch, labels = next(iter(DataLoader(rows.torch(), batch_size=16)))
    np.testing.assert_array_equal(batch.numpy(), x[:16])
    np.testing.assert_array_equal(labels.numpy(), y[:16])
    assert rows.arrow().num_rows == 5000

    findings = coordinator.verify(rows)
    assert findings.good, findings.checks
    assert coordinator.verify(coordinator.receipt(rows.receipt["id"])).good
    other = Rows(rows.table.slice(1), rows.receipt)
    assert coordinator.verify(other).checks["rows"][0] is False
    forged = {**rows.receipt, "receipt": {**rows.receipt["receipt"], "n": 1}}
    assert coordinator.verify(forged).checks["signature"][0] is False

    saved = rows.save(tmp_path / "rows.parquet")
    assert pq.read_table(saved).equals(rows.table)
    generator, card = load(coordinator.export("wards", tmp_path))
    card.require_signature(coordinator.keys())
    again = SynthesisRequest(run="wards", n=5000, mixture={"site-a": 3, "site-b": 1}, mode="sample")
    np.testing.assert_array_equal(generator.sample(again, 7).x, x)


def test_a_stream_has_the_same_rows(coordinator: Coordinator, tmp_path: Path) -> None:
    asked = {"labels": {"a": 1.0, "c": 3.0}, "seed": 3}
    whole = coordinator.synthesize("wards", 10_000, **asked)
    with coordinator.stream("wards", 10_000, **asked) as stream:
        assert (stream.seed, stream.n) == (3, 10_000)
        assert stream.receipt["id"] == whole.receipt["id"]
        batches = list(stream)
    assert [len(batch) for batch in batches] == [4096, 4096, 1808]
    np.testing.assert_array_equal(
        np.concatenate([batch.numpy()[0] for batch in batches]), whole.numpy()[0]
    )
    assert [label for batch in batches for label in batch.labels] == whole.labels
    saved = batches[1].save(tmp_path / "batch.parquet")
    assert len(pq.read_table(saved)) == 4096
    closed = coordinator.receipt(stream.receipt["id"])
    assert closed["receipt"]["content"] == whole.receipt["receipt"]["content"]
    left_early = coordinator.stream("wards", 1_000_000)
    assert len(next(iter(left_early))) == 4096
    left_early.close()
    assert len(coordinator.runs()) == 1  # the connection is free for others


def test_refusals_are_typed(coordinator: Coordinator, tmp_path: Path) -> None:
    calls: list[tuple[Callable[[], object], str, str | None]] = [
        (lambda: coordinator.synthesize("nothing", 5), "not-found", "run"),
        (lambda: coordinator.model("nothing"), "not-found", "run"),
        (lambda: coordinator.export("nothing", tmp_path), "not-found", "run"),
        (lambda: coordinator.receipt("rcp_" + "0" * 32), "not-found", "receipt_id"),
        (
            lambda: coordinator.synthesize("wards", 5, mixture={"zz": 1}),
            "unknown-mixture-client",
            "mixture.zz",
        ),
        (
            lambda: coordinator.stream("wards", 5, mixture={"zz": 1}),
            "unknown-mixture-client",
            "mixture.zz",
        ),
    ]
    for call, code, field in calls:
        with pytest.raises(ApiProblem) as refused:
            call()
        assert (refused.value.problem, refused.value.field) == (code, field)
        assert refused.value.detail
    with pytest.raises(ValidationError, match="exactly one of n and class_counts"):
        coordinator.synthesize("wards")
    assert list(tmp_path.glob("*.safetensors")) == []


def test_a_file_that_a_worker_makes_has_the_same_bytes(
    coordinator: Coordinator, federation: real.Federation, tmp_path: Path
) -> None:
    def works() -> None:
        until = time.monotonic() + 20
        while not (ready := federation.sql("SELECT id FROM synthesis_jobs WHERE state = 'ready'")):
            assert time.monotonic() < until, "nobody asked for a file"
            time.sleep(0.05)
        job = federation.worker.claim_file(str(ready[0][0]), Claim(made_with=made_with()))
        store = federation.settings.object_store_url
        assert files.make(job, federation.worker, store, stop=threading.Event()) == "completed"

    asked: dict[str, Any] = {"mixture": {"site-a": 1.0}, "seed": 5}
    told: list[tuple[int, int]] = []
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(works)
        path = coordinator.file(
            "wards",
            tmp_path / "rows.parquet",
            9_000,
            progress=lambda *way: told.append(way),
            **asked,
        )
        working.result()
    rows = coordinator.synthesize("wards", 9_000, **asked)
    again = rows.save(tmp_path / "again.parquet")
    assert path.read_bytes() == again.read_bytes()
    assert told[-1] == (9_000, 9_000)


# --- coordinators that misbehave ---


class Broken:
    """Serves a file and breaks the line after so many bytes, each time."""

    def __init__(self, body: bytes, after: int) -> None:
        self.body, self.after, self.etag = body, after, '"1"'
        self.begun: list[int] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        at = int(request.headers.get("Range", "bytes=0-")[6:-1])
        if request.headers.get("If-Range", self.etag) != self.etag:
            at = 0
        self.begun.append(at)
        headers = {"ETag": self.etag}
        if at:
            headers["Content-Range"] = f"bytes {at}-{len(self.body) - 1}/{len(self.body)}"
        return httpx.Response(206 if at else 200, content=self._cut(at), headers=headers)

    def _cut(self, at: int) -> Iterator[bytes]:
        yield self.body[at : at + self.after]
        if at + self.after < len(self.body):
            raise httpx.ReadError("cut")


def test_a_broken_download_is_continued_as_long_as_it_gets_on() -> None:
    broken, file = Broken(bytes(range(100)), 40), io.BytesIO()
    download(connected(broken)._client, "/file", file)
    assert file.getvalue() == broken.body
    assert broken.begun == [0, 40, 80]
    broken = Broken(bytes(100), 0)
    with pytest.raises(Unreachable):
        download(connected(broken)._client, "/file", io.BytesIO())


def test_a_download_never_joins_two_files() -> None:
    broken = Broken(bytes(100), 40)

    def other_file(request: httpx.Request) -> httpx.Response:
        answer = broken(request)
        broken.etag = '"2"'
        return answer

    with pytest.raises(DownloadCorrupt):
        download(connected(other_file)._client, "/file", io.BytesIO())


def test_a_file_that_is_not_made_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.scientist.files._PAUSE_S", 0.0)
    states = iter(["ready", "leased", "failed"])

    def job(_: httpx.Request) -> httpx.Response:
        shown = {"id": "j", "rows": 5, "rows_done": 0, "why": "file-failed: no disk"}
        return httpx.Response(200, json={**shown, "state": next(states)})

    with pytest.raises(FileNotMade, match="no disk"):
        connected(job).file("wards", tmp_path / "rows.parquet", 5)
    assert list(tmp_path.iterdir()) == []


def connected(
    handler: Callable[[httpx.Request], httpx.Response], retry: Retry = ONCE
) -> Coordinator:
    found = Coordinator("http://api.test", "fhv_scientist_x", retry=retry)
    found._client = CoordinatorClient(
        "http://api.test", "fhv_scientist_x", retry=retry, transport=httpx.MockTransport(handler)
    )
    return found


def test_a_quota_is_told_with_its_reason_and_its_end() -> None:
    body = {"code": "quota-exceeded", "detail": "1,000 rows a day are used up.", "mend": "Wait."}
    kind = {"Content-Type": "application/problem+json", "Retry-After": "7"}
    refused = httpx.Response(429, json=body, headers=kind)
    coordinator = connected(lambda _: refused)
    for call in (coordinator.synthesize, coordinator.stream):
        with pytest.raises(NotNow) as busy:
            call("wards", 5)
        found = busy.value
        assert (found.problem, found.detail) == ("quota-exceeded", "1,000 rows a day are used up.")
        assert (found.retry_after_s, found.mend) == (7.0, "Wait.")
        assert "used up" in str(busy.value)


def test_nobody_waits_for_a_quota_that_ends_tomorrow(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    refused = httpx.Response(429, headers={"Retry-After": "40000"})
    coordinator = connected(lambda _: refused, Retry(attempts=8, total_s=60.0))
    with pytest.raises(NotNow):
        coordinator.synthesize("wards", 5)
    assert slept == []


def test_what_is_busy_now_is_asked_again() -> None:
    answers = iter([httpx.Response(503, headers={"Retry-After": "0"}), arrow_answer(ipc(3), n=3)])
    coordinator = connected(lambda _: next(answers), Retry(attempts=2, first_s=0.0, jitter_s=0.0))
    assert sum(len(batch) for batch in coordinator.stream("wards", 3)) == 3


def ipc(rows: int, n: int | None = None) -> bytes:
    """An Arrow stream of rows whose receipt says ``n``."""
    receipt = f'{{"id": "x", "receipt": {{"n": {n or rows}, "asked": {{"seed": 1}}}}}}'
    schema = pa.schema(
        [("embedding", pa.list_(pa.float32(), 2)), ("label_id", pa.int32())],
        metadata={"fedhypevae.receipt": receipt},
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        for start in range(0, rows, 4096):
            size = min(4096, rows - start)
            flat = pa.array(np.ones(2 * size, np.float32))
            columns = [
                pa.FixedSizeListArray.from_arrays(flat, 2), pa.array(np.zeros(size), pa.int32()),
            ]  # fmt: skip
            writer.write_batch(pa.record_batch(columns, schema=schema))
    return sink.getvalue().to_pybytes()


def arrow_answer(body: bytes, n: int) -> httpx.Response:
    return httpx.Response(200, content=body, headers={"X-FHV-Seed": "1"})


def test_a_stream_that_is_cut_never_just_ends() -> None:
    body = ipc(9_000)

    def cut() -> Iterator[bytes]:
        yield body[: len(body) // 2]
        raise httpx.RemoteProtocolError("the peer closed the connection")

    coordinator = connected(lambda _: httpx.Response(200, content=cut()))
    stream = coordinator.stream("wards", 9_000)
    with pytest.raises(Unreachable):
        list(stream)
    # Cut between two batches, by somebody who closes in good order.
    short = connected(lambda _: httpx.Response(200, content=ipc(4096, n=9_000)))
    with pytest.raises(UnexpectedAnswer, match=r"after 4,096 of 9,000 rows"):
        list(short.stream("wards", 9_000))


@pytest.mark.parametrize("body", [b"", b"PAR1", b"\xff\xff\xff\xff\x00\x00\x00\x01"])
def test_what_is_no_answer_is_named(body: bytes) -> None:
    headers = {"X-FHV-Seed": "1", "X-FHV-Model": "x"}
    coordinator = connected(lambda _: httpx.Response(200, content=body, headers=headers))
    with pytest.raises(UnexpectedAnswer):
        coordinator.stream("wards", 5)
    with pytest.raises(UnexpectedAnswer):
        coordinator.synthesize("wards", 5)


def test_an_export_that_was_damaged_on_its_way_is_not_kept(tmp_path: Path) -> None:
    etag = {"ETag": '"sha256:' + "0" * 64 + '"'}
    coordinator = connected(lambda _: httpx.Response(200, content=b"x", headers=etag))
    with pytest.raises(DownloadCorrupt):
        coordinator.export("wards", tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_it_needs_neither_torch_nor_pandas_before_they_are_asked_for() -> None:
    code = (
        "import sys; import worker.scientist; "
        "print(sorted({'torch', 'pandas', 'opacus', 'celery', 'sqlalchemy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    body = ipc(2)  # first: pyarrow looks for pandas once, when it makes its first array
    monkeypatch.setitem(sys.modules, "pandas", None)
    with connected(lambda _: arrow_answer(body, n=2)).stream("wards", 2) as stream:
        (rows,) = stream
    with pytest.raises(ImportError, match="pip install pandas"):
        rows.dataframe()
    assert isinstance(stream, Stream)
