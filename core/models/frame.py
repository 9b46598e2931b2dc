"""The frame: what the released sketches fix before training. Post-processing, hence free.

From every client's noised sketch: pooled class means (the neutral decoder's base output), one
code per client, the directions in which codes move the class means, the directions in which the
residual decoder may move a sample, and public denominators. No estimate here sees a record.

Scaling: sketches speak of directions x/|x|; the model works on sqrt(d) x/|x|, so lengths below
are multiplied by sqrt(d) at the end.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from core.federation.plan import RunSpec
from core.models.layout import residual_rank
from core.wire import tensors

Vector = NDArray[np.float64]

_LEAST_REST = 0.25  # of the neutral code's isotropic variance, under any code


@dataclass(frozen=True, eq=False)
class Frame:
    """Public constants of a run's model. C classes, d dimensions, c code width, r rank, M clients.

    ``base`` [C, d] decoder output under the neutral code; ``directions`` [c, C, d] its change per
    unit of code; ``basis`` [r, d] orthonormal rows; ``scale`` [1] isotropic standard deviation per
    coordinate and ``factors`` [k, d] what spreads more than that (covariance scale^2 I + F^T F);
    ``factor_directions`` [c, k] change of a factor's log variance per unit of code; ``targets``
    [C, f] mean random features of each class, noise of variance ``target_variance`` [C] (f may
    be 0);
    ``codes`` [M, c]; ``code_offset`` [c] and ``code_scale`` [1] of the map from sketches to codes;
    ``class_probs`` [C]; ``sizes`` [M] noised unit counts, floored.
    """

    base: Vector
    directions: Vector
    basis: Vector
    scale: Vector
    factors: Vector
    factor_directions: Vector
    targets: Vector
    target_variance: Vector
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
            "factor_directions": (width, *self.factors.shape[:1]),
            "targets": (classes, *self.targets.shape[1:2]),
            "target_variance": (classes,),
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

    @property
    def centre(self) -> Vector:
        """[d] the mean of directions x/|x| under the neutral code."""
        probs = self.class_probs / self.class_probs.sum()
        return np.asarray(probs @ self.base / np.sqrt(self.base.shape[1]))

    def base_output(self, code: Vector) -> Vector:
        """[C, d] class means under a code [c]."""
        return np.asarray(self.base + np.tensordot(code, self.directions, axes=1))

    def factors_under(self, code: Vector) -> Vector:
        """[k, d] factors under a code [c]; their variance changes by e at most, either way."""
        change = np.clip(code @ self.factor_directions, -1.0, 1.0)
        return np.asarray(np.exp(0.5 * change)[:, None] * self.factors)

    def scale_under(self, code: Vector) -> float:
        """Isotropic standard deviation under a code [c]: directions keep their length of 1.

        What its class means or factors take of the mean square length, the rest gives.
        """
        dim = self.base.shape[1]
        explained = np.sum(self.base_output(code) ** 2, axis=1) - np.sum(self.base**2, axis=1)
        along = np.sum(self.factors_under(code) ** 2) - np.sum(self.factors**2)
        square = float(self.scale[0]) ** 2
        rest = square - float(self.class_probs @ explained + along) / dim
        return float(np.sqrt(max(rest, _LEAST_REST * square)))

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
