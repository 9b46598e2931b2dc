"""A frozen network of timm with its weights and its own preprocessing: pictures to embeddings."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor

from core.training.compute import resolve_device
from worker.embedding import networks, timm_models, weights
from worker.errors import EmbeddingError

Precision = Literal["auto", "float32", "float16", "bfloat16"]

# Of DINOv2 the smallest: noise is added to 384 numbers and not to 768, a processor without GPU can
# bear it, and it was trained without anybody's labels.
DEFAULT = "vit_small_patch14_dinov2.lvd142m"
DEFAULT_SIZE = 224
_HUB_FILE = "model.safetensors"
_HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, eq=False)
class Backbone:
    """``features`` of batches, ``transform`` of one upright 8-bit RGB picture to [3, size, size].

    ``name`` with timm's tag, ``weights_digest`` of the bytes that were loaded, ``preprocessing`` in
    words, ``dim`` of an embedding.
    """

    name: str
    weights_digest: str
    dim: int
    size: int
    preprocessing: str
    device: str
    precision: str
    transform: Callable[[Image], Tensor]
    network: Any
    channels_last: bool

    @classmethod
    def open(
        cls,
        name: str = DEFAULT,
        file: Path | None = None,
        *,
        size: int | None = DEFAULT_SIZE,
        device: str = "auto",
        precision: Precision = "auto",
        channels_last: bool = True,
    ) -> Backbone:
        """Load weights from ``file``, or from the hub without one.

        ``size``: pixels of the square that the network sees; None is its own. ``channels_last``
        makes convolutions faster on most machines and changes the last digits.
        """
        timm = timm_models.load()
        config = _known(timm, name)
        place = _device(device)
        halved = _precision(precision, place)
        # Before anything slow: without weights there is nothing to do.
        found = weights.read(file if file is not None else _from_hub(config))
        network = _built(timm, name, config, size)
        heads = config.classifier or ()
        networks.fill(network, (heads,) if isinstance(heads, str) else tuple(heads), found.tensors)
        network.eval().requires_grad_(False)
        networks.fold_normalisations(network)
        if place.startswith("cuda"):
            _same_each_time()
        layout = torch.channels_last if channels_last else torch.contiguous_format
        network.to(device=place, memory_format=layout)
        overrides = {} if size is None else {"input_size": (3, size, size)}
        how = timm.data.resolve_data_config(overrides, model=network)
        backbone = cls(
            name=f"{config.architecture}.{config.tag}" if config.tag else name,
            weights_digest=found.digest,
            dim=0,
            size=how["input_size"][1],
            preprocessing=_in_words(how),
            device=place,
            precision=halved,
            transform=timm.data.create_transform(**how, is_training=False),
            network=network,
            channels_last=channels_last,
        )
        return backbone._measured()

    def _measured(self) -> Backbone:
        """With ``dim``: what comes out for one black picture."""
        try:
            one = self.features(torch.zeros(1, 3, self.size, self.size))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise EmbeddingError(
                f"{self.name} takes no images of {self.size} pixels: {error}.",
                field="size",
                mend="Leave --size out, or give 0 for the network's own.",
            ) from None
        if one.ndim != 2:
            raise EmbeddingError(
                f"{self.name} gives {list(one.shape[1:])} numbers for an image, not one vector.",
                field="backbone",
                mend="Choose a network that timm can use without its classifier.",
            )
        return replace(self, dim=one.shape[1])

    def features(self, batch: Tensor) -> NDArray[np.float32]:
        """Embeddings [n, dim] of preprocessed pictures [n, 3, size, size]."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        with torch.inference_mode(), self._autocast():
            moved = batch.to(device=self.device, memory_format=layout)
            return np.asarray(self.network(moved).float().cpu().numpy())

    def stacked(self, pictures: Sequence[Tensor]) -> Tensor:
        """One batch of preprocessed pictures."""
        return torch.stack(list(pictures))

    def _autocast(self) -> AbstractContextManager[object]:
        half = _HALVES.get(self.precision)
        return nullcontext() if half is None else torch.autocast("cuda", dtype=half)


def _known(timm: Any, name: str) -> Any:
    try:
        found = timm.is_model(name) and timm.models.get_pretrained_cfg(name)
    except RuntimeError:  # a tag that the architecture does not have
        found = None
    if not found:
        known = timm.list_models(pretrained=True)
        near = difflib.get_close_matches(name, known, n=3) or [DEFAULT]
        raise EmbeddingError(
            f"timm {timm.__version__} has no network {name!r}.",
            field="backbone",
            mend=f"Is one of these meant: {', '.join(near)}?",
        )
    return found


def _built(timm: Any, name: str, config: Any, size: int | None) -> Any:
    sized = {"img_size": size} if size is not None and config.fixed_input_size else {}
    try:
        network = timm.create_model(name, pretrained=False, num_classes=0, **sized)
        if getattr(getattr(network, "patch_embed", None), "num_patches", 1) < 1:
            raise ValueError("they are smaller than one patch")
        return network
    except (AssertionError, ValueError, TypeError, RuntimeError) as error:
        raise EmbeddingError(
            f"{name} cannot be built for images of {size} pixels: {error}.",
            field="size",
            mend="Leave --size out, or give 0 for the network's own.",
        ) from None


def _from_hub(config: Any) -> Path:
    if not config.hf_hub_id:
        raise EmbeddingError(
            f"timm knows no weights of {config.architecture} on the hub.",
            field="weights",
            mend="Give a file with --weights.",
        )
    return weights.download(config.hf_hub_id, config.hf_hub_filename or _HUB_FILE)


def _device(wanted: str) -> str:
    try:
        if re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", wanted) is None:
            raise ValueError(wanted)
        return resolve_device("cuda:0" if wanted == "cuda" else wanted)
    except (ValueError, RuntimeError):
        raise EmbeddingError(
            f"this machine has no device {wanted!r}.",
            field="device",
            mend="Use auto, cpu, cuda or cuda:N.",
        ) from None


def _precision(wanted: Precision, device: str) -> str:
    on_gpu = device.startswith("cuda")
    if wanted in _HALVES and not on_gpu:
        raise EmbeddingError(
            f"{wanted} is for GPUs.", field="precision", mend="Leave --precision out."
        )
    return ("float16" if on_gpu else "float32") if wanted == "auto" else wanted


def _same_each_time() -> None:
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def _in_words(how: dict[str, Any]) -> str:
    """What two sites must have in common besides the weights."""
    size = how["input_size"][1]
    short = int(size / how["crop_pct"])
    mean, std = (", ".join(f"{value:g}" for value in how[name]) for name in ("mean", "std"))
    return (
        f"short side to {short} ({how['interpolation']}, antialiased), {how['crop_mode']} crop "
        f"{size} x {size}; (x / 255 - [{mean}]) / [{std}]; pooled features before the classifier"
    )
