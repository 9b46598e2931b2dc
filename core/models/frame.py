"""The frame: what the released sketches fix before training. Post-processing, hence free.

From every client's noised sketch: pooled class means (the neutral decoder's base output), one
code per client, the directions in which codes move the class means, the directions in which the
residual decoder may move a sample, and public denominators. No estimate here sees a record.

Scaling: sketches speak of directions x/|x|; the model works on sqrt(d) x/|x|, so lengths below
are multiplied by sqrt(d) at the end.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from core.federation.plan import RunSpec
from core.models.layout import residual_rank, sketch_layout
from core.privacy.mechanism import sensitivity
from core.wire import tensors

Vector = NDArray[np.float64]

# A count below this many standard deviations of its own noise is not trusted as a denominator.
_TRUSTED_SDS = 2.0
_RIDGE = 1e-6  # relative to the codes' energy: only keeps the solve well posed
_MIN_SCALE = 0.05  # public floor of the residual scale (in units of a coordinate's scale, 1)


@dataclass(frozen=True, eq=False)
class Frame:
    """Public constants of a run's model. C classes, d dimensions, c code width, r rank, M clients.

    ``base`` [C, d] decoder output under the neutral code; ``directions`` [c, C, d] its change per
    unit of code; ``basis`` [r, d] orthonormal rows; ``scale`` [1] isotropic standard deviation per
    coordinate and ``factors`` [k, d] what spreads more than that (covariance scale^2 I + F^T F);
    ``codes`` [M, c]; ``code_offset`` [c] and ``code_scale`` [1] of the map from sketches to codes;
    ``class_probs`` [C]; ``sizes`` [M] noised unit counts, floored.
    """

    base: Vector
    directions: Vector
    basis: Vector
    scale: Vector
    factors: Vector
    codes: Vector
    code_offset: Vector
    code_scale: Vector
    class_probs: Vector
    sizes: Vector
    client_ids: tuple[str, ...]
    clients: tuple[str, ...]

    def require(self, spec: RunSpec) -> None:
        """Raise ``TensorFileError`` unless every array is finite and of the run's shape.

        A site calls this before its records are used. Otherwise a dishonest coordinator could
        spoil the entries of one class and see from the site's failure whether it holds that class.
        """
        classes, dim = len(spec.space.classes), spec.space.dim
        clients, width = len(self.client_ids), spec.plan.model.code_dim
        shapes = {
            "base": (classes, dim),
            "directions": (width, classes, dim),
            "basis": (residual_rank(spec), dim),
            "scale": (1,),
            "factors": (*self.factors.shape[:1], dim),
            "codes": (clients, width),
            "code_offset": (width,),
            "code_scale": (1,),
            "class_probs": (classes,),
            "sizes": (clients,),
        }
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array.shape != shape or not np.isfinite(array).all():
                raise tensors.TensorFileError(f"{name} of this frame is not finite or not {shape}")
        try:
            self.whiten(np.zeros((1, dim)))
        except np.linalg.LinAlgError as error:
            raise tensors.TensorFileError("this frame's spread is not a covariance") from error

    def code(self, client_id: str) -> Vector:
        """[c] the released code of a client of this run. Raises ``KeyError`` if it has none."""
        if client_id not in self.client_ids:
            raise KeyError(f"client {client_id} has no code: it posted no sketch")
        return np.asarray(self.codes[self.client_ids.index(client_id)])

    def base_output(self, code: Vector) -> Vector:
        """[C, d] class means under a code [c]."""
        return np.asarray(self.base + np.tensordot(code, self.directions, axes=1))

    @cached_property
    def spread_root(self) -> Vector:
        """[r, r] lower Cholesky factor of the covariance within the basis."""
        inside = self.factors @ self.basis.T
        rank = len(self.basis)
        covariance = self.scale[0] ** 2 * np.eye(rank) + inside.T @ inside
        return np.asarray(np.linalg.cholesky(covariance), np.float64)

    def whiten(self, residuals: Vector) -> Vector:
        """[n, r] residuals [n, d] in the basis, in units of their released spread."""
        return np.asarray(np.linalg.solve(self.spread_root, self.basis @ residuals.T).T)

    def colour(self, whitened: Vector) -> Vector:
        """[n, d] from [n, r]: the way back from ``whiten``."""
        return np.asarray(whitened @ self.spread_root.T @ self.basis)

    def to_bytes(self, spec_digest: str) -> bytes:
        """A tensor file; the frame is float32 on the wire."""
        arrays = {
            field.name: np.asarray(getattr(self, field.name), np.float32)
            for field in fields(self)
            if field.name not in {"client_ids", "clients"}
        }
        names = {"client_ids": json.dumps(self.client_ids), "clients": json.dumps(self.clients)}
        return tensors.pack(arrays, {"kind": "frame", "spec": spec_digest, **names})

    @classmethod
    def from_bytes(cls, body: bytes) -> Frame:
        """Inverse of ``to_bytes``. Raises ``TensorFileError`` for anything else."""
        content, metadata = tensors.unpack(body)
        if metadata.get("kind") != "frame":
            raise tensors.TensorFileError("this tensor file is not a frame")
        arrays = {name: np.asarray(value, np.float64) for name, value in content.items()}
        return cls(
            **arrays,
            client_ids=tuple(json.loads(metadata["client_ids"])),
            clients=tuple(json.loads(metadata["clients"])),
        )


def shrink(estimate: Vector, target: Vector, noise_variance: float) -> Vector:
    """Positive-part James-Stein: pull ``estimate`` [d] towards ``target`` [d].

    ``noise_variance`` is the known variance of each coordinate. Where the distance is no more
    than noise explains, the result is the target.
    """
    distance = float(np.sum((estimate - target) ** 2))
    if distance <= 0.0:
        return target.copy()
    keep = max(0.0, 1.0 - estimate.size * noise_variance / distance)
    return np.asarray(target + keep * (estimate - target))


def build(
    spec: RunSpec, sketches: Sequence[Vector], client_ids: Sequence[str], clients: Sequence[str]
) -> Frame:
    """The frame of a run from its released sketches [C + C * d] each, in a fixed client order."""
    dim = spec.space.dim
    counts, sums, count_sd, sum_sd = read_sketches(spec, sketches)
    means, grand, class_counts = _pooled_means(counts, sums, count_sd, sum_sd)
    shifts, deviations = site_deviations(counts, sums, means, count_sd, sum_sd)
    class_probs = class_counts / class_counts.sum()
    projected = project(spec, counts, sums, count_sd)
    offset = projected.mean(axis=0)
    length = math.sqrt(float(np.mean(np.sum((projected - offset) ** 2, axis=1))))
    # One public factor: the codes' root mean square length is sqrt(c).
    code_scale = math.sqrt(projected.shape[1]) / length if length > 1e-12 else 1.0
    codes = code_scale * (projected - offset)
    gram = codes @ codes.T
    ridge = _RIDGE * max(float(np.trace(gram)), 1.0)
    to_clients = codes.T @ np.linalg.inv(gram + ridge * np.eye(len(codes)))  # [c, M]
    # |x|^2 = 1 for every direction, so what the means do not explain is spread: no query needed.
    explained = float(class_probs @ np.sum(means**2, axis=1))
    scale = math.sqrt(max(1.0 - explained, _MIN_SCALE**2))
    root = math.sqrt(dim)
    return Frame(
        base=root * means,
        directions=root * np.tensordot(to_clients, deviations, axes=1),
        basis=_basis(spec, means - grand, shifts, class_probs),
        scale=np.array([scale]),
        factors=np.zeros((0, dim)),
        codes=codes,
        code_offset=offset,
        code_scale=np.array([code_scale]),
        class_probs=class_probs,
        sizes=floored_sizes(counts, count_sd),
        client_ids=tuple(client_ids),
        clients=tuple(clients),
    )


def floored_sizes(counts: Vector, count_sd: float) -> Vector:
    """[M] noised unit counts from released counts [M, C], never below what their noise explains."""
    floor = _TRUSTED_SDS * count_sd * math.sqrt(counts.shape[1])
    return np.asarray(np.maximum(counts.sum(axis=1), max(1.0, floor)))


def read_sketches(spec: RunSpec, sketches: Sequence[Vector]) -> tuple[Vector, Vector, float, float]:
    """Released counts [M, C] and sums [M, C, d], weights taken off, with their noise's sds."""
    weights = spec.plan.sketch
    noise_std = spec.noise.sketch_multiplier * sensitivity(spec, 0)
    parts = [sketch_layout(spec).split(sketch) for sketch in sketches]
    counts = np.stack([np.asarray(p["counts"], np.float64) / weights.count_weight for p in parts])
    sums = np.stack([np.asarray(p["sums"], np.float64) / weights.mean_weight for p in parts])
    return counts, sums, noise_std / weights.count_weight, noise_std / weights.mean_weight


def _pooled_means(
    counts: Vector, sums: Vector, count_sd: float, sum_sd: float
) -> tuple[Vector, Vector, Vector]:
    """Class means [C, d] shrunk to the grand mean [d], and trusted pooled counts [C]."""
    clients, classes = counts.shape
    floor = max(1.0, _TRUSTED_SDS * count_sd * math.sqrt(clients))
    class_counts = np.maximum(counts.sum(axis=0), floor)
    pooled = sums.sum(axis=0)
    grand = pooled.sum(axis=0) / max(float(counts.sum()), floor * math.sqrt(classes))
    raw = pooled / class_counts[:, None]
    variances = clients * (sum_sd / class_counts) ** 2
    means = np.stack(
        [shrink(mean, grand, float(v)) for mean, v in zip(raw, variances, strict=True)]
    )
    # A mean of directions cannot be longer than 1; noise can make it so.
    means /= np.maximum(1.0, np.linalg.norm(means, axis=1, keepdims=True))
    return means, np.asarray(grand), np.asarray(class_counts)


def site_deviations(
    counts: Vector, sums: Vector, means: Vector, count_sd: float, sum_sd: float
) -> tuple[Vector, Vector]:
    """Per client a common shift [M, d] and, with it, each class's deviation [M, C, d].

    The common shift averages over all classes and is therefore estimated with much less noise;
    what remains per class is kept only where it stands above its own noise.
    """
    clients, classes, dim = sums.shape
    zero = np.zeros(dim)
    shifts = np.zeros((clients, dim))
    deviations = np.zeros_like(sums)
    for m in range(clients):
        total = max(float(counts[m].sum()), _TRUSTED_SDS * count_sd * math.sqrt(classes), 1.0)
        unexplained = sums[m] - np.maximum(counts[m], 0.0)[:, None] * means
        shift = unexplained.sum(axis=0) / total
        shifts[m] = shrink(shift, zero, classes * (sum_sd / total) ** 2)
        for c in range(classes):
            count = max(float(counts[m, c]), _TRUSTED_SDS * count_sd, 1.0)
            own = unexplained[c] / count - shifts[m]
            deviations[m, c] = shifts[m] + shrink(own, zero, (sum_sd / count) ** 2)
    return shifts, deviations


def project(spec: RunSpec, counts: Vector, sums: Vector, count_sd: float) -> Vector:
    """A f [M, c]: sketches over their own counts, under a public random A.

    The code of a site is ``code_scale`` times the difference to ``code_offset``, the mean over
    the sites of the run: 0 is the average site.
    """
    clients, classes = counts.shape
    floor = max(1.0, _TRUSTED_SDS * count_sd * math.sqrt(classes))
    totals = np.maximum(counts.sum(axis=1), floor)[:, None]
    features = np.concatenate([counts, sums.reshape(clients, -1)], axis=1) / totals
    width = spec.plan.model.code_dim
    generator = np.random.Generator(np.random.Philox(key=spec.plan.seed, counter=[0, 0, 0, 1]))
    projection = generator.normal(0.0, 1.0 / math.sqrt(width), (width, features.shape[1]))
    return np.asarray(features @ projection.T)


def _basis(spec: RunSpec, contrasts: Vector, shifts: Vector, class_probs: Vector) -> Vector:
    """[r, d] orthonormal: class contrasts, then site shifts, then public random directions.

    Residuals matter to a classifier where the classes differ; that is where the few noised
    decoder outputs are spent.
    """
    weighted = contrasts * np.sqrt(class_probs)[:, None]
    leading = np.linalg.svd(weighted, full_matrices=False)[2][: len(contrasts) - 1]
    return _orthonormal([*leading, *shifts, *_public_directions(spec)], residual_rank(spec))


def residual_basis(spec: RunSpec, before: Vector, spread: Vector) -> Vector:
    """[r, d]: what was named before its public part, then directions of spread, then the rest.

    ``before`` is a frame's basis, ``spread`` [k, d] are released directions, widest first.
    """
    named = min(len(before), len(spec.space.classes) - 1)
    return _orthonormal([*before[:named], *spread, *before[named:]], residual_rank(spec))


def _public_directions(spec: RunSpec) -> Vector:
    generator = np.random.Generator(np.random.Philox(key=spec.plan.seed, counter=[0, 0, 0, 2]))
    return np.asarray(generator.normal(size=(residual_rank(spec), spec.space.dim)))


def _orthonormal(candidates: Sequence[Vector], rank: int) -> Vector:
    """The first ``rank`` independent directions of ``candidates``, orthonormal (Gram-Schmidt)."""
    rows = np.zeros((0, len(candidates[0])))
    for row in candidates:
        if len(rows) == rank:
            break
        rest = row - (rows @ row) @ rows
        rest = rest - (rows @ rest) @ rows  # twice is enough
        length = float(np.linalg.norm(rest))
        if length > 1e-9 * max(1.0, float(np.linalg.norm(row))):
            rows = np.vstack([rows, rest / length])
    return rows
