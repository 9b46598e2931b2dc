"""What the report round compares records with: synthetic rows and public thresholds made of them.

Made by the server from the published model before the report round and stored in that model's
weights file (``with_reference``), so that every site uses the same bytes. The synthetic rows
themselves are made again at each site from the model and the plan's seed; a last bit that differs
there changes no sensitivity. Post-processing of released values: no privacy cost.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from core.federation.plan import RunSpec
from core.models.features import fourier_features, report_frequencies
from core.report.blocks import (
    CELLS,
    DISTANCES,
    FEATURE_PAIRS,
    MOST_DOMAINS,
    QUANTILES,
    RATIOS,
    STRETCHES,
)
from core.report.neighbours import MOST_ROWS, Synthetic, bins, cells, ratios
from core.synthesis.request import Mixture, SynthesisRequest
from core.synthesis.sampler import Generator
from core.wire import tensors

Vector = NDArray[np.float64]

_DOMAIN_ROWS = 2_000  # to which the classifier of one client's code is fitted
_MOST_NUMBERS = 2_000_000  # in the classifiers of all clients together
_SPREAD = 32  # principal axes of the features' covariance that are kept
_REACH = 1.25  # the map reaches so far beyond the outermost synthetic rows
_LEAST_STEP = 1e-6  # between thresholds, so that bins of rows that coincide keep their order

PREFIX = "report."
_TENSORS = (
    "classifiers", "distances", "axes", "edges", "features", "spread", "nearest", "ratio", "map",
)  # fmt: skip
_DOMAINS = "report_domains"


@dataclass(frozen=True, eq=False)
class Reference:
    """Public values of one report round, besides synthetic rows.

    ``classifiers`` [1 + J, C, d + 1] weights and bias on x/|x|, fitted to neutral rows and to rows
    of the code of each of ``domains`` (names of clients); ``distances`` [B - 1] thresholds;
    ``axes`` [2, d] and ``edges`` [2, 13] of the map; of the neutral rows themselves ``features``
    [F] means and ``spread`` [32, F], along which most of their covariance lies, and the shares
    ``nearest`` [B], ``ratio`` [B'], ``map`` [12, 12].
    """

    domains: tuple[str, ...]
    classifiers: Vector
    distances: Vector
    axes: Vector
    edges: Vector
    features: Vector
    spread: Vector
    nearest: Vector
    ratio: Vector
    map: Vector

    @classmethod
    def read(cls, spec: RunSpec, weights: bytes, *, classifiers: bool = True) -> Reference:
        """From a weights file. Raises ``TensorFileError`` unless all is there, finite and of the
        run's shape. A site calls it before records are used: whether it is usable must not depend
        on those. ``classifiers``: False where they have done their work and are gone.
        """
        content, metadata = tensors.unpack(weights)
        try:
            domains = json.loads(metadata[_DOMAINS])
            if not isinstance(domains, list) or not all(isinstance(name, str) for name in domains):
                raise ValueError("the domains are no list of names")
        except (KeyError, ValueError) as error:
            raise tensors.TensorFileError("these weights name no domains of a report") from error
        if len(domains) > MOST_DOMAINS:
            raise tensors.TensorFileError("these weights have too many domains for a report")
        classes, dim = len(spec.space.classes), spec.space.dim
        shapes: dict[str, tuple[int, ...]] = {
            "classifiers": (1 + len(domains), classes, dim + 1),
            "distances": (DISTANCES,),
            "axes": (2, dim),
            "edges": (2, CELLS + 1),
            "features": (2 * FEATURE_PAIRS,),
            "spread": (_SPREAD, 2 * FEATURE_PAIRS),
            "nearest": (DISTANCES + 1,),
            "ratio": (len(RATIOS) + 1,),
            "map": (CELLS, CELLS),
        }
        found = {}
        for name in _TENSORS:
            if name == "classifiers" and not classifiers:
                found[name] = np.zeros((0, classes, dim + 1))
                continue
            value = content.get(PREFIX + name)
            if value is None or value.shape != shapes[name] or not np.isfinite(value).all():
                raise tensors.TensorFileError(f"{PREFIX}{name} is not finite or not {shapes[name]}")
            found[name] = np.asarray(value, np.float64)
        for name in ("distances", "edges"):
            if not (np.diff(found[name]) > 0).all():
                raise tensors.TensorFileError(f"{PREFIX}{name} does not ascend")
        return cls(domains=tuple(domains), **found)

    def tensors(self) -> dict[str, tensors.Array]:
        """float32 by name, as the weights file holds them."""
        return {PREFIX + name: np.asarray(getattr(self, name), np.float32) for name in _TENSORS}

    def metadata(self) -> dict[str, str]:
        return {_DOMAINS: json.dumps(list(self.domains))}


def without_classifiers(content: Mapping[str, tensors.Array]) -> dict[str, tensors.Array]:
    """The tensors of a weights file but the classifiers: the report round was their use."""
    return {name: value for name, value in content.items() if name != PREFIX + "classifiers"}


def reference(generator: Generator, clients: Sequence[str]) -> Reference:
    """The public values of a published model; ``clients`` have a code. One thread: the same bytes
    from the same model.
    """
    spec = generator.spec
    with threadpool_limits(1):
        synthetic = Synthetic.of(generator)
        rows = synthetic.directions
        two = synthetic.two_nearest_others()
        distances = _ascending(
            np.concatenate(
                [
                    np.quantile(two[:, 0], QUANTILES),
                    np.quantile(two[:, 0], QUANTILES[-1]) * np.array(STRETCHES),
                ]
            )
        )
        axes = _principal_axes(rows)
        edges = np.stack([_edges(rows @ axis) for axis in axes])
        domains = _domains(spec, clients)
        mixtures: list[Mixture] = ["neutral", *({name: 1.0} for name in domains)]
        classifiers = np.stack([_classifier(generator, mixture) for mixture in mixtures])
        features = fourier_features(rows, report_frequencies(spec, FEATURE_PAIRS))
        return Reference(
            domains=domains,
            classifiers=classifiers,
            distances=distances,
            axes=axes,
            edges=edges,
            features=features.mean(axis=0),
            spread=_spread(features),
            nearest=_shares(bins(two[:, 0], distances), DISTANCES + 1),
            ratio=_shares(bins(ratios(two), np.array(RATIOS)), len(RATIOS) + 1),
            map=_shares(cells(rows, axes, edges), CELLS**2).reshape(CELLS, CELLS),
        )


def with_reference(
    spec: RunSpec, frame: bytes, weights: bytes, withdrawn: Collection[str] = ()
) -> bytes:
    """The weights file with what the report round behind it needs. ``withdrawn``: ids of clients
    that have no code of their own any more.
    """
    generator = Generator.load(frame, weights, spec)
    of = zip(generator.frame.client_ids, generator.clients, strict=True)
    made = reference(generator, [name for client, name in of if client not in withdrawn])
    content, metadata = tensors.unpack(weights)
    own = {name: np.asarray(value) for name, value in content.items()}
    return tensors.pack(own | made.tensors(), metadata | made.metadata())


def _domains(spec: RunSpec, clients: Sequence[str]) -> tuple[str, ...]:
    """Whose codes are tried: all clients', or nobody's where they are too many (or one)."""
    numbers = len(clients) * len(spec.space.classes) * (spec.space.dim + 1)
    few = 2 <= len(clients) <= MOST_DOMAINS and numbers <= _MOST_NUMBERS
    return tuple(clients) if few else ()


def _classifier(generator: Generator, mixture: Mixture) -> Vector:
    """[C, d + 1] the fixed classifier of this project, fitted to rows of a mixture."""
    from core.evaluation.utility import linear_classifier  # scikit-learn: slow to import

    spec = generator.spec
    count = MOST_ROWS if mixture == "neutral" else _DOMAIN_ROWS
    request = SynthesisRequest(run=spec.run_id, n=count, mixture=mixture)
    rows = generator.sample(request, spec.plan.seed)
    weight, bias = linear_classifier(rows.x, rows.y, len(spec.space.classes))
    return np.concatenate([weight, bias[:, None]], axis=1)


def _principal_axes(rows: Vector) -> Vector:
    """[2, d] of rows [n, d], each with its largest entry positive."""
    centred = rows - rows.mean(axis=0)
    if rows.shape[1] <= len(rows):
        axes = np.linalg.eigh(centred.T @ centred)[1][:, :-3:-1].T
    else:  # the same by the smaller matrix
        axes = np.linalg.eigh(centred @ centred.T)[1][:, :-3:-1].T @ centred
        axes = axes / np.maximum(np.linalg.norm(axes, axis=1, keepdims=True), 1e-12)
    largest = np.abs(axes).argmax(axis=1)
    return np.asarray(axes * np.sign(axes[np.arange(2), largest])[:, None])


def _spread(features: Vector) -> Vector:
    """[32, F] the widest principal axes of features [n, F], as long as their standard deviation."""
    values, axes = np.linalg.eigh(np.cov(features.T, bias=True))
    widest = slice(None, -_SPREAD - 1, -1)
    return np.asarray(np.sqrt(np.maximum(values[widest], 0.0))[:, None] * axes[:, widest].T)


def _edges(along: Vector) -> Vector:
    """[13] equally far apart, around the middle of what synthetic rows reach."""
    middle = (along.max() + along.min()) / 2.0
    reach = _REACH * max(float(along.max() - along.min()) / 2.0, _LEAST_STEP * CELLS)
    return np.linspace(middle - reach, middle + reach, CELLS + 1)


def _ascending(thresholds: Vector) -> Vector:
    """Strictly, also in float32."""
    out = thresholds.copy()
    for i in range(1, len(out)):
        out[i] = max(out[i], out[i - 1] + _LEAST_STEP)
    return out


def _shares(of: NDArray[np.int64], count: int) -> Vector:
    return np.bincount(of, minlength=count) / len(of)
