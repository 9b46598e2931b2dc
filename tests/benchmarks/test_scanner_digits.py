"""The built-in data set, on a handful of its images: nothing here embeds all 5,000."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import scanner_digits as digits


@pytest.fixture(scope="module")
def labels() -> digits.Labels:
    return np.repeat(np.arange(10), 500).astype(np.int64)


def test_sites_share_no_image_and_lose_none(labels: digits.Labels) -> None:
    dealt = digits.deal(labels)
    assert sorted(np.concatenate(dealt).tolist()) == list(range(5000))
    assert min(map(len, dealt)) >= 1000


def test_the_deal_is_skewed_and_repeatable(labels: digits.Labels) -> None:
    dealt = digits.deal(labels)
    again = digits.deal(labels)
    assert all((a == b).all() for a, b in zip(dealt, again, strict=True))
    counts = np.array([np.bincount(labels[rows], minlength=10) for rows in dealt])
    # Under an even deal every site would have a third of every digit.
    assert (counts.max(axis=0) > 250).sum() >= 7
    assert [rows.tolist() for rows in dealt] != [r.tolist() for r in digits.deal(labels, seed=7)]


def test_a_fifth_of_every_digit_is_held_out() -> None:
    labels = np.repeat([0, 1, 2], [100, 10, 1]).astype(np.int64)
    held = digits.hold_out(labels)
    assert np.bincount(labels[held], minlength=3).tolist() == [20, 2, 0]


def test_scanners_change_what_they_should() -> None:
    images, _ = digits.load_images()
    few = images[::1000]
    assert (digits.scan(few, "plain") == few).all()
    assert (digits.scan(few, "inverted") == 255.0 - few).all()
    turned = digits.scan(few, "blurred-rotated")
    assert turned.shape == few.shape
    assert turned.min() >= 0
    assert turned.max() <= 255
    assert np.abs(turned - few).mean() > 5
    with pytest.raises(ValueError, match="no such scanner"):
        digits.scan(few, "x-ray")


@pytest.mark.slow
def test_the_network_is_that_of_the_weights_own_package() -> None:
    """Against the network of another package, on ordinary and extreme inputs."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    plain = EfficientNet.from_name("efficientnet-lite0", image_size=digits.INPUT_SIZE)
    plain.load_state_dict(torch.load(digits.weights_file(), weights_only=True))
    plain.eval()
    batch = torch.randn(3, 3, digits.INPUT_SIZE, digits.INPUT_SIZE)
    batch[2] = 1.0
    with torch.inference_mode():
        expected = plain.extract_features(batch).numpy()
        found = digits.backbone().features(batch)
    np.testing.assert_allclose(found, expected.mean((2, 3)), rtol=0, atol=1e-3)
    assert np.abs(expected).max() > 0.5


@pytest.mark.slow
def test_an_embedding_does_not_depend_on_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    images, _ = digits.load_images()
    few = images[::900]
    calls: list[int] = []

    def track(starts: object, total: int) -> list[int]:
        calls.append(total)
        return list(starts)  # type: ignore[call-overload]

    together = digits.embed(few, track=track)
    monkeypatch.setattr(digits, "_BATCH", 2)
    assert together.shape == (6, 1280)
    assert together.dtype == np.float32
    assert calls == [1]
    np.testing.assert_allclose(digits.embed(few), together, rtol=0, atol=1e-4)
    assert np.linalg.matrix_rank(together) == 6


def test_the_contract_names_the_real_weights_and_changes_with_the_preprocessing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    contract = digits.space()
    assert contract.dim == 1280
    assert contract.weights_digest == digits.weights_digest()
    key = digits.cache_key()
    monkeypatch.setattr(digits, "PREPROCESSING", "another")
    assert digits.cache_key() != key


@pytest.mark.parametrize("damage", ["absent", "cut", "flipped", "other shape", "not finite"])
def test_a_damaged_cache_is_no_cache(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "sub" / "cache.npz"
    good = np.random.default_rng(0).normal(size=(7, 1280)).astype(np.float32)
    digits.write_cache(path, good)
    assert [file.name for file in path.parent.iterdir()] == ["cache.npz"]
    found = digits.read_cache(path, 7)
    assert found is not None
    assert (found == good).all()

    if damage == "absent":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    elif damage == "flipped":
        body = bytearray(path.read_bytes())
        body[3000] ^= 0xFF
        path.write_bytes(bytes(body))
    elif damage == "other shape":
        digits.write_cache(path, good[:3])
    else:
        digits.write_cache(path, np.where(good > 2, np.nan, good).astype(np.float32))
    assert digits.read_cache(path, 7) is None


def test_a_failed_write_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(digits.np, "savez", full)
    with pytest.raises(OSError, match="no space"):
        digits.write_cache(tmp_path / "cache.npz", np.zeros((1, 1280), np.float32))
    assert list(tmp_path.iterdir()) == []


def test_the_cache_is_used_and_rebuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Embedding is replaced here (it takes a minute); everything around it is the real code."""
    seen: list[digits.Images] = []

    def quick(images: digits.Images, *, track: object = None) -> digits.Floats:
        seen.append(images)
        return np.random.default_rng(1).normal(size=(len(images), 1280)).astype(np.float32)

    monkeypatch.setattr(digits, "embed", quick)
    first = digits.load(folder=tmp_path)
    second = digits.load(folder=tmp_path)
    assert len(seen) == 1
    (cached,) = tmp_path.iterdir()
    cached.write_bytes(b"damaged")
    third = digits.load(folder=tmp_path)
    assert len(seen) == 2
    for other in (second, third):
        assert (other.sites[1].train_x == first.sites[1].train_x).all()
    assert [site.scanner for site in first.sites] == list(digits.SCANNERS)
    x, y = first.pooled_train()
    test_x, test_y = first.pooled_test()
    assert len(x) == len(y) == 4000
    assert len(test_x) == len(test_y) == 1000
    assert set(y.tolist()) == set(test_y.tolist()) == set(range(10))
