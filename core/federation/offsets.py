"""The server's side of trained codes: offsets from posted code blocks. Post-processing, free.

Each client posts the noised sum over its units of the gradient at its code, as one block of the
jointly clipped vector. Its own offset moves by the server's optimiser, with moments and a step
count of its own, over q times its released noised units: nobody else's update enters. A client
that does not answer a round keeps its offset. What samplers use is the running average of
offsets, round by round like that of the shared weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from core.federation.optimiser import server_step
from core.federation.plan import RunSpec
from core.models.codes import AVERAGE, OFFSETS, predicted_offsets, read_offsets
from core.models.frame import Frame
from core.models.layout import CODE, Layout
from core.wire import tensors

Vector = NDArray[np.float64]
_VALUES, _FIRST, _SECOND, _STEPS = "offsets", "offset_first", "offset_second", "offset_steps"
PER_CLIENT = (_VALUES, _FIRST, _SECOND)  # in the optimiser file: a row for each client


@dataclass(frozen=True, eq=False)
class Offsets:
    """Of the M founding clients, in the frame's order: ``values``, ``average``, optimiser moments
    ``first``, ``second`` [M, c]; ``steps`` [M] rounds that each one has answered.
    """

    values: Vector
    average: Vector
    first: Vector
    second: Vector
    steps: NDArray[np.int64]

    @classmethod
    def start(cls, spec: RunSpec, clients: int) -> Offsets | None:
        """Zeros; None where codes are not trained."""
        if spec.plan.model.codes != "trained":
            return None
        zeros = np.zeros((clients, spec.plan.model.code_dim))
        return cls(zeros, zeros, zeros, zeros, np.zeros(clients, np.int64))

    @classmethod
    def read(
        cls,
        spec: RunSpec,
        weights: Mapping[str, NDArray[np.generic]],
        optimiser: Mapping[str, NDArray[np.generic]],
    ) -> Offsets | None:
        """From the tensors of the previous round's files; None where codes are not trained."""
        if spec.plan.model.codes != "trained":
            return None
        steps = np.asarray(optimiser[_STEPS], np.int64)
        values, first, second = (
            np.asarray(optimiser[name], np.float64) for name in (_VALUES, _FIRST, _SECOND)
        )
        average = read_offsets(spec, weights, len(steps), AVERAGE)
        return cls(values, average, first, second, steps)

    def after(
        self, spec: RunSpec, frame: Frame, sums: Mapping[int, Vector], decay: float
    ) -> Offsets:
        """One round on: ``sums`` has the noised code block [c] of each client that answered, by
        its place in the frame; ``decay`` of the average is that of the shared weights.
        """
        values, first, second = self.values.copy(), self.first.copy(), self.second.copy()
        steps = self.steps.copy()
        privacy = spec.plan.privacy
        for place, total in sums.items():
            batch = privacy.sample_rate * float(frame.sizes[place]) * privacy.local_steps
            steps[place] += 1
            values[place], first[place], second[place] = server_step(
                spec,
                int(steps[place]),
                values[place],
                total / batch,
                first[place],
                second[place],
            )
        average = np.asarray(decay * self.average + (1.0 - decay) * values)
        return replace(
            self, values=values, average=average, first=first, second=second, steps=steps
        )


def code_part(posted: Layout, released: NDArray[np.floating]) -> Vector:
    """[c] the code block of a released vector [P]; [0] where codes are not trained."""
    own = posted.only(lambda group: group == CODE)
    return np.asarray(released[posted.places(own)], np.float64)


def published(offsets: Offsets | None) -> dict[str, tensors.Array]:
    """What clients and samplers read in the weights file."""
    if offsets is None:
        return {}
    return {
        OFFSETS: offsets.values.astype(np.float32),
        AVERAGE: offsets.average.astype(np.float32),
    }


def state(offsets: Offsets | None) -> dict[str, tensors.Array]:
    """What the next round needs in the optimiser file."""
    if offsets is None:
        return {}
    return {
        _VALUES: offsets.values,
        _FIRST: offsets.first,
        _SECOND: offsets.second,
        _STEPS: offsets.steps,
    }


def joined(spec: RunSpec, before: Frame, after: Frame, weights: bytes, optimiser: bytes) -> bytes:
    """The weights file with offsets for the clients that ``after`` has more than ``before``.

    By the public map that fits the pairs (sketch code, offset) of founding clients that have
    trained; rows of clients before stay as they are. The same bytes where codes are not trained.
    """
    if spec.plan.model.codes != "trained":
        return weights
    content, metadata = tensors.unpack(weights)
    trained = np.asarray(tensors.unpack(optimiser)[0][_STEPS]) > 0
    old = len(before.client_ids)
    pairs = np.flatnonzero(trained)
    longer = {name: np.asarray(value, np.float32) for name, value in content.items()}
    for name in (OFFSETS, AVERAGE):
        known = read_offsets(spec, content, old, name)
        new = predicted_offsets(before.codes[pairs], known[pairs], after.codes[old:])
        longer[name] = np.concatenate([longer[name], new.astype(np.float32)])
    return tensors.pack(longer, metadata)
