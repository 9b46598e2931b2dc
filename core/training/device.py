"""Which device a training round computes on."""

from __future__ import annotations

import torch


def resolve_device(wanted: str) -> str:
    """``auto`` becomes the first GPU if there is one, else the CPU; other names stay.

    Raises ``ValueError`` for a GPU that this machine does not have.
    """
    if wanted == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and not (
        torch.cuda.is_available() and (torch.device(wanted).index or 0) < torch.cuda.device_count()
    ):
        raise ValueError(f"this machine has no device {wanted!r}; use auto or cpu")
    return wanted
