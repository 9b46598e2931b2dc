"""How a site computes its training rounds: a matter of the site, never of the plan.

Every choice here gives the same clipped sum, up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.federation.plan import PrivacyPlan

Engine = Literal["ghost", "opacus"]
Precision = Literal["float32", "bfloat16"]
_LEAST_TILE, _LARGEST_TILE = 32, 256


@dataclass(frozen=True)
class Compute:
    """``device``: auto, cpu or cuda:N. ``engine``: ghost clipping, or opacus' per-sample gradients
    as the slow reference. ``micro_batch``: records worked on at once, which bounds the memory (None:
    by the plan). ``precision`` of products in the ghost engine.
    """

    device: str = "cpu"
    engine: Engine = "ghost"
    micro_batch: int | None = None
    precision: Precision = "float32"

    def tile(self, privacy: PrivacyPlan) -> int:
        """Records worked on at once. Without a setting: about the expected batch of the largest
        site that the plan allows, a public number, between 32 and 256.
        """
        if self.micro_batch is not None:
            return self.micro_batch
        expected = privacy.sample_rate * privacy.n_max
        tile = _LEAST_TILE
        while tile < min(expected, _LARGEST_TILE):
            tile *= 2
        return tile


# Where nothing is configured.
AUTO = Compute(device="auto")


def resolve_device(wanted: str) -> str:
    """``auto`` becomes the first GPU if there is one, else the CPU; other names stay.

    Raises ``ValueError`` for a GPU that this machine does not have.
    """
    import torch  # takes seconds, and a sketch does not need it

    if wanted == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and not (
        torch.cuda.is_available() and (torch.device(wanted).index or 0) < torch.cuda.device_count()
    ):
        raise ValueError(f"this machine has no device {wanted!r}; use auto or cpu")
    return wanted
