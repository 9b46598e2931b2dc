"""Exported generators: the same rows, nothing of who has withdrawn, and no trust in a file."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import ClientWithdrawn, ReceiptInvalid
from core.federation.plan import Noise
from core.privacy.noise import seeded
from core.receipts.checking import PublicKey, PublicKeys
from core.receipts.opening import ModelFacts
from core.receipts.receipt import Model, ModelReceipt, Receipt, Spent
from core.receipts.signing import Signed, SigningKey, key_id, verified
from core.simulation import SimulatedSite, simulate
from core.synthesis.export import SIMULATION, load, pack
from core.synthesis.request import SynthesisRequest
from core.synthesis.sampler import Generator
from core.synthesis.streams import BLOCK_ROWS
from core.wire import tensors
from core.wire.tensors import TensorFileError
from tests.core import worlds

KEY = SigningKey(bytes(32))
KEYS = PublicKeys(items=[PublicKey(id=key_id(KEY.public), public=KEY.public.hex())])
ZERO = "sha256:" + "0" * 64
MODELS = {
    "film": {},
    "trained codes": {"codes": "trained"},
    "full": {"form": "full", "conditioning": "embedding"},
}


def made(**model: object) -> Generator:
    sites = [SimulatedSite(name, worlds.clusters(200, seed=i)) for i, name in enumerate("abc")]
    noise = Noise(sketch_multiplier=0.01, train_multiplier=0.05)
    spec = worlds.spec(privacy={"rounds": 2}, noise=noise, model=model)
    return simulate(spec, sites, noise=seeded(0), secret=worlds.SECRET).generator


@pytest.fixture(scope="module")
def generator() -> Generator:
    return made()


def facts(generator: Generator, **changes: object) -> ModelFacts:
    model = Model(
        run_id="run-1", run="wards", round=2, plan_digest=generator.spec.digest,
        frame_digest=ZERO, weights_digest=ZERO,
    )  # fmt: skip
    spent = tuple(Spent(client=c, epsilon=1.25, delta=1e-5, unit="record") for c in "abc")
    usual = ModelFacts(model, spent, "add-remove-one-unit", "csprng")
    return replace(usual, **changes)


def packed(generator: Generator, without: str = "", **changes: object) -> bytes:
    return pack(
        generator, facts(generator, **changes), licence="CC-BY-4.0", sign=KEY.sign,
        without=frozenset(without),
    )  # fmt: skip


def request(**asked: object) -> SynthesisRequest:
    return SynthesisRequest.model_validate({"run": "r", "n": BLOCK_ROWS + 5} | asked)


@pytest.mark.parametrize("kind", MODELS)
def test_the_file_makes_the_same_rows(kind: str) -> None:
    whole = made(**MODELS[kind])
    again, _ = load(packed(whole))
    assert again.guided == whole.guided
    for asked in (
        {}, {"mixture": {"a": 1}}, {"mixture": {"a": 1, "b": 3}, "labels": "uniform"},
        {"mixture": {"c": 2, "a": 1}, "mode": "sample", "guidance": "none", "temperature": 0.5},
    ):  # fmt: skip
        before, after = whole.sample(request(**asked), 7), again.sample(request(**asked), 7)
        np.testing.assert_array_equal(before.x, after.x)
        np.testing.assert_array_equal(before.y, after.y)
        assert whole.codes(request(**asked)) == again.codes(request(**asked))


def test_the_same_model_gives_the_same_bytes(generator: Generator) -> None:
    body = packed(generator)
    assert body == packed(generator)
    assert body != packed(generator, without="a")
    assert body != pack(generator, facts(generator), licence="MIT", sign=KEY.sign)


def test_the_card_says_what_the_receipt_says(generator: Generator) -> None:
    _, card = load(packed(replace(generator, spec=production(generator))))
    receipt = card.receipt
    assert (receipt.label, receipt.caveat, receipt.withdrawn) == ("", "", ())
    assert card.facts == facts(replace(generator, spec=production(generator)))
    for word in ("# wards, round 2", "CC-BY-4.0", "gaussian clusters", "class-1", "| b | 1.25 |"):
        assert word in card.markdown
    assert "NOT PRIVATE" not in card.markdown


def production(generator: Generator) -> object:
    spec = generator.spec
    return spec.model_copy(update={"plan": spec.plan.model_copy(update={"purpose": "production"})})


@pytest.mark.parametrize(
    ("changes", "caveat"),
    [({}, SIMULATION), ({"noise_mode": "seeded"}, "training noise came from a seed")],
)
def test_a_model_without_a_guarantee_is_stamped(
    generator: Generator, changes: dict[str, str], caveat: str
) -> None:
    again, card = load(packed(generator, **changes))
    assert card.receipt.label == "NOT PRIVATE"
    assert caveat in card.receipt.caveat
    assert caveat in again.caveat
    assert "**NOT PRIVATE**" in card.markdown
    assert "1.25" not in card.markdown  # no epsilon beside no guarantee


def test_nothing_of_a_withdrawn_client_is_in_the_file() -> None:
    whole = made(codes="trained")
    for name, values in (("codes", whole.frame.codes), ("offsets", whole.offsets)):
        assert np.abs(values[1]).max() > 0, name
    body = packed(whole, without="b")
    content, metadata = tensors.unpack(body)
    assert json.loads(metadata["clients"]) == ["a", "c"]
    own = {"codes": whole.frame.codes, "offsets": whole.offsets, "label_shift": whole.label_shift}
    for name, values in own.items():
        np.testing.assert_array_equal(content[f"clients.{name}"], values[[0, 2]].astype(np.float32))
        rows = values[1].astype(np.float32)
        if rows.any():
            assert rows.tobytes() not in body
    again, card = load(body)
    assert card.receipt.withdrawn == ("b",)
    assert "## Withdrawn\n\nb:" in card.markdown
    for mixture in ({"b": 1}, {"a": 1, "b": 0}):
        with pytest.raises(ClientWithdrawn) as refused:
            again.rows(request(mixture=mixture), 1)
        assert refused.value.field == "mixture.b"
    for mixture in ("neutral", {"a": 1, "c": 2}):
        np.testing.assert_array_equal(
            again.sample(request(mixture=mixture), 1).x, whole.sample(request(mixture=mixture), 1).x
        )


def test_only_the_coordinators_keys_verify_it(generator: Generator) -> None:
    _, card = load(packed(generator))
    card.require_signature(KEYS)
    with pytest.raises(ReceiptInvalid, match="not known"):
        card.require_signature(PublicKeys(items=[]))
    revoked = KEYS.items[0].model_copy(update={"revoked_at": "2026-01-01T00:00:00Z"})
    with pytest.raises(ReceiptInvalid, match="revoked"):
        card.require_signature(PublicKeys(items=[revoked]))


def test_a_receipt_of_a_model_is_none_of_rows(generator: Generator) -> None:
    """Each kind is signed in its own context."""
    _, card = load(packed(generator))
    assert verified(card.signed, KEYS.valid, ModelReceipt) == card.receipt
    with pytest.raises(ReceiptInvalid):
        verified(card.signed, KEYS.valid, Receipt)


# --- files from anywhere ---


def changed(body: bytes, change: Callable[[dict, dict], None]) -> bytes:
    content, metadata = tensors.unpack(body)
    arrays = dict(content)
    change(arrays, metadata)
    return tensors.pack(arrays, metadata)


def _forged(arrays: dict, metadata: dict) -> None:
    signed = json.loads(metadata["receipt"])
    signed["receipt"]["licence"] = "CC0-1.0"
    metadata["receipt"] = json.dumps(signed)


HOSTILE: dict[str, Callable[[dict, dict], None]] = {
    "another format": lambda _, m: m.update(format="fedhypevae-generator-2"),
    "no specification": lambda _, m: m.pop("spec"),
    "specification no JSON": lambda _, m: m.update(spec="{"),
    "deep JSON": lambda _, m: m.update(clients="[" * 100_000),
    "clients no list": lambda _, m: m.update(clients="{}"),
    "clients twice": lambda _, m: m.update(clients='["a","a","b"]'),
    "clients renamed": lambda _, m: m.update(clients='["x","b","c"]'),
    "too few clients": lambda _, m: m.update(clients='["a"]'),
    "guidance switched": lambda _, m: m.update(guided="no" if m["guided"] == "yes" else "yes"),
    "card rewritten": lambda _, m: m.update(card="# Trust me"),
    "licence rewritten": lambda _, m: m.update(licence="CC0-1.0"),
    "receipt no JSON": lambda _, m: m.update(receipt="[]"),
    "receipt changed": _forged,
    "a tensor less": lambda a, _: a.pop("frame.base"),
    "a tensor more": lambda a, _: a.update(more=np.zeros(1, np.float32)),
    "another shape": lambda a, _: a.update({"frame.scale": np.ones(2, np.float32)}),
    "another type": lambda a, _: a.update({"frame.scale": np.ones(1, np.float64)}),
    "NaN": lambda a, _: a.update({"frame.scale": np.full(1, np.nan, np.float32)}),
    "one number changed": lambda a, _: a.update({"frame.scale": np.float32(2) * a["frame.scale"]}),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_a_file_whose_parts_do_not_belong_together_is_refused(
    generator: Generator, how: str
) -> None:
    body = changed(packed(generator), HOSTILE[how])
    with pytest.raises(TensorFileError):
        load(body)


def test_a_changed_specification_is_refused(generator: Generator) -> None:
    def other(_: dict, metadata: dict) -> None:
        spec = json.loads(metadata["spec"])
        spec["plan"]["guidance"]["widen"] = 3.0
        metadata["spec"] = json.dumps(spec)

    with pytest.raises(TensorFileError, match="specification"):
        load(changed(packed(generator), other))


@pytest.mark.parametrize(
    "body",
    [b"", b"PAR1", struct.pack("<Q", 1 << 62) + b"{}", struct.pack("<Q", 8) + b'{"a":{}}'],
    ids=["empty", "Parquet", "huge header", "no tensor"],
)
def test_what_is_no_tensor_file_is_refused(body: bytes) -> None:
    with pytest.raises(TensorFileError):
        load(body)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_bytes_are_refused_or_harmless(generator: Generator, data: st.DataObject) -> None:
    """Whatever one byte is changed to, and wherever the file ends: one clear error, unless the
    change is in what decides nothing (spaces of the header, the signature).
    """
    body = bytearray(packed(generator))
    if data.draw(st.booleans(), label="cut"):
        del body[data.draw(st.integers(0, len(body) - 1)) :]
        with pytest.raises(TensorFileError):
            load(bytes(body))
        return
    place = data.draw(st.integers(0, len(body) - 1), label="place")
    body[place] ^= data.draw(st.integers(1, 255), label="mask")
    try:
        again, _ = load(bytes(body))
    except TensorFileError:
        return
    np.testing.assert_array_equal(
        again.sample(request(n=3), 1).x, generator.sample(request(n=3), 1).x
    )


def test_a_path_is_read_and_one_that_is_not_there_is_named(
    generator: Generator, tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(packed(generator))
    assert load(path)[1].receipt.model.run == "wards"
    with pytest.raises(TensorFileError, match=r"missing\.safetensors"):
        load(tmp_path / "missing.safetensors")
    assert isinstance(load(path)[1].signed, Signed)
