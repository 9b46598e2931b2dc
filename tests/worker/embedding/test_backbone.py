"""The frozen network: weights in their places, timm's own preprocessing, nothing unsafe loaded."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.scanner_digits import load_images, weights_file
from tests.worker.embedding.support import NETWORK
from worker.embedding import pictures, timm_models, weights
from worker.embedding.backbone import DEFAULT, Backbone, _precision
from worker.errors import EmbeddingError


@pytest.fixture(scope="module")
def timm() -> Any:
    return timm_models.load()


@pytest.fixture(scope="module")
def packaged() -> Backbone:
    return Backbone.open(NETWORK, weights_file(), device="cpu")


@pytest.fixture(scope="module")
def dinov2(timm: Any) -> dict[str, torch.Tensor]:
    """The default network's tensors, drawn at random, at the 518 pixels of its files."""
    torch.manual_seed(0)
    tensors = timm.create_model(DEFAULT, num_classes=0).state_dict()
    # As drawn, the positions hardly matter; here they do.
    return {**tensors, "pos_embed": torch.randn_like(tensors["pos_embed"])}


@pytest.fixture(scope="module")
def dinov2_file(dinov2: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dinov2") / "hub.safetensors"
    save_file(dinov2, path)
    return path


def refused(says: str, field: str, *arguments: Any, **options: Any) -> None:
    with pytest.raises(EmbeddingError, match=says) as caught:
        Backbone.open(*arguments, **{"device": "cpu", **options})
    assert caught.value.field == field
    assert caught.value.mend


def photographs() -> Iterator[Image.Image]:
    """Real photographs, wide and high, and a grey image smaller than the network's input."""
    from sklearn.datasets import load_sample_images

    for pixels in load_sample_images().images:
        yield Image.fromarray(pixels)
        yield Image.fromarray(pixels.transpose(1, 0, 2)[100:340, 50:390].copy())
    yield Image.fromarray(load_images()[0][0].astype(np.uint8)).convert("RGB")


# --- preprocessing ---


def test_preprocessing_is_timms_own(
    timm: Any, packaged: Backbone, dinov2_file: Path, tmp_path: Path
) -> None:
    """From a file through our decoding, and timm's transform of Pillow's own RGB: equal bits."""
    ours = [packaged, Backbone.open(DEFAULT, dinov2_file, device="cpu")]
    overrides: list[dict[str, Any]] = [{}, {"input_size": (3, 224, 224)}]
    theirs = []
    for name, changes in zip((NETWORK, DEFAULT), overrides, strict=True):
        config = timm.data.resolve_data_config(changes, model=timm.create_model(name))
        theirs.append(timm.data.create_transform(**config, is_training=False))
    for number, photograph in enumerate(photographs()):
        path = tmp_path / f"{number}.png"
        photograph.save(path)
        for mine, other in zip(ours, theirs, strict=True):
            found = mine.transform(pictures.from_file(path, pictures.FULL_WHITE))
            assert torch.equal(found, other(Image.open(path).convert("RGB")))


def test_without_a_size_it_is_the_networks_own(timm: Any, dinov2_file: Path) -> None:
    assert Backbone.open(NETWORK, weights_file(), size=None, device="cpu").size == 224
    assert Backbone.open(DEFAULT, dinov2_file, size=None, device="cpu").size == 518


def test_the_contract_tells_what_was_done(packaged: Backbone) -> None:
    assert packaged.preprocessing == (
        "short side to 256 (bicubic, antialiased), center crop 224 x 224; "
        "(x / 255 - [0.5, 0.5, 0.5]) / [0.5, 0.5, 0.5]; pooled features before the classifier"
    )
    body = weights_file().read_bytes()
    assert packaged.weights_digest == f"sha256:{hashlib.sha256(body).hexdigest()}"
    assert (packaged.name, packaged.dim, packaged.size) == (NETWORK, 1280, 224)


# --- weights ---


def test_the_default_network_takes_the_hubs_and_the_authors_weights(
    timm: Any, dinov2: dict[str, torch.Tensor], dinov2_file: Path, tmp_path: Path
) -> None:
    """Positions of 518 pixels are fitted to 224 as timm does it."""
    authors = dict(dinov2) | {"mask_token": torch.zeros(1, 384)}
    torch.save({"teacher": {f"module.{n}": t for n, t in authors.items()}}, tmp_path / "own.pth")
    theirs = timm.create_model(
        DEFAULT,
        pretrained=True,
        num_classes=0,
        img_size=224,
        pretrained_cfg_overlay={"file": str(dinov2_file)},
    ).eval()
    batch = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        expected = theirs(batch).numpy()
    for path in (dinov2_file, tmp_path / "own.pth"):
        ours = Backbone.open(DEFAULT, path, device="cpu")
        assert (ours.dim, ours.size, ours.precision) == (384, 224, "float32")
        np.testing.assert_allclose(ours.features(batch), expected, rtol=0, atol=1e-5)


def test_the_classifier_may_be_in_the_file_or_not(packaged: Backbone, tmp_path: Path) -> None:
    tensors = weights.read(weights_file()).tensors
    assert "_fc.weight" in tensors
    headless = {name: t.contiguous() for name, t in tensors.items() if "_fc" not in name}
    save_file(headless, tmp_path / "w.safetensors")
    other = Backbone.open(NETWORK, tmp_path / "w.safetensors", device="cpu")
    batch = torch.randn(1, 3, 224, 224)
    assert (other.features(batch) == packaged.features(batch)).all()
    assert other.weights_digest != packaged.weights_digest


def test_weights_of_another_network_are_refused(dinov2_file: Path) -> None:
    refused("not of this backbone", "weights", DEFAULT, weights_file())
    refused("not of this backbone", "weights", NETWORK, dinov2_file)
    refused("not of this backbone", "weights", "tf_efficientnet_lite1", weights_file())


@pytest.mark.parametrize("place", ["blocks.7.attn.qkv.weight", "pos_embed", "norm.bias"])
def test_no_tensor_is_left_at_random(
    dinov2: dict[str, torch.Tensor], tmp_path: Path, place: str
) -> None:
    save_file({name: t for name, t in dinov2.items() if name != place}, tmp_path / "w.safetensors")
    refused(place, "weights", DEFAULT, tmp_path / "w.safetensors")


class _Runs:
    """Unpickled, it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    torch.save({"state_dict": _Runs(trace)}, tmp_path / "w.pth")
    refused("was not loaded", "weights", NETWORK, tmp_path / "w.pth")
    (tmp_path / "v.pth").write_bytes(pickle.dumps(_Runs(trace)))
    refused("not loaded|no weights", "weights", NETWORK, tmp_path / "v.pth")
    assert not trace.exists()


def test_files_that_hold_no_weights(tmp_path: Path) -> None:
    refused("No such file", "weights", NETWORK, tmp_path / "absent.pth")
    body = weights_file().read_bytes()
    (tmp_path / "cut.pth").write_bytes(body[: len(body) // 2])
    refused("holds no weights", "weights", NETWORK, tmp_path / "cut.pth")
    (tmp_path / "w.safetensors").write_bytes(b"\xff" * 100)
    refused("holds no weights", "weights", NETWORK, tmp_path / "w.safetensors")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    refused("named tensors", "weights", NETWORK, tmp_path / "list.pth")


# --- what is asked for ---


def test_unknown_networks(tmp_path: Path) -> None:
    refused("tf_efficientnet_lite0", "backbone", "tf_efficientnet_lit0", weights_file())
    refused("no network", "backbone", f"{NETWORK}x", weights_file())
    refused("no network", "backbone", "../../etc/passwd", weights_file())


def test_sizes_devices_and_precisions_that_there_are_not() -> None:
    refused("no device 'cuda:99'", "device", NETWORK, weights_file(), device="cuda:99")
    refused("no device", "device", NETWORK, weights_file(), device="tpu")
    assert _precision("auto", "cuda:0") == "float16"
    assert _precision("auto", "cpu") == "float32"
    refused("for GPUs", "precision", NETWORK, weights_file(), precision="float16")


def test_a_size_that_the_network_does_not_take() -> None:
    """Found before weights are looked at more closely than for their digest."""
    refused("13 pixels: they are smaller", "size", DEFAULT, weights_file(), size=13)


def test_channels_last_changes_the_last_digits_only(packaged: Backbone) -> None:
    first = Backbone.open(NETWORK, weights_file(), device="cpu", channels_last=False)
    batch = torch.randn(2, 3, 224, 224)
    np.testing.assert_allclose(packaged.features(batch), first.features(batch), rtol=0, atol=1e-4)
