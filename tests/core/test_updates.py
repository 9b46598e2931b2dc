"""Updates at the gate: what passes, and every reason why one does not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from core import errors
from core.federation.updates import FALSE_ALARM, TENSOR, check_update, expectation
from core.models.layout import NULL_COORDINATES, layout_of
from core.privacy.noise import csprng
from core.training.local import release
from core.wire import tensors
from tests.core import worlds

SPEC = worlds.spec()
Vector = NDArray[np.float32]


def body() -> bytes:
    data = worlds.clusters(30)
    return release(SPEC, 0, 1, "a", data, {}, secret=worlds.SECRET, noise=csprng()).update


def changed(change: Callable[[Vector], Vector], layout: str | None = None) -> bytes:
    content, metadata = tensors.unpack(body())
    vector = np.asarray(content[TENSOR], np.float32).copy()
    return tensors.pack({TENSOR: change(vector)}, metadata | ({"layout": layout} if layout else {}))


def test_an_honest_update_passes() -> None:
    for _ in range(20):
        check_update(body(), expectation(SPEC, 0))


def poison(vector: Vector) -> Vector:
    vector[3] = np.nan
    return vector


def only_null(factor: float) -> Callable[[Vector], Vector]:
    def change(vector: Vector) -> Vector:
        vector[-NULL_COORDINATES:] *= factor
        return vector

    return change


def far_away(vector: Vector) -> Vector:
    return np.concatenate([vector[:-NULL_COORDINATES] + 1e4, vector[-NULL_COORDINATES:]])


BAD: dict[str, tuple[Callable[[], bytes], type[errors.UpdateRejected]]] = {
    "empty": (lambda: b"", errors.UpdateUnreadable),
    "text": (lambda: b"not a tensor file at all", errors.UpdateUnreadable),
    "huge header": (lambda: b"\xff" * 64, errors.UpdateUnreadable),
    "layout": (lambda: changed(lambda v: v, "sha256:" + "0" * 64), errors.UpdateWrongLayout),
    "name": (
        lambda: tensors.pack({"other": np.zeros(3, np.float32)}, {}),
        errors.UpdateWrongLayout,
    ),
    "dtype": (lambda: changed(lambda v: v.astype(np.float64)), errors.UpdateWrongDtype),
    "short": (lambda: changed(lambda v: v[:-1]), errors.UpdateWrongShape),
    "matrix": (lambda: changed(lambda v: v[None]), errors.UpdateWrongShape),
    "nan": (lambda: changed(poison), errors.UpdateNotFinite),
    "infinite": (lambda: changed(lambda v: v * np.float32(np.inf)), errors.UpdateNotFinite),
    "no noise": (lambda: changed(only_null(0.0)), errors.UpdateNoiseImplausible),
    # Factors at which an honest draw is told apart with certainty, not with 90 %.
    "little noise": (lambda: changed(only_null(0.5)), errors.UpdateNoiseImplausible),
    "much noise": (lambda: changed(only_null(1.7)), errors.UpdateNoiseImplausible),
    "norm": (lambda: changed(far_away), errors.UpdateNormImplausible),
}


@pytest.mark.parametrize("name", BAD)
def test_each_defect_has_its_own_code(name: str) -> None:
    make, error = BAD[name]
    with pytest.raises(error) as caught:
        check_update(make(), expectation(SPEC, 0))
    assert caught.value.message


def test_an_update_of_another_round_is_refused() -> None:
    with pytest.raises(errors.UpdateWrongLayout):
        check_update(body(), expectation(SPEC, 1))


def test_false_alarm_probability_is_the_stated_one() -> None:
    """Both tails of chi-square(256) outside the accepted interval sum to 1e-9."""
    expected = expectation(SPEC, 0)

    def accepted(ratio: float) -> bool:
        try:
            check_update(
                changed(
                    lambda v: np.concatenate(
                        [v[:-256], np.full(256, ratio * expected.noise_std, np.float32)]
                    )
                ),
                expected,
            )
        except errors.UpdateNoiseImplausible:
            return False
        return True

    low = np.sqrt(stats.chi2.ppf(FALSE_ALARM / 2, 256) / 256)
    high = np.sqrt(stats.chi2.isf(FALSE_ALARM / 2, 256) / 256)
    assert [accepted(r) for r in (low * 0.999, low * 1.001, high * 0.999, high * 1.001)] == [
        False, True, True, False,
    ]  # fmt: skip
    total = stats.chi2.cdf(256 * low**2, 256) + stats.chi2.sf(256 * high**2, 256)
    assert total == pytest.approx(1e-9, rel=1e-3)


def test_size_limit_admits_the_honest_update_and_little_more() -> None:
    for number in (0, 1):
        length = layout_of(SPEC, number).update_length
        assert 4 * length < expectation(SPEC, number).max_bytes < 4 * length + 10_000
    assert len(body()) <= expectation(SPEC, 0).max_bytes


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,80]}}',
        b'{"a":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,8]}}',
        b"[1,2,3]",
        b"{",
    ],
)
def test_malformed_tensor_files_are_one_clear_error(header: bytes) -> None:
    data = len(header).to_bytes(8, "little") + header + bytes(8)
    with pytest.raises(tensors.TensorFileError, match="safetensors"):
        tensors.unpack(data)
    with pytest.raises(tensors.TensorFileError):
        tensors.unpack((2**62).to_bytes(8, "little") + header)


def test_equal_content_gives_equal_bytes() -> None:
    a = {"x": np.arange(3, dtype=np.float32), "b": np.ones((2, 2))}
    first = tensors.pack(a, {"k": "v", "a": "b"})
    second = tensors.pack(dict(reversed(a.items())), {"a": "b", "k": "v"})
    assert first == second
    content, metadata = tensors.unpack(first)
    np.testing.assert_array_equal(content["x"], a["x"])
    assert metadata == {"a": "b", "k": "v"}
