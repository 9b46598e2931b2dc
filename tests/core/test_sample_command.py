"""``fedhypevae sample --offline``: the same rows, alone on a machine, and clear about mistakes."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from typer.testing import CliRunner

from core.receipts.content import content_of
from core.receipts.receipt import Receipt
from core.receipts.signing import SigningKey, key_id
from core.synthesis.cli import sample_app
from core.synthesis.formats import FORMATS, RECEIPT_KEY
from core.synthesis.request import SynthesisRequest
from core.synthesis.sampler import Generator
from tests.core.test_export import KEY, made, packed

ROOT = Path(__file__).resolve().parents[2]
ALONE = """
import socket, sys
class Refuser:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "opacus", "sqlalchemy", "httpx", "fastapi", "celery",
                                      "psycopg", "api", "worker"}:
            raise ImportError(f"{name} is not to be imported here")
def refused(*_):
    raise OSError("there is no network here")
socket.socket.connect = refused
sys.meta_path.insert(0, Refuser())
from core.synthesis.cli import sample_app
sample_app(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def generator() -> Generator:
    return made()


@pytest.fixture(scope="module")
def file(generator: Generator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "wards.safetensors"
    path.write_bytes(packed(generator))
    return path


def called(file: Path, *arguments: str) -> Result:
    return CliRunner().invoke(sample_app, ["--offline", str(file), *arguments])


def expected(generator: Generator, **asked: object) -> np.ndarray:
    request = SynthesisRequest.model_validate({"run": "r"} | asked)
    return generator.sample(request, 7).x


def test_without_network_database_and_torch(
    file: Path, generator: Generator, tmp_path: Path
) -> None:
    out = tmp_path / "rows.parquet"
    arguments = ["--offline", str(file), "--n", "5000", "--mixture", "a=0.7,b=0.3", "--seed", "7"]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *arguments, "--mode", "sample", "--out", str(out)],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "5,000 rows in" in done.stderr
    assert "NOT PRIVATE" in done.stderr  # a simulation's
    table = pq.read_table(out)
    wanted = expected(generator, n=5000, mixture={"a": 0.7, "b": 0.3}, mode="sample")
    np.testing.assert_array_equal(np.stack(table["embedding"].to_numpy()), wanted)
    inside = json.loads(pq.read_metadata(out).metadata[RECEIPT_KEY.encode()])
    receipt = Receipt.model_validate(inside["receipt"])
    assert (inside["id"], inside["signature"], inside["algorithm"]) == (receipt.id, "", "none")
    request = SynthesisRequest(run="r", n=5000, mixture={"a": 0.7, "b": 0.3}, mode="sample")
    assert receipt.content == content_of(generator.rows(request, 7))
    assert receipt.label == "NOT PRIVATE"


@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_every_format_by_name_or_by_suffix(
    file: Path, generator: Generator, tmp_path: Path, kind: str
) -> None:
    named, guessed = tmp_path / "rows.bin", tmp_path / f"rows.{kind}"
    for out, more in ((named, ("--format", kind)), (guessed, ())):
        result = called(file, "--n", "40", "--seed", "7", "--out", str(out), *more)
        assert result.exit_code == 0, result.output
    assert named.read_bytes() == guessed.read_bytes()
    assert [path.name for path in tmp_path.glob(".*")] == []  # nothing half done is left
    if kind == "npz":
        with np.load(guessed) as archive:
            np.testing.assert_array_equal(archive["embeddings"], expected(generator, n=40))


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["--n", "30", "--labels", "uniform"], {"n": 30, "labels": "uniform"}),
        (
            ["--n", "30", "--labels", "class-0=1,class-2=3", "--mixture", "c"],
            {"n": 30, "labels": {"class-0": 1, "class-2": 3}, "mixture": {"c": 1}},
        ),
        (
            ["--counts", '{"class-1": 12}', "--guidance", "none", "--temperature", "0.5"],
            {"class_counts": {"class-1": 12}, "guidance": "none", "temperature": 0.5},
        ),
    ],
)
def test_options_ask_for_what_the_request_has(
    file: Path, generator: Generator, arguments: list[str], asked: dict[str, object]
) -> None:
    result = called(file, *arguments, "--seed", "7", "--format", "npy", "--out", "-")
    assert result.exit_code == 0, result.output
    records = np.load(io.BytesIO(result.stdout_bytes))
    np.testing.assert_array_equal(records["x"], expected(generator, **asked))


def test_a_seed_is_drawn_and_told(file: Path) -> None:
    told = [called(file, "--n", "2", "--out", "-").stderr for _ in range(2)]
    seeds = [re.search(r"seed (\d+)", line) for line in told]
    assert all(seeds)
    assert told[0] != told[1]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--n", "5"], 2, "--out"),
        (["--out", "-"], 2, "exactly one of n and counts"),
        (["--n", "0", "--out", "-"], 2, "--n"),
        (["--n", "5", "--mixture", "zz", "--out", "-"], 2, "Use a, b, c or 'neutral'."),
        (["--n", "5", "--mixture", "a=much", "--out", "-"], 2, "'much' is not a number"),
        (["--n", "5", "--mixture", "a=1,a=2", "--out", "-"], 2, "named twice"),
        (["--n", "5", "--mixture", "a=1,b", "--out", "-"], 2, "name=number"),
        (["--n", "5", "--mixture", "{", "--out", "-"], 2, "JSON"),
        (["--n", "5", "--mixture", "a=0", "--out", "-"], 2, "above 0"),
        (["--n", "5", "--mode", "mixed", "--out", "-"], 2, "--mode"),
        (["--n", "5", "--labels", "nobody=1", "--out", "-"], 2, "vocabulary"),
        (["--n", "5", "--columns", "age", "--out", "-"], 2, "--columns"),
        (["--n", "5", "--format", "xls", "--out", "-"], 2, "--format"),
        (["--n", "5", "--out", "/nowhere/at/all.csv"], 1, "cannot write"),
        (["--n", "5", "--keys", "/nowhere.json", "--out", "-"], 1, "no public keys"),
    ],
)
def test_mistakes_are_named(file: Path, arguments: list[str], code: int, said: str) -> None:
    result = called(file, *arguments)
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("fedhypevae: ")
    assert said in result.stderr
    assert "Traceback" not in result.output


def test_a_file_that_is_there_stays_unless_told(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    out.write_text("mine")
    assert called(file, "--n", "3", "--out", str(out)).exit_code == 2
    assert out.read_text() == "mine"
    assert called(file, "--n", "3", "--out", str(out), "--force").exit_code == 0
    assert out.read_text().startswith('"label"')


def test_what_breaks_in_the_middle_leaves_no_file(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("core.files.os.fsync", full)
    result = called(file, "--n", "3", "--out", str(tmp_path / "rows.csv"))
    assert result.exit_code == 1
    assert "No space left on device" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_card_and_the_signature(file: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    for key, code in ((KEY, 0), (SigningKey.new(), 1)):
        item = {"id": key_id(key.public), "public": key.public.hex()}
        keys.write_text(json.dumps({"items": [item]}))
        result = called(file, "--card", "--keys", str(keys))
        assert result.exit_code == code, result.output
        assert result.stdout.startswith("# wards, round 2\n") == (code == 0)


def test_a_file_cannot_steer_the_terminal(generator: Generator, tmp_path: Path) -> None:
    from core.synthesis.export import pack
    from tests.core.test_export import facts

    path = tmp_path / "odd.safetensors"
    path.write_bytes(pack(generator, facts(generator), licence="\x1b[2Jgone", sign=KEY.sign))
    assert "\x1b" not in called(path, "--card").stdout


def test_no_export_is_named(tmp_path: Path) -> None:
    path = tmp_path / "no.safetensors"
    path.write_bytes(b"PAR1")
    for given in (path, tmp_path / "nothing"):
        result = called(given, "--card")
        assert result.exit_code == 1
        assert result.stderr.startswith("fedhypevae: ")
