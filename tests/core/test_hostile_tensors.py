"""Tensor files from outside: one clear error, little memory, little time, whatever they say."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core import errors
from core.federation.updates import TENSOR, check_update, expectation
from core.wire import strict_json, tensors
from tests.core import worlds
from tests.core.malformed import MALFORMED, mutants

SPEC = worlds.spec()
EXPECTED = expectation(SPEC, 0)
GOOD = tensors.pack(
    {
        TENSOR: np.random.default_rng(0)
        .normal(0.0, EXPECTED.noise_std, EXPECTED.length)
        .astype(np.float32)
    },
    {"layout": EXPECTED.layout},
)
_MIB = 2**20


def _peak() -> int:
    """Bytes of memory that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_the_good_file_is_good() -> None:
    check_update(GOOD, EXPECTED)


@pytest.mark.parametrize("name", MALFORMED)
def test_every_malformed_file_is_one_error_and_costs_nothing(name: str) -> None:
    body = MALFORMED[name](GOOD)
    before, started = _peak(), time.monotonic()
    with pytest.raises(errors.UpdateRejected) as caught:
        check_update(body, EXPECTED)
    assert caught.value.message
    assert time.monotonic() - started < 2
    assert _peak() - before < 32 * _MIB


@pytest.mark.parametrize("seed", range(4))
def test_files_near_a_good_one_pass_or_are_refused(seed: int) -> None:
    passed = 0
    for body in mutants(GOOD, 1_000, seed):
        try:
            check_update(body, EXPECTED)
            passed += 1
        except errors.UpdateRejected:
            pass
    assert passed < 500, "nearly everything passes: the mutants are none"


@given(st.binary(max_size=200), st.binary(max_size=64), st.integers(0, 2**64 - 1))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_file_or_one_error(head: bytes, data: bytes, size: int) -> None:
    for body in (head, size.to_bytes(8, "little") + head, _framed(head) + data):
        try:
            tensors.unpack(body)
        except tensors.TensorFileError as error:
            assert "safetensors" in error.message  # noqa: PT017 (most bytes raise nothing else)


def _framed(head: bytes) -> bytes:
    return len(head).to_bytes(8, "little") + head


@pytest.mark.parametrize(
    ("body", "told", "field"),
    [
        (b'{"a": {"b": 1, "b": 2}}', 'the key "b" is there twice', "b"),
        (b'{"a": NaN}', "NaN is no number", "body"),
        (b"[-Infinity]", "-Infinity is no number", "body"),
        (b'{"a": 1e400}', "too large", "body"),
        (b"[" + b"9" * 5_000 + b"]", "cannot be read", "body"),
        (b"[" * 100_000, "nested deeper", "body"),
        (b"[" * 65 + b"]" * 65, "nested deeper", "body"),
        (b'{"a": ["x", "b\\u0000"]}', "U+0000", "a.1"),
        (b'{"a": {"\\ud800": 1}}', "surrogate", "a.\\ud800"),
        (b'\xef\xbb\xbf{"a": 1}', "not JSON", "body"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8", "body"),
        (b'{"a": "\xff"}', "not UTF-8", "body"),
        (b'{"a": 1} {}', "not JSON", "body"),
        (b"{'a': 1}", "not JSON", "body"),
        (b'{"a": "\n"}', "not JSON", "body"),
        (b"", "not JSON", "body"),
    ],
)
def test_json_is_read_strictly(body: bytes, told: str, field: str) -> None:
    with pytest.raises(strict_json.NotStrict) as caught:
        strict_json.read(body)
    assert told in str(caught.value)
    assert caught.value.field == field


def test_what_is_odd_and_right_is_read() -> None:
    odd = rb'{"a\\u0000": "\ud83d\ude00 \\u0000 \u0001", "b": [1e308, -0.0, 123456789012345678901]}'
    assert strict_json.read(odd)["a\\u0000"] == "😀 \\u0000 \x01"
    assert strict_json.read(b"[" * 64 + b"]" * 64) is not None


_LEVELS: list[Callable[[int], bytes]] = [
    lambda n: b"[" * n + b"]" * n,
    lambda n: b'{"a":' * n + b"1" + b"}" * n,
]


@pytest.mark.parametrize("make", _LEVELS)
def test_depth_costs_no_time(make: Callable[[int], bytes]) -> None:
    started = time.monotonic()
    for levels in (500, 2_000, 200_000):
        with pytest.raises(strict_json.NotStrict, match="nested"):
            strict_json.read(make(levels))
    assert time.monotonic() - started < 2
