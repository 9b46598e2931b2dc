"""The server's choice between candidate generators, by what the validation round released.

After the last training round each candidate makes rows and a classifier is fitted to them, the one
by which this project measures utility. Sites then release, with noise, how many validation records
each classifier labels rightly. The preferred candidate is published unless another one is better by
more than chance explains: one standard deviation of the noise and of the sampling of records
together. Where the noise is large, nothing but the preference decides.

Reads released values only; what sites release is ``core.training.validation``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from core.federation.plan import RunSpec
from core.federation.server import starting_state
from core.models.candidates import Candidate, candidates
from core.models.frame import Frame
from core.models.layout import shared_layout
from core.synthesis.request import SynthesisRequest
from core.synthesis.sampler import Generator

Vector = NDArray[np.float64]
ROWS = 8_000  # synthetic records for each candidate's classifier
# Records on which two classifiers differ, as a share of all, at most: of good candidates of the
# same records. Only scales what sampling alone explains.
_DIFFERENT = 0.25


def published_average(spec: RunSpec, frame: Frame, average: Vector, candidate: Candidate) -> Vector:
    """[P] what samplers use if a candidate is published: its generator, the trained classifier."""
    if candidate != "sketch":
        return average
    initial = starting_state(spec, frame).phi
    parts = shared_layout(spec).split(average.copy())
    before = shared_layout(spec).split(initial)
    return shared_layout(spec).join(
        {n: parts[n] if n.startswith("classifier.") else before[n] for n in parts}
    )


def classifiers(
    spec: RunSpec, frame: Frame, average: Vector, offsets: Vector
) -> NDArray[np.float32]:
    """[J, C, d + 1] fitted to rows of every candidate, on x/|x|. One thread: the same bytes."""
    fitted = []
    shift = np.zeros((len(frame.client_ids), len(spec.space.classes)))  # rows are neutral
    for candidate in candidates(spec.plan):
        values = published_average(spec, frame, average, candidate)
        weights = shared_layout(spec).split(values)
        generator = Generator(spec, frame, weights, offsets, shift, guided=candidate == "guided")
        request = SynthesisRequest(run=spec.run_id, n=ROWS)
        samples = generator.sample(request, spec.plan.seed)
        with threadpool_limits(1):
            fitted.append(_fit(samples.x, samples.y, len(spec.space.classes)))
    return np.asarray(fitted, np.float32)


def _fit(x: NDArray[np.float32], y: NDArray[np.int64], classes: int) -> Vector:
    from core.evaluation.utility import linear_classifier  # scikit-learn: slow to import

    weight, bias = linear_classifier(x, y, classes)
    return np.concatenate([weight, bias[:, None]], axis=1)


def chosen(
    spec: RunSpec, frame: Frame, client_ids: Sequence[str], total: Vector, noise_std: float
) -> tuple[Candidate, Vector]:
    """(what to publish, estimated accuracies [J]) from the sum [J] that ``client_ids`` released.

    ``noise_std`` is one client's. Validation units are the plan's share of all, and released
    sizes count the others.
    """
    names = candidates(spec.plan)
    share = spec.plan.privacy.validation_share or 0.0
    known = sum(float(frame.sizes[frame.client_ids.index(client)]) for client in client_ids)
    units = max(1.0, known * share / (1.0 - share))
    scale = math.sqrt(len(names)) / units
    accuracy = np.asarray(scale * total)
    noise = scale * noise_std * math.sqrt(len(client_ids))
    spread = math.sqrt(2.0 * noise**2 + _DIFFERENT / units)
    best = int(np.argmax(accuracy))
    return names[best if accuracy[best] - accuracy[0] > spread else 0], accuracy
