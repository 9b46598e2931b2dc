"""What a published model makes: labels, a picture in the plane, how clients' codes differ.

Post-processing of a released model: free, and the same for the same model.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from core.report.report import Balance, Differences, Point, Projection, Synthetic
from core.synthesis.request import SynthesisRequest
from core.synthesis.sampler import Generator

Vector = NDArray[np.float64]

SEED = 0  # so that the report of a model is always the same
_BALANCE_ROWS, _AXES_ROWS = 2_000, 500
_NEUTRAL_POINTS, _CLIENT_POINTS = 360, 60
_MOST_CLOUDS, _MOST_CODES = 8, 12  # clients in a picture; more cannot be told apart
_DIGITS = 4


def synthetic(generator: Generator, withdrawn: Collection[str] = ()) -> Synthetic:
    """``withdrawn``: clients under whose code nothing may be made."""
    named = [name for name in generator.clients if name not in withdrawn]
    neutral = _request(n=_BALANCE_ROWS)
    made = generator.sample(neutral, SEED)
    counts = np.bincount(made.y, minlength=len(made.classes))
    return Synthetic(
        seed=SEED,
        labels_by="trained classifier" if generator.guides(neutral) else "generator",
        balance=Balance(n=_BALANCE_ROWS, shares=tuple((counts / counts.sum()).tolist())),
        projection=_projection(generator, named[:_MOST_CLOUDS], made.x, made.y),
        differences=_differences(generator, named[:_MOST_CODES], max(0, len(named) - _MOST_CODES)),
    )


def _request(n: int, client: str | None = None) -> SynthesisRequest:
    mixture = "neutral" if client is None else {client: 1.0}
    return SynthesisRequest.model_validate({"run": "report", "n": n, "mixture": mixture})


def _projection(
    generator: Generator,
    clients: Sequence[str],
    neutral: NDArray[np.float32],
    labels: NDArray[np.int64],
) -> Projection:
    """The plane in which rows of the neutral code spread most, and rows of clients' codes in it."""
    directions = _directions(neutral[:_AXES_ROWS])
    centre = directions.mean(axis=0)
    # The first principal axes, from the smaller of the two products.
    _, values, axes = np.linalg.svd(directions - centre, full_matrices=False)
    plane = _signed(axes[:2])
    variance = values**2
    explained = variance[:2] / max(float(variance.sum()), 1e-300)
    points = _points((directions[:_NEUTRAL_POINTS] - centre) @ plane.T, labels, -1)
    for place, client in enumerate(clients):
        made = generator.sample(_request(_CLIENT_POINTS, client), SEED)
        points += _points((_directions(made.x) - centre) @ plane.T, made.y, place)
    return Projection(
        explained=(round(float(explained[0]), _DIGITS), round(float(explained[1]), _DIGITS)),
        clients=tuple(clients),
        points=tuple(points),
    )


def _directions(x: NDArray[np.float32]) -> Vector:
    wide = np.asarray(x, np.float64)
    return np.asarray(wide / np.linalg.norm(wide, axis=1, keepdims=True))


def _signed(axes: Vector) -> Vector:
    """Each axis with its largest entry positive: otherwise its sign is the library's choice."""
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    return np.asarray(axes * np.sign(largest))


def _points(places: Vector, labels: NDArray[np.int64], client: int) -> list[Point]:
    return [
        Point(x=round(float(x), _DIGITS), y=round(float(y), _DIGITS), label=int(y_), client=client)
        for (x, y), y_ in zip(places, labels, strict=False)
    ]


def _differences(generator: Generator, clients: Sequence[str], left_out: int) -> Differences:
    """Root mean square, over the classes by their shares, of the distance of class means."""
    frame = generator.frame
    probabilities = frame.class_probs / frame.class_probs.sum()
    root = np.sqrt(probabilities)[:, None]
    means = [root * frame.base_output(generator.code({one: 1.0})) for one in clients]
    typical = float(probabilities @ _squared(frame.base) @ probabilities)
    unequal = max(1.0 - float(probabilities @ probabilities), 1e-12)
    unit = max(np.sqrt(typical / unequal), 1e-12)
    apart = _squared(np.stack([one.ravel() for one in means] or [frame.base.ravel()]))
    values = np.round(np.sqrt(apart) / unit, _DIGITS)
    kept = range(len(clients))
    return Differences(
        clients=tuple(clients),
        values=tuple(tuple(float(values[a, b]) for b in kept) for a in kept),
        left_out=left_out,
    )


def _squared(rows: Vector) -> Vector:
    """[n, n] squared distances of rows [n, d]."""
    lengths = np.sum(rows**2, axis=1)
    apart = np.maximum(lengths[:, None] + lengths[None, :] - 2.0 * rows @ rows.T, 0.0)
    np.fill_diagonal(apart, 0.0)
    return np.asarray(apart)
