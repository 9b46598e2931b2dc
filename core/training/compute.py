"""How a site computes its training rounds: a matter of the site, never of the plan.

Every choice here gives the same clipped sum, up to rounding (bfloat16: of some per cent), and the
same bound on what one unit adds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.federation.plan import RunSpec
from core.models.architecture import Architecture, architecture_of

Engine = Literal["ghost", "opacus"]
Precision = Literal["float32", "bfloat16"]
_LEAST_TILE = 32
# Numbers that the layers of one tile put out: about what the caches of a CPU core hold; on a GPU
# half a GiB, for a tile costs its launches there: two of 512 rows take twice as long as one.
_TILE_NUMBERS = 1 << 21
_TILE_NUMBERS_GPU = 1 << 27


@dataclass(frozen=True)
class Compute:
    """``device``: auto, cpu or cuda:N. ``engine``: ghost clipping, or opacus' per-sample gradients
    as the slow reference. ``micro_batch``: records worked on at once, which bounds the memory
    (None: ``tile_rows``). ``precision`` of products in the ghost engine.
    """

    device: str = "cpu"
    engine: Engine = "ghost"
    micro_batch: int | None = None
    precision: Precision = "float32"

    def tile(self, spec: RunSpec) -> int:
        """Records worked on at once: the setting, or as suits a site of a third of ``n_max``."""
        if self.micro_batch is not None:
            return self.micro_batch
        privacy = spec.plan.privacy
        numbers = _TILE_NUMBERS_GPU if self.device.startswith("cuda") else _TILE_NUMBERS
        batch = privacy.sample_rate * privacy.n_max / 3
        return tile_rows(architecture_of(spec), batch, numbers)


CPU = Compute()
AUTO = Compute(device="auto")


def tile_rows(network: Architecture, batch: float, numbers: int = _TILE_NUMBERS) -> int:
    """The power of two, from 32, that holds a ``batch`` unless memory (``numbers``) says less.

    Public numbers only: the shape of a site's work says nothing about its records.
    """
    shapes = network.encoder_shapes + network.decoder_shapes + network.classifier_shapes
    width = sum(out + into for out, into in shapes)
    rows = _LEAST_TILE
    while rows < batch and 2 * rows * width <= numbers:
        rows *= 2
    return rows


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
