"""Formats: read back with the library that their users have, equal across formats, in pieces."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from core.federation.plan import Noise
from core.privacy.noise import seeded
from core.receipts.content import content_of
from core.simulation import SimulatedSite, simulate
from core.synthesis.formats import FORMATS, RECEIPT_KEY, Document, whole
from core.synthesis.request import SynthesisRequest
from core.synthesis.rows import Block, Rows
from core.synthesis.sampler import Generator
from core.synthesis.streams import BLOCK_ROWS
from tests.core import worlds

RECEIPT = {"model": "sha256:x", "seed": 5}
N = 5 * BLOCK_ROWS + 3  # two row groups


@pytest.fixture(scope="module")
def generator() -> Generator:
    sites = [SimulatedSite(name, worlds.clusters(300, seed=i)) for i, name in enumerate("ab")]
    noise = Noise(sketch_multiplier=0.01, train_multiplier=0.05)
    spec = worlds.spec(privacy={"rounds": 0}, noise=noise)
    return simulate(spec, sites, noise=seeded(0), secret=worlds.SECRET).generator


def document(generator: Generator, n: int = N, **asked: object) -> Document:
    usual = {"run": "r", "n": n, "mixture": {"a": 1, "b": 3}, "mode": "sample"}
    request = SynthesisRequest.model_validate(usual | asked)
    return generator.document(
        request, 5, lambda _: RECEIPT, lambda content: RECEIPT | {"content": content.digest}
    )


def closed(made: Document) -> dict[str, object]:
    return RECEIPT | {"content": content_of(made.rows).digest}


def tables(made: Document) -> Iterator[pa.Table]:
    parquet = whole("parquet", made)
    assert pq.ParquetFile(io.BytesIO(parquet)).num_row_groups == -(-made.n // (4 * BLOCK_ROWS))
    found = pq.read_metadata(io.BytesIO(parquet)).metadata[RECEIPT_KEY.encode()]
    assert json.loads(found) == closed(made)
    yield pq.read_table(io.BytesIO(parquet))
    streamed = pa.ipc.open_stream(whole("arrow", made)).read_all()
    assert json.loads(streamed.schema.metadata[RECEIPT_KEY.encode()]) == RECEIPT
    yield streamed


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_all_formats_say_the_same(generator: Generator, dtype: str) -> None:
    made = document(generator, dtype=dtype, columns=["code_id", "domain"])
    x = np.concatenate([block.x for block in made.rows]).astype(dtype)
    y = np.concatenate([block.y for block in made.rows])
    domains = [made.codes[i].domain for i in np.concatenate([block.source for block in made.rows])]
    assert set(domains) == {"a", "b"}
    for table in tables(made):
        assert table.column_names == ["embedding", "label", "label_id", "code_id", "domain"]
        assert table.schema.field("embedding").type.value_type == pa.from_numpy_dtype(dtype)
        flat = table["embedding"].combine_chunks().values.to_numpy()
        np.testing.assert_array_equal(flat.reshape(x.shape), x)
        assert table["label"].to_pylist() == [made.classes[i] for i in y]
        assert table["label_id"].to_pylist() == y.tolist()
        assert table["domain"].to_pylist() == domains
    archive = np.load(io.BytesIO(whole("npz", made)), allow_pickle=False)
    assert archive["embeddings"].dtype == dtype
    np.testing.assert_array_equal(archive["embeddings"], x)
    np.testing.assert_array_equal(archive["label_ids"], y)
    assert archive["classes"].tolist() == list(made.classes)
    assert archive["domains"][archive["sources"]].tolist() == domains
    assert len(set(archive["code_ids"].tolist())) == 2
    assert json.loads(str(archive["receipt"])) == closed(made)
    text = json.loads(whole("json", made))
    np.testing.assert_array_equal(np.asarray(text["embeddings"], dtype), x)
    assert (text["label_ids"], text["domains"]) == (y.tolist(), domains)
    assert (text["n"], text["classes"], text["receipt"]) == (N, list(made.classes), closed(made))
    lines = [json.loads(line) for line in whole("ndjson", made).splitlines()]
    np.testing.assert_array_equal(np.asarray([line["embedding"] for line in lines], dtype), x)
    assert [line["label_id"] for line in lines] == y.tolist()
    assert [line["label"] for line in lines] == [made.classes[i] for i in y]
    assert [line["domain"] for line in lines] == domains
    records = np.load(io.BytesIO(whole("npy", made)), allow_pickle=False)
    assert records["x"].dtype == dtype
    np.testing.assert_array_equal(records["x"], x)
    np.testing.assert_array_equal(records["y"], y)
    assert records["domain"].tolist() == domains
    frame = pd.read_csv(io.BytesIO(whole("csv", made)), dtype={f"e{i}": dtype for i in range(12)})
    np.testing.assert_array_equal(frame.filter(regex=r"^e\d").to_numpy(), x)
    assert frame["label_id"].tolist() == y.tolist()
    assert frame["domain"].tolist() == domains
    assert frame["label"].tolist() == [made.classes[i] for i in y]


@pytest.mark.parametrize("n", [1, BLOCK_ROWS])
def test_without_more_columns_and_with_one_block(generator: Generator, n: int) -> None:
    made = document(generator, n=n, mixture="neutral", mode="blend")
    for table in tables(made):
        assert table.column_names == ["embedding", "label", "label_id"]
        assert len(table) == n
    archive = np.load(io.BytesIO(whole("npz", made)))
    assert sorted(archive) == ["classes", "embeddings", "label_ids", "receipt"]
    assert "domains" not in json.loads(whole("json", made))
    assert set(json.loads(whole("ndjson", made).splitlines()[0])) == {
        "label", "label_id", "embedding",
    }  # fmt: skip
    assert np.load(io.BytesIO(whole("npy", made))).dtype.names == ("x", "y")
    header = whole("csv", made).splitlines()[0].decode()
    assert header.replace('"', "") == "label,label_id," + ",".join(f"e{i}" for i in range(12))


@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_the_first_bytes_wait_for_few_blocks_only(
    generator: Generator, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, blocks, real = document(generator), list[int](), Rows.block

    def counted(self: Rows, block: int) -> Block:
        blocks.append(block)
        return real(self, block)

    monkeypatch.setattr(Rows, "block", counted)
    pieces = FORMATS[kind].pieces(made)
    first = next(pieces)
    assert first
    assert len(blocks) <= 4
    assert len(first + b"".join(pieces)) > N * made.dim * 2
    assert blocks == list(range(6))  # each made once


def test_codes_have_names_that_tell_them_apart(generator: Generator) -> None:
    def named(**asked: object) -> list[tuple[str, float]]:
        request = SynthesisRequest.model_validate({"run": "r", "n": 1} | asked)
        return [(code.domain, code.share) for code in generator.codes(request)]

    assert named() == [("neutral", 1.0)]
    assert named(mixture={"a": 2}) == [("a", 1.0)]
    assert named(mixture={"a": 2, "b": 0}) == [("a", 1.0)]
    assert named(mixture={"a": 1, "b": 1}) == [("blend", 1.0)]
    assert named(mixture={"a": 1, "b": 3}, mode="sample") == [("a", 0.25), ("b", 0.75)]
    ids = {
        generator.codes(SynthesisRequest.model_validate({"run": "r", "n": 1, "mixture": m}))[0].id
        for m in ("neutral", {"a": 1}, {"b": 1}, {"a": 1, "b": 3})
    }
    assert len(ids) == 4
    changed = replace(generator, offsets=generator.offsets + 1.0)
    asked = SynthesisRequest.model_validate({"run": "r", "n": 1, "mixture": {"a": 1}})
    assert changed.codes(asked)[0].id != generator.codes(asked)[0].id
