"""Ghost clipping through a hypernetwork: exact clipped sums at about the price of one gradient.

``clipped_sum`` returns the sum over units of their clipped gradients over ALL trainable blocks
(trunk, heads, priors, conditioning, decoder, encoder, classifier, code) without a [records,
parameters] tensor. One forward and one backward pass to the taps (no weight gradients); norms from
the taps; then the weighted sums. Derivation: docs/ghost-clipping-through-hypernetworks.md. Idea for
ordinary layers: Goodfellow 2015 (arXiv 1510.01799), Li et al. 2022 (2110.05679); through generated
weights: this project's own.

Neighbouring relation: add or remove one unit. Sensitivity: ``ClipRule.sensitivity`` in L2.
It rests on two facts, neither of which is the accuracy of a gradient:

1. What a unit adds is a function of that unit, its coins and released values alone. Tiles have one
   fixed shape (padded), so a record's float32 taps do not depend on how many others there are,
   nor on its place. Where this machine breaks that (``core.privacy.rowwise`` tries it), layers are
   computed in float64.
2. Norms and sums are taken in float64 of the SAME float32 taps, hence of what is really added.

Edge cases
----------
====================================  =====================================================
NaN or infinity in a unit's taps      the unit adds 0 in every block, others are untouched
records of a unit that cancel         the norm is raised to 2e-3 of the sum of the records'
                                      norms at least: rounding of what cancels stays small
zero gradient                         adds 0
a generated weight that overflows     is taken as 0, so that no code's records can spoil another's
no records at all                     the sum is 0
unit larger than a tile               summed over its tiles first, then clipped: exact
clip norm 0                           that part is 0 (ablation)
====================================  =====================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.models.architecture import Architecture
from core.models.grouped import Grouped, Span, Tape, Weights, generate
from core.models.losses import Records, record_losses
from core.privacy.clipping import ClipRule
from core.privacy.ghost_sums import Sums
from core.privacy.ghost_taps import Model, TileTaps
from core.privacy.ghost_trunk import Trunk
from core.privacy.rowwise import rows_are_alike

Load = Callable[[NDArray[np.int64]], Records]

# Records of a unit cancel if the norm of their sum is below this share of the sum of their norms.
# Above it, rounding moves the norm by less than the margin of clip factors (for inner products of
# up to 34,000 terms, more than a plan can have); below it, the norm is raised by this share.
_CANCELS = 2e-3


@dataclass(frozen=True, eq=False)
class HyperModel:
    """A network, its weights by block, and the codes [K, c] that records may be under.

    ``client_code``: index of the client's own code if it is trained (``network.trains_code``); the
    others, such as the neutral one, are constants. Weights decide device and precision: float32 or
    float64; with ``reduced`` layers multiply in bfloat16 (torch autocast). Either gives way to
    float64 where rows are not alike (fact 1 above).
    """

    network: Architecture
    weights: Weights
    codes: Tensor
    client_code: int | None = None
    reduced: bool = False


def clipped_sum(
    model: HyperModel,
    unit_of: NDArray[np.int64],
    code_of: NDArray[np.int64],
    load: Load,
    rule: ClipRule,
    *,
    tile: int = 256,
) -> Sums:
    """Sum of the units' clipped gradients, by block; ``Sums.vector()`` is flat. NOT noised.

    ``unit_of`` [n] unit of each record, ``code_of`` [n] index of its code, the same within a unit;
    ``load`` gives the records of row numbers. It is asked for at most ``tile`` rows at a time,
    which bounds the memory. Sensitivity: ``rule.sensitivity(model.network.groups)``.
    Raises ``ValueError`` for a unit under two codes or a tile below 1.
    """
    if tile < 1:
        raise ValueError("tile: at least one record must fit")
    if not _rows_are_alike(model, tile):
        model, load = _in_float64(model), _loading_float64(load)
    clipper = _Clipper(model, load, rule, tile)
    for rows, units in tiles(unit_of, code_of, tile):
        if units == 1 and len(rows) > tile:
            clipper.add_large(rows, int(code_of[rows[0]]))
        else:
            clipper.add_tile(rows, unit_of[rows], code_of[rows])
    return clipper.sums


def _rows_are_alike(model: HyperModel, tile: int) -> bool:
    codes = model.codes
    if codes.dtype == torch.float64 and not model.reduced:
        return True
    threads = torch.get_num_threads()
    device = str(codes.device)
    return rows_are_alike(model.network, tile, device, codes.dtype, model.reduced, threads)


def _in_float64(model: HyperModel) -> HyperModel:
    weights = {name: weight.double() for name, weight in model.weights.items()}
    return replace(model, weights=weights, codes=model.codes.double(), reduced=False)


def _loading_float64(load: Load) -> Load:
    def wide(rows: NDArray[np.int64]) -> Records:
        records = load(rows)
        features = None if records.features is None else records.features.double()
        return Records(records.residual.double(), records.labels, records.draws.double(), features)

    return wide


def tiles(
    unit_of: NDArray[np.int64], code_of: NDArray[np.int64], tile: int
) -> Iterator[tuple[NDArray[np.int64], int]]:
    """(rows, number of units) of whole units, at most ``tile`` rows; a larger unit comes alone.

    Sorted by code, so that between two codes at most one tile holds records of both.
    """
    if len(unit_of) == 0:
        return
    order = np.lexsort((unit_of, code_of))
    changes = (np.diff(unit_of[order]) != 0) | (np.diff(code_of[order]) != 0)
    firsts = np.append(0, np.flatnonzero(changes) + 1)
    if len(firsts) != len(np.unique(unit_of)):
        raise ValueError("code_of: records of one unit must be under one code")
    ends = np.append(firsts[1:], len(order))
    begin = 0
    while begin < len(firsts):
        fitting = int(np.searchsorted(ends, firsts[begin] + tile, side="right"))
        stop = max(begin + 1, fitting)
        yield order[firsts[begin] : ends[stop - 1]], stop - begin
        begin = stop


class _Clipper:
    """What the tiles of one sum share: trunk, generated decoders, rule, and the sum itself."""

    def __init__(self, model: HyperModel, load: Load, rule: ClipRule, tile: int) -> None:
        self._load, self._rule, self._tile = load, rule, tile
        self._network, self._reduced = model.network, model.reduced
        self._part_of = {group: rule.part(group) for group in model.network.groups}
        self._trunk = Trunk(model.network, model.weights, model.codes, model.client_code)
        self._device = self._trunk.outputs.device
        with torch.no_grad():
            outputs = self._trunk.outputs.to(model.weights["trunk.0.weight"].dtype)
            generated = generate(model.network, model.weights, outputs)
        # Infinity times the 0 of another code's records would silence them: a unit would move more
        # than itself. What overflows, in the precision of products, is taken as 0, for all records.
        product = torch.bfloat16 if model.reduced else model.codes.dtype
        generated = {name: _finite(value, product) for name, value in generated.items()}
        self._shared = Model(model.network, model.weights, generated, self._trunk)
        self.sums = Sums(model.network, self._trunk)

    def add_tile(
        self, rows: NDArray[np.int64], units: NDArray[np.int64], codes: NDArray[np.int64]
    ) -> None:
        """Clip the units of a tile, all of whose records are in it, and add them."""
        taps = self._taps(rows, codes)
        squares = self._by_part(taps.squares())
        unit_of = None
        distinct, place = np.unique(units, return_inverse=True)
        if len(distinct) < len(rows):
            # Padding is one more unit.
            unit_of = torch.full((self._tile,), len(distinct), device=self._device)
            unit_of[: len(rows)] = torch.as_tensor(place)
        usable = sum(squares.values(), torch.zeros((), device=self._device)).isfinite()
        if not bool(usable.all()):
            usable = _whole_units(usable, unit_of)
            taps.keep(usable)
            squares = {part: torch.where(usable, s, 0.0) for part, s in squares.items()}
        if unit_of is None:
            norms = {part: values.sqrt() for part, values in squares.items()}
        else:
            norms = self._unit_norms(taps, squares, unit_of)
        usable[len(rows) :] = False
        factors = {
            part: torch.where(usable, self._factors(part, values, unit_of), 0.0)
            for part, values in norms.items()
        }
        taps.add_to(self.sums, {group: factors[part] for group, part in self._part_of.items()})

    def add_large(self, rows: NDArray[np.int64], code: int) -> None:
        """Clip one unit that is larger than a tile, and add it."""
        whole = Sums(self._network, self._trunk)
        lengths = dict.fromkeys(self._part_of.values(), 0.0)
        for start in range(0, len(rows), self._tile):
            some = rows[start : start + self._tile]
            taps = self._taps(some, np.full(len(some), code))
            for part, values in self._by_part(taps.squares()).items():
                lengths[part] += float(values[: len(some)].sqrt().sum())
            if not np.isfinite(list(lengths.values())).all():
                return
            mine = torch.arange(self._tile, device=self._device) < len(some)
            taps.keep(mine)
            taps.add_to(whole, dict.fromkeys(self._part_of, mine.double()))
        squares = dict.fromkeys(lengths, 0.0)
        for group, value in whole.squares(code).items():
            squares[self._part_of[group]] += value
        factors = {}
        for part, square in squares.items():
            both = torch.tensor([[square**0.5], [lengths[part]]], dtype=torch.float64)
            factors[part] = float(self._rule.factors(part, _guarded(*both).numpy())[0])
        self.sums.add(whole, {group: factors[part] for group, part in self._part_of.items()})

    def _taps(self, rows: NDArray[np.int64], codes: NDArray[np.int64]) -> TileTaps:
        """Forward and backward pass of records, padded to the shape of a tile."""
        present, firsts = np.unique(codes, return_index=True)
        # Padding follows the last record, under its code.
        ends = [*firsts[1:].tolist(), self._tile]
        spans = [Span(*span) for span in zip(present.tolist(), firsts.tolist(), ends, strict=True)]
        tape = Tape()
        layers = Grouped(self._network, self._shared.weights, self._shared.generated, spans, tape)
        records = _padded(self._load(rows), self._tile)
        with (
            torch.enable_grad(),
            torch.autocast(self._device.type, torch.bfloat16, enabled=self._reduced),
        ):
            loss = record_losses(self._network, layers, records).sum()
        with torch.no_grad():
            return TileTaps(self._shared, spans, layers.owner, tape, loss)

    def _by_part(self, squares: dict[str, Tensor]) -> dict[str, Tensor]:
        """[B] squared norms by part, from those by group of blocks."""
        parts: dict[str, Tensor] = {}
        for group, values in squares.items():
            part = self._part_of[group]
            parts[part] = parts[part] + values if part in parts else values
        return parts

    def _unit_norms(
        self, taps: TileTaps, squares: dict[str, Tensor], unit_of: Tensor
    ) -> dict[str, Tensor]:
        """[U] norms of the units' summed gradients by part."""
        count = int(unit_of.max()) + 1
        same = unit_of[:, None] == unit_of[None, :]
        grams: dict[str, Tensor] = {}
        for product in taps.products():
            part, values = self._part_of[product.group], product.gram()
            grams[part] = grams[part].add_(values) if part in grams else values

        def by_unit(values: Tensor) -> Tensor:
            return values.new_zeros(count).index_add_(0, unit_of, values)

        norms = {}
        for part, gram in grams.items():
            summed = by_unit(torch.where(same, gram, 0.0).sum(1)).clamp_min(0.0).sqrt()
            norms[part] = _guarded(summed, by_unit(squares[part].sqrt()))
        return norms

    def _factors(self, part: str, norms: Tensor, unit_of: Tensor | None) -> Tensor:
        """[B] what each record's gradient is multiplied with: the factor of its unit."""
        factors = torch.as_tensor(self._rule.factors(part, norms.cpu().numpy()))
        factors = factors.to(norms.device)
        return factors if unit_of is None else factors[unit_of]


def _finite(values: Tensor, dtype: torch.dtype) -> Tensor:
    """``values`` with 0 for what is not finite in ``dtype``."""
    if bool(values.to(dtype).abs().max().isfinite()):
        return values
    return torch.where(values.to(dtype).isfinite(), values, 0.0)


def _guarded(norms: Tensor, lengths: Tensor) -> Tensor:
    """Norms [U] of sums, raised where the summed vectors, ``lengths`` [U] in all, cancel."""
    raised = torch.hypot(norms, _CANCELS * lengths)
    return torch.where(norms >= _CANCELS * lengths, norms, raised)


def _whole_units(usable: Tensor, unit_of: Tensor | None) -> Tensor:
    """[B] False for every record of a unit that has an unusable one."""
    if unit_of is None:
        return usable
    bad = torch.zeros(int(unit_of.max()) + 1, dtype=torch.int64, device=usable.device)
    bad.index_add_(0, unit_of, (~usable).long())
    return usable & (bad == 0)[unit_of]


def _padded(records: Records, size: int) -> Records:
    """Records of zeros appended up to ``size``."""
    missing = size - len(records.labels)
    if missing == 0:
        return records

    def fill(values: Tensor) -> Tensor:
        return torch.cat([values, values.new_zeros(missing, *values.shape[1:])])

    features = None if records.features is None else fill(records.features)
    return Records(fill(records.residual), fill(records.labels), fill(records.draws), features)
