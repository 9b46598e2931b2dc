"""``fedhypevae verify --model``: rows are made again by an export and compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from typer.testing import CliRunner

from core.receipts.cli import verify_app
from core.receipts.content import Content
from core.receipts.opening import opening
from core.synthesis.formats import RECEIPT_KEY, whole
from core.synthesis.request import SynthesisRequest
from core.synthesis.sampler import Generator
from tests.core.test_export import KEY, KEYS, facts, made, packed


@pytest.fixture(scope="module")
def generator() -> Generator:
    return made()


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys.json"
    path.write_text(KEYS.model_dump_json())
    return path


@pytest.fixture
def model(generator: Generator, tmp_path: Path) -> Path:
    path = tmp_path / "wards.safetensors"
    path.write_bytes(packed(generator))
    return path


def written(generator: Generator, folder: Path, **asked: Any) -> Path:
    """Rows with their signed receipt, as the coordinator writes them."""
    request = SynthesisRequest.model_validate(
        {"run": "r", "n": 5_000, "mixture": {"a": 1, "b": 2}, "mode": "sample"} | asked
    )
    receipt = opening(facts(generator), generator, request, 3, generator.codes(request))

    def close(content: Content) -> dict[str, Any]:
        return KEY.sign(receipt.model_copy(update={"content": content})).model_dump(mode="json")

    opened = KEY.sign(receipt).model_dump(mode="json")
    path = folder / "rows.parquet"
    path.write_bytes(whole("parquet", generator.document(request, 3, lambda _: opened, close)))
    return path


def verify(*arguments: str | Path) -> Result:
    return CliRunner().invoke(verify_app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_model_makes_the_rows_again(
    generator: Generator, model: Path, keys: Path, tmp_path: Path, dtype: str
) -> None:
    path = written(generator, tmp_path, dtype=dtype)
    result = verify(path, "--keys", keys, "--model", model)
    assert result.exit_code == 0, result.output
    assert "ok       made again: 5,000 of 5,000 rows are the same" in result.output


def changed(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Other numbers under the same receipt."""
    receipt = pq.read_metadata(path).metadata[RECEIPT_KEY.encode()]
    table = pq.read_table(path)
    x = change(np.stack(table["embedding"].to_numpy()))
    column = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), x.shape[1])
    table = table.slice(0, len(x)).set_column(0, table.schema.field(0), column)
    with pq.ParquetWriter(path, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({RECEIPT_KEY: receipt.decode()})


def _some_rows(x: np.ndarray) -> np.ndarray:
    x[4_900:] *= 1.01
    return x


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_some_rows, "these are other rows"),
        (lambda x: x[:4_999], "labels or the number of rows differ"),
    ],
)
def test_other_rows_are_found_out(
    generator: Generator, model: Path, keys: Path, tmp_path: Path,
    change: Callable[[np.ndarray], np.ndarray], said: str,
) -> None:  # fmt: skip
    path = written(generator, tmp_path, dtype="float32")
    changed(path, change)
    result = verify(path, "--keys", keys, "--model", model, "--json")
    assert result.exit_code == 1
    holds = json.loads(result.output)["checks"]["made again"]
    assert (holds["holds"], said in holds["why"]) == (False, True), holds


def test_last_digits_are_no_other_rows_and_are_seen_by_the_hash(
    generator: Generator, model: Path, keys: Path, tmp_path: Path
) -> None:
    path = written(generator, tmp_path)
    changed(path, lambda x: np.nextafter(x, np.float32(0)))
    found = json.loads(verify(path, "--keys", keys, "--model", model, "--json").output)["checks"]
    assert found["rows"]["holds"] is False
    assert found["made again"]["holds"] is True
    assert "within 0.0001" in found["made again"]["why"]


def test_an_export_of_another_model_or_key_proves_nothing(
    generator: Generator, keys: Path, tmp_path: Path
) -> None:
    path, other = written(generator, tmp_path), made(form="full")
    model = tmp_path / "other.safetensors"
    model.write_bytes(packed(other))
    result = verify(path, "--keys", keys, "--model", model)
    assert result.exit_code == 1
    assert "another model" in result.output
    no_export = verify(path, "--keys", keys, "--model", path)
    assert no_export.exit_code == 2
    assert no_export.stderr.startswith("fedhypevae: ")
