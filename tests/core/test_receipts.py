"""Receipts without a coordinator: identity, signatures, files that prove their rows, ``verify``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from core.errors import ReceiptInvalid
from core.federation.plan import Noise
from core.privacy.noise import seeded
from core.privacy.premise import NONE, View, premise
from core.receipts.checking import PublicKeys
from core.receipts.cli import verify_app
from core.receipts.content import Content, content_of
from core.receipts.opening import ModelFacts, opening
from core.receipts.reading import read_rows
from core.receipts.receipt import Model, Receipt, Spent, canonical
from core.receipts.signing import Signed, SigningKey, key_id, verified
from core.simulation import SimulatedSite, simulate
from core.synthesis.formats import FORMATS, whole
from core.synthesis.request import SynthesisRequest
from core.synthesis.sampler import Generator
from tests.core import worlds

KEY = SigningKey(bytes(range(32)))
FACTS = ModelFacts(
    Model(run_id="1", run="r", round=1, plan_digest="p", frame_digest="f", weights_digest="w"),
    (Spent(client="a", epsilon=1.5, delta=1e-5, unit="record"),),
    "add-remove-one-unit",
    "csprng",
    ("b",),
)
CARRYING = ("json", "parquet", "npz")


@pytest.fixture(scope="module")
def generator() -> Generator:
    sites = [SimulatedSite(name, worlds.clusters(200, seed=i)) for i, name in enumerate("ab")]
    noise = Noise(sketch_multiplier=0.01, train_multiplier=0.05)
    spec = worlds.spec(privacy={"rounds": 0}, noise=noise)
    return simulate(spec, sites, noise=seeded(0), secret=worlds.SECRET).generator


def opened(generator: Generator, **asked: Any) -> Receipt:
    request = SynthesisRequest.model_validate({"run": "r", "n": 9} | asked)
    return opening(FACTS, generator, request, 3, generator.codes(request))


def written(generator: Generator, folder: Path, kind: str, **asked: Any) -> Path:
    """A file of rows with its signed receipt, as the coordinator writes it."""
    request = SynthesisRequest.model_validate({"run": "r", "n": 5_000, "format": kind} | asked)
    receipt = opening(FACTS, generator, request, 3, generator.codes(request))

    def close(content: Content) -> dict[str, Any]:
        closed = receipt.model_copy(update={"content": content})
        (folder / "receipt.json").write_text(KEY.sign(closed).model_dump_json())
        return KEY.sign(closed).model_dump(mode="json")

    document = generator.document(
        request, 3, lambda _: KEY.sign(receipt).model_dump(mode="json"), close
    )
    path = folder / f"rows.{kind}"
    path.write_bytes(whole(kind, document))
    return path


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys.json"
    listed = {"items": [{"id": key_id(KEY.public), "public": KEY.public.hex()}]}
    path.write_text(json.dumps(listed))
    return path


def verify(*arguments: str | Path) -> tuple[int, str]:
    done = CliRunner().invoke(verify_app, [str(argument) for argument in arguments])
    return done.exit_code, done.output


def test_an_id_names_all_but_the_content(generator: Generator) -> None:
    receipt = opened(generator)
    content = Content(n=9, digest="sha256:" + "0" * 64)
    assert receipt.model_copy(update={"content": content}).id == receipt.id
    others = [
        opened(generator, temperature=0.5),
        opened(generator, labels="uniform"),
        opened(generator, mixture={"a": 1}),
        receipt.model_copy(update={"noise_mode": "seeded"}),
        receipt.model_copy(update={"per_client": ()}),
    ]
    assert len({receipt.id, *(other.id for other in others)}) == 6
    for same in ("json", "parquet"):
        assert opened(generator, format=same, dtype="float64", columns=["domain"]).id == receipt.id


def test_canonical_bytes_know_no_order_and_no_nan() -> None:
    assert canonical({"b": 0.1, "a": "é"}) == '{"a":"é","b":0.1}'.encode()
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical({"a": float("nan")})


def test_a_signature_is_of_this_receipt_by_this_key(generator: Generator) -> None:
    receipt = opened(generator)
    signed = KEY.sign(receipt)
    public = {key_id(KEY.public): KEY.public}
    assert verified(signed, public) == receipt
    stranger = SigningKey.new()
    for changed, why in (
        (signed.model_copy(update={"receipt": signed.receipt | {"n": 10}}), "was changed"),
        (signed.model_copy(update={"signature": "!"}), "was changed"),
        (signed.model_copy(update={"id": "rcp_" + "0" * 32}), "another receipt's"),
        (stranger.sign(receipt), "not known"),
        (stranger.sign(receipt).model_copy(update={"key_id": signed.key_id}), "was changed"),
    ):
        with pytest.raises(ReceiptInvalid, match=why):
            verified(changed, public)
    with pytest.raises(ReceiptInvalid, match="another id"):
        verified(signed, {signed.key_id: stranger.public})


@pytest.mark.parametrize("kind", [*CARRYING, "arrow"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_file_proves_its_rows(
    generator: Generator, tmp_path: Path, keys: Path, kind: str, dtype: str
) -> None:
    path = written(generator, tmp_path, kind, dtype=dtype)
    request = SynthesisRequest.model_validate({"run": "r", "n": 5_000})
    assert content_of(read_rows(path).blocks()) == content_of(generator.rows(request, 3))
    given = [] if kind in CARRYING else ["--receipt", tmp_path / "receipt.json"]
    code, said = verify(path, "--keys", keys, *given)
    assert code == 0, said
    assert "ok       signature" in said
    assert "ok       rows: 5,000 rows" in said
    assert "epsilon 1.5 at delta 1e-05" in said
    assert "b has withdrawn" in said


def test_epsilon_of_secure_sums_is_not_said_without_its_premise(
    generator: Generator, tmp_path: Path, keys: Path
) -> None:
    """Nor is one invented for the epsilon of a plain run."""
    plain = opened(generator)
    views = (
        View(who="booked", epsilon=1.5, premise=premise([2])),
        View(who="everybody", epsilon=7.25, premise=NONE),
    )
    for receipt, said in ((plain, False), (plain.model_copy(update={"views": views}), True)):
        path = tmp_path / "signed.json"
        path.write_text(KEY.sign(receipt).model_dump_json())
        _, shown = verify(path, "--keys", keys)
        assert "ok       signature" in shown
        assert "epsilon 1.5 at delta 1e-05" in shown
        assert (premise([2]) in shown) == ("7.25" in shown) == ("premise" in shown) == said


def test_an_early_receipt_proves_a_signature_but_no_rows(
    generator: Generator, tmp_path: Path, keys: Path
) -> None:
    path = written(generator, tmp_path, "arrow")
    code, said = verify(path, "--keys", keys)
    assert (code, "give the closed one" in said) == (1, True)
    assert "ok       signature" in said
    code, said = verify(path)
    assert (code, "not checked: no public keys" in said) == (1, True)
    assert verify(tmp_path / "receipt.json", "--keys", keys)[0] == 0


def test_other_rows_are_found_out(generator: Generator, tmp_path: Path, keys: Path) -> None:
    path = written(generator, tmp_path, "npz")
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays["embeddings"][17, 3] += 1e-6
    np.savez(path, **arrays)
    code, said = verify(path, "--keys", keys, "--json")
    found = json.loads(said)
    assert (code, found["good"]) == (1, False)
    assert found["checks"]["signature"]["holds"] is True
    assert found["checks"]["rows"]["holds"] is False
    np.savez(
        path,
        **arrays | {"embeddings": arrays["embeddings"][:-1], "label_ids": arrays["label_ids"][:-1]},
    )
    assert "4,999 rows, not 5,000" in verify(path, "--keys", keys)[1]
    half = written(generator, tmp_path, "npz", dtype="float16")
    assert "keeps less of the rows" in verify(half, "--keys", keys)[1]


def test_a_revoked_key_proves_nothing(generator: Generator, tmp_path: Path, keys: Path) -> None:
    path = written(generator, tmp_path, "parquet")
    listed = PublicKeys.model_validate_json(keys.read_text())
    listed.items[0].revoked_at = "2026-01-01T00:00:00Z"
    keys.write_text(listed.model_dump_json())
    code, said = verify(path, "--keys", keys)
    assert (code, "was revoked" in said) == (1, True)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "neither Parquet"),
        (b"PAR1 and then nothing", "cannot read"),
        (b"PK\x03\x04 no archive", "cannot read"),
        (b"\xff\xff\xff\xff no stream", "cannot read"),
        (b"{not json", "cannot read"),
        (b"{}", "cannot read"),
        (b'{"signature": "x"}', "no signed receipt"),
        (b'{"embeddings": [], "label_ids": []}', "no receipt"),
    ],
)
def test_files_that_are_none_are_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    code, output = verify(path)
    assert code == 2, output
    assert said in output
    assert "Traceback" not in output


def test_missing_files_and_wrong_keys(generator: Generator, tmp_path: Path) -> None:
    assert verify(tmp_path / "nothing")[0] == 2
    path = written(generator, tmp_path, "npz")
    code, said = verify(path, "--keys", path)
    assert (code, "holds no public keys" in said) == (2, True)


def test_every_format_can_be_read_or_says_why(
    generator: Generator, tmp_path: Path, keys: Path
) -> None:
    for kind in FORMATS:
        path = written(generator, tmp_path, kind)
        code, _ = verify(path, "--keys", keys)
        # NDJSON, CSV and npy hold no receipt and are compared with nothing.
        assert code == (0 if kind in CARRYING else 1 if kind == "arrow" else 2)
        # A receipt that nobody vouches for proves nothing, whatever rows it names.
        assert verify(path)[0] != 0


def test_signed_receipts_keep_all_fields(generator: Generator) -> None:
    signed = KEY.sign(opened(generator))
    again = Signed.model_validate_json(signed.model_dump_json())
    assert again == signed
    assert Receipt.model_validate(again.receipt).withdrawn == ("b",)


WEIGHTS = st.dictionaries(st.sampled_from(["a", "b"]), st.floats(0, 10), min_size=1).filter(
    lambda weights: sum(weights.values()) > 0
)
CLASSES = [f"class-{number}" for number in range(3)]
REQUESTS = st.fixed_dictionaries(
    {
        "mixture": st.one_of(st.just("neutral"), WEIGHTS),
        "temperature": st.floats(0.01, 4.0),
        "guidance": st.sampled_from(["model", "none"]),
    }
)
AMOUNTS = st.one_of(
    st.fixed_dictionaries(
        {
            "n": st.integers(1, 5_000),
            "labels": st.one_of(
                st.sampled_from(["model", "uniform"]),
                st.dictionaries(st.sampled_from(CLASSES), st.floats(0.1, 5), min_size=1),
            ),
        }
    ),
    st.fixed_dictionaries(
        {
            "class_counts": st.dictionaries(
                st.sampled_from(CLASSES), st.integers(0, 900), min_size=1
            ).filter(lambda counts: sum(counts.values()) > 0)
        }
    ),
)


@settings(max_examples=60, deadline=None)
@given(REQUESTS, AMOUNTS, st.integers(0, 2**63 - 1), st.booleans())
def test_a_receipt_holds_all_that_makes_the_rows(
    generator: Generator, asked: dict[str, Any], amount: dict[str, Any], seed: int, each: bool
) -> None:
    mode = "sample" if each and asked["mixture"] != "neutral" else "blend"
    request = SynthesisRequest.model_validate({"run": "r", "mode": mode} | asked | amount)
    rows = generator.rows(request, seed)
    made = list(rows)
    x = np.concatenate([block.x for block in made])
    assert x.shape == (request.size, generator.spec.space.dim)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), np.sqrt(x.shape[1]), rtol=1e-5)
    receipt = opening(FACTS, generator, request, seed, generator.codes(request))
    kept = Receipt.model_validate_json(receipt.model_dump_json())
    assert kept == receipt
    again = SynthesisRequest.model_validate(
        kept.asked.model_dump(exclude={"seed"}) | {"run": "another name"}
    )
    assert content_of(generator.rows(again, kept.asked.seed)) == content_of(made)
    assert abs(sum(code.share for code in receipt.codes) - 1.0) < 1e-9
    if request.class_counts is not None:
        y = np.concatenate([block.y for block in made])
        counts = [request.class_counts.get(name, 0) for name in CLASSES]
        assert np.bincount(y, minlength=3).tolist() == counts
