"""timm, also beside a torch that is built for the CPU only.

timm imports torchvision, and the wheels of torchvision on PyPI are built for CUDA. Beside a CPU
torch their compiled operators cannot be loaded; torchvision takes that into account everywhere but
at two of them, whose shapes it describes to torch before anybody has declared them. Declared they
may stay without code: they select boxes, and nothing here has boxes.
"""

from __future__ import annotations

from functools import cache
from typing import Any

_BOXES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_UNDECLARED = ("nms", "qnms")


@cache
def load() -> Any:
    """The module ``timm``. Takes some seconds at the first call."""
    _load_torchvision()
    import timm

    return timm


def _load_torchvision() -> None:
    import torch

    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        for name in _UNDECLARED:
            torch.library.define(f"torchvision::{name}", _BOXES)
        import torchvision  # noqa: F401
