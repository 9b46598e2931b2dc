"""Labelled embeddings from a published model: numpy only, the same rows for the same request.

x = sqrt(d) * unit( base_y(v) + s e + F^T f + Q^T A g(z, y, v) ), z ~ prior of (y, v), e and f
standard normal: the class mean under code v, the released spread (isotropic and along factors),
and the decoder's residual in its directions, in units of that spread. Rows are made in blocks of
a fixed size, each from its own counter-based stream, so that a row depends on (model, request,
seed, its place) and on nothing else.

Sampling is post-processing of released values: it costs no privacy, whatever the seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.errors import InvalidSynthesisRequest, UnknownMixtureClient
from core.federation.plan import RunSpec
from core.models.architecture import architecture_of
from core.models.codes import AVERAGE, read_offsets
from core.models.frame import Frame
from core.models.generator import Generated, decode, generate
from core.models.layout import shared_layout
from core.synthesis.request import SynthesisRequest
from core.wire import tensors

BLOCK_ROWS = 4_096
_LABELS, _ROWS, _ALONG = 1, 2, 3  # purposes of the streams


@dataclass(frozen=True, eq=False)
class Samples:
    """``x`` float32 [n, d] of norm sqrt(d), ``y`` int64 [n] ids into ``classes``.

    ``weights`` are the mixture as used (empty for neutral), ``seed`` the one that made the rows.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    classes: tuple[str, ...]
    weights: dict[str, float]
    seed: int

    def labels(self) -> list[str]:
        """Class names [n]."""
        return [self.classes[i] for i in self.y]


@dataclass(frozen=True, eq=False)
class Generator:
    """A published model, ready to sample. Build it with ``load``."""

    spec: RunSpec
    frame: Frame
    weights: dict[str, NDArray[np.floating]]
    offsets: NDArray[np.float64]  # [M, c] of trained codes; 0 where codes are not trained

    @classmethod
    def load(cls, frame: bytes, weights: bytes, spec: RunSpec) -> Generator:
        """From the frame and weights files of one round. Raises ``TensorFileError``."""
        content, metadata = tensors.unpack(weights)
        layout = shared_layout(spec)
        if metadata.get("kind") != "weights" or metadata.get("layout") != layout.digest:
            raise tensors.TensorFileError("these weights do not belong to this run's layout")
        average = np.asarray(content["average"], np.float64)
        read = Frame.from_bytes(frame)
        offsets = read_offsets(spec, content, len(read.client_ids), AVERAGE)
        return cls(spec, read, layout.split(average), offsets)

    @property
    def clients(self) -> tuple[str, ...]:
        """Names that a mixture may use: clients that released a sketch in this run."""
        return self.frame.clients

    def code(self, mixture: str | dict[str, float]) -> NDArray[np.float64]:
        """[c] the blended code; 0 for "neutral". Raises ``UnknownMixtureClient``."""
        return self._blend(mixture, self.frame.codes)

    def network_code(self, mixture: str | dict[str, float]) -> NDArray[np.float64]:
        """[c] what the hypernetwork is given: ``code`` and the blended offset of trained codes."""
        return self.code(mixture) + self._blend(mixture, self.offsets)

    def _blend(
        self, mixture: str | dict[str, float], rows: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """[c] the weighted sum of clients' rows [M, c]; 0 for "neutral"."""
        code = np.zeros(self.spec.plan.model.code_dim)
        if isinstance(mixture, str):
            return code
        for name, weight in mixture.items():
            if name not in self.clients:
                raise UnknownMixtureClient(
                    f"client {name!r} has no code in this run.",
                    field=f"mixture.{name}",
                    mend=f"Use {', '.join(self.clients)} or 'neutral'.",
                )
            code = code + weight * rows[self.clients.index(name)]
        return code

    def sample(self, request: SynthesisRequest, seed: int) -> Samples:
        """Rows for a request. Raises ``InvalidMixture`` or ``InvalidSynthesisRequest``."""
        code = self.code(request.mixture)
        labels = self._labels(request, seed)
        classes = self.spec.space.classes
        network_code = self.network_code(request.mixture)
        theta = generate(architecture_of(self.spec), self.weights, network_code)
        spread = (self.frame.scale_under(code), self.frame.factors_under(code))
        base = self.frame.base_output(code)
        x = np.empty((len(labels), self.spec.space.dim), np.float32)
        for start in range(0, len(labels), BLOCK_ROWS):
            part = labels[start : start + BLOCK_ROWS]
            x[start : start + len(part)] = self._block(theta, base, spread, part, seed, start)
        mixture = {} if isinstance(request.mixture, str) else dict(request.mixture)
        return Samples(x, labels, classes, mixture, seed)

    def _labels(self, request: SynthesisRequest, seed: int) -> NDArray[np.int64]:
        classes = self.spec.space.classes
        if request.class_counts is None:
            draw = _stream(seed, _LABELS, 0)
            probabilities = self.frame.class_probs / self.frame.class_probs.sum()
            return np.asarray(draw.choice(len(classes), size=request.n, p=probabilities))
        unknown = sorted(set(request.class_counts) - set(classes))
        if unknown:
            raise InvalidSynthesisRequest(
                f"class {unknown[0]!r} is not in the vocabulary.",
                field=f"class_counts.{unknown[0]}",
                mend=f"Use {', '.join(classes[:10])}{' ...' if len(classes) > 10 else ''}.",
            )
        counts = [request.class_counts.get(name, 0) for name in classes]
        return np.repeat(np.arange(len(classes), dtype=np.int64), counts)

    def _block(
        self,
        theta: Generated,
        base: NDArray[np.float64],
        spread: tuple[float, NDArray[np.float64]],
        labels: NDArray[np.int64],
        seed: int,
        start: int,
    ) -> NDArray[np.float64]:
        """Rows of one block. Draws are made for a whole block, so a shorter request is a prefix."""
        latent, dim = self.spec.plan.model.latent_dim, self.spec.space.dim
        draw = _stream(seed, _ROWS, start // BLOCK_ROWS)
        normal = draw.standard_normal((BLOCK_ROWS, latent))[: len(labels)]
        isotropic = draw.standard_normal((len(labels), dim), dtype=np.float32)
        scale, factors = spread
        z = theta.prior_mean[labels] + np.exp(theta.prior_log_std[labels]) * normal
        # A stream of its own: what follows another draw's last row would depend on the length.
        along = _stream(seed, _ALONG, start // BLOCK_ROWS).standard_normal(
            (len(labels), len(factors))
        )
        rows = base[labels] + scale * isotropic + along @ factors
        rows += self.frame.colour(decode(theta, z, labels))
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        return np.asarray(np.sqrt(dim) * rows / np.where(norms > 0, norms, 1.0))


def _stream(seed: int, purpose: int, block: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, block, purpose]))
