"""Labelled embeddings from a published model: numpy only, the same rows for the same request.

x = sqrt(d) * unit( base_y(v) + s e + F^T f + Q^T A g(z, y, v) ), z ~ prior of (y, v), e and f
standard normal: the class mean under code v, the released spread (isotropic and along factors),
and the decoder's residual in its directions, in units of that spread. Rows are made in blocks
(``core.synthesis.rows``), so that a row depends on (model, request, seed, its place) only.

Where the run trained a classifier, it decides which rows carry which label
(``core.synthesis.guidance``).

Sampling is post-processing of released values: it costs no privacy, whatever the seed.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from core.errors import InvalidSynthesisRequest, UnknownMixtureClient
from core.federation.plan import RunSpec
from core.models.classifier import BIAS, WEIGHT, Linear
from core.models.codes import AVERAGE, read_offsets
from core.models.frame import Frame
from core.models.label_shift import curvature, read_label_shift, shifted
from core.models.layout import shared_layout
from core.receipts.content import Content
from core.recent import Recent
from core.synthesis.codes import Code
from core.synthesis.decoding import Decoding
from core.synthesis.domains import must_allow
from core.synthesis.formats.document import Document, Receipt
from core.synthesis.guidance import Guide, Guided
from core.synthesis.labels import Counted, Drawn, LabelSource, apportioned
from core.synthesis.proposals import Proposals
from core.synthesis.request import SynthesisRequest
from core.synthesis.rows import Rows, Source
from core.wire import tensors

_ID_DIGITS = 16
_KEPT_CODES = 32  # what was made ready for a code, of one generator


def _no_receipt(_: Content) -> Receipt:
    return {}


@dataclass(frozen=True, eq=False)
class Samples:
    """``x`` float32 [n, d] of norm sqrt(d), ``y`` int64 [n] ids into ``classes``.

    ``weights`` are the mixture as used (empty for neutral), ``seed`` the one that made the rows,
    ``guided`` whether the trained classifier chose the labels, ``caveat`` what must be said with
    them: ``core.federation.plan.NO_GUARANTEE``, or nothing.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    classes: tuple[str, ...]
    weights: dict[str, float]
    seed: int
    guided: bool = False
    caveat: str = ""

    def labels(self) -> list[str]:
        """Class names [n]."""
        return [self.classes[i] for i in self.y]


@dataclass(frozen=True, eq=False)
class Generator:
    """A published model, ready to sample. Build it with ``load``.

    ``guided``: its classifier was trained and is to choose the labels of rows. ``caveat``: what
    must be said with all that it makes, as its plan or its weights file says. ``withdrawn``:
    clients that a mixture must not name any more.
    """

    spec: RunSpec
    frame: Frame
    weights: dict[str, NDArray[np.floating]]
    offsets: NDArray[np.float64]  # [M, c] of trained codes; 0 where codes are not trained
    label_shift: NDArray[np.float64]  # [M, C] of ``core.models.label_shift``
    guided: bool = False
    caveat: str = ""
    withdrawn: frozenset[str] = frozenset()
    _kept: Recent[tuple[str, float, bool], Decoding | Guide] = field(
        init=False, repr=False, default_factory=lambda: Recent(_KEPT_CODES)
    )
    _lock: threading.Lock = field(init=False, repr=False, default_factory=threading.Lock)

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
        shift = read_label_shift(content, len(read.client_ids), len(spec.space.classes))
        guided = spec.plan.guidance.labels == "relabel" and metadata.get("guided") == "yes"
        caveat = spec.plan.privacy.caveat or metadata.get("caveat", "")
        return cls(spec, read, layout.split(average), offsets, shift, guided, caveat)

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
        """[k] the weighted sum of clients' rows [M, k]; 0 for "neutral"."""
        blended = np.zeros(rows.shape[1])
        if isinstance(mixture, str):
            return blended
        must_allow(mixture, self.withdrawn)
        for name, weight in mixture.items():
            if name not in self.clients:
                raise UnknownMixtureClient(
                    f"client {name!r} has no code in this run.",
                    field=f"mixture.{name}",
                    mend=f"Use {', '.join(self.clients)} or 'neutral'.",
                )
            blended = blended + weight * rows[self.clients.index(name)]
        return blended

    def codes(self, request: SynthesisRequest) -> tuple[Code, ...]:
        """The codes that a request's rows are made under. Raises ``UnknownMixtureClient``."""
        self.code(request.mixture)  # also clients of weight 0 must be known
        if isinstance(request.mixture, str):
            return (self._code_of("neutral", "neutral", 1.0),)
        named = {name: share for name, share in request.mixture.items() if share > 0}
        if request.mode == "sample":
            return tuple(self._code_of(name, {name: 1.0}, share) for name, share in named.items())
        domain = next(iter(named)) if len(named) == 1 else "blend"
        return (self._code_of(domain, request.mixture, 1.0),)

    def _code_of(self, domain: str, mixture: str | dict[str, float], share: float) -> Code:
        made = hashlib.sha256()
        for part in (self.code(mixture), self.network_code(mixture)):
            made.update(np.ascontiguousarray(part, "<f8").tobytes())
        return Code(domain, mixture, share, made.hexdigest()[:_ID_DIGITS])

    def rows(self, request: SynthesisRequest, seed: int) -> Rows:
        """The rows of a request, made when they are asked for. Raises ``InvalidMixture`` or
        ``InvalidSynthesisRequest``.
        """
        return self._rows(request, seed, self.codes(request))

    def _rows(self, request: SynthesisRequest, seed: int, codes: tuple[Code, ...]) -> Rows:
        sources = tuple(
            self._source(code, number, request, seed) for number, code in enumerate(codes)
        )
        shares = np.array([code.share for code in codes])
        return Rows(sources, shares, self._labels(request, seed), seed)

    def document(
        self,
        request: SynthesisRequest,
        seed: int,
        receipt: Callable[[tuple[Code, ...]], Receipt] | None = None,
        close: Callable[[Content], Receipt] = _no_receipt,
        watch: Callable[[int], None] | None = None,
    ) -> Document:
        """The rows of a request, ready to be written in any format, with the ``receipt`` that is
        made of their codes. Raises as ``rows`` does.
        """
        codes = self.codes(request)
        return Document(
            rows=self._rows(request, seed, codes),
            classes=self.spec.space.classes,
            codes=codes,
            dim=self.spec.space.dim,
            receipt={} if receipt is None else receipt(codes),
            close=close,
            dtype=request.dtype,
            columns=request.columns,
            watch=watch,
        )

    def _source(self, code: Code, number: int, request: SynthesisRequest, seed: int) -> Source:
        ready = self._ready(code, request.temperature, self.guides(request))
        if isinstance(ready, Guide):
            return Guided(ready, seed, number)
        return Proposals(ready, seed, number)

    def _ready(self, code: Code, temperature: float, guided: bool) -> Decoding | Guide:
        """All about a code that no seed decides; the least recently used one goes."""
        key = (code.id, temperature, guided)
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                found = self._decoding(code, temperature)
                if guided:
                    found = Guide(found, self.classifier(code.mixture))
                self._kept.keep(key, found)
        return found

    def _decoding(self, code: Code, temperature: float) -> Decoding:
        return Decoding(
            spec=self.spec,
            frame=self.frame,
            weights=self.weights,
            code=self.code(code.mixture),
            network_code=self.network_code(code.mixture),
            temperature=temperature,
        )

    def guides(self, request: SynthesisRequest) -> bool:
        """Does the trained classifier choose the labels of this request?"""
        return self.guided and request.guidance == "model"

    def sample(self, request: SynthesisRequest, seed: int) -> Samples:
        """All rows of a request at once. Raises as ``rows`` does."""
        blocks = list(self.rows(request, seed))
        mixture = {} if isinstance(request.mixture, str) else dict(request.mixture)
        return Samples(
            x=np.concatenate([block.x for block in blocks]),
            y=np.concatenate([block.y for block in blocks]),
            classes=self.spec.space.classes,
            weights=mixture,
            seed=seed,
            guided=self.guides(request),
            caveat=self.caveat,
        )

    def classifier(self, mixture: str | dict[str, float] = "neutral") -> Linear:
        """The classifier that labels rows of a mixture: rounds train one for all, and a client's
        label shift moves its bias. Raises ``UnknownMixtureClient``.
        """
        too_much = self._blend(mixture, self.label_shift)
        if not too_much.any():
            return self._trained
        return shifted(self._trained, too_much, self._curvature)

    @cached_property
    def _trained(self) -> Linear:
        weight, bias = self.weights[WEIGHT], self.weights[BIAS]
        return Linear(np.asarray(weight, np.float64), np.asarray(bias, np.float64))

    @cached_property
    def _curvature(self) -> float:
        """Of the trained classifier, where neutral rows lie: about as near to its boundaries as
        real records, while proposals of a class by itself are much farther from them.
        """
        neutral = self.code("neutral")
        made = Decoding(self.spec, self.frame, self.weights, neutral, neutral)
        return curvature(self._trained, Guide(made, self._trained).seen())

    def _labels(self, request: SynthesisRequest, seed: int) -> LabelSource:
        classes = self.spec.space.classes
        if request.class_counts is not None:
            self._must_know(request.class_counts, "class_counts")
            return Counted(tuple(request.class_counts.get(name, 0) for name in classes), seed)
        if request.n is None:
            raise InvalidSynthesisRequest("give exactly one of n and class_counts")
        if request.labels == "model":
            probabilities = np.asarray(self.frame.class_probs, np.float64)
            return Drawn(request.n, probabilities / probabilities.sum(), seed)
        shares = dict.fromkeys(classes, 1.0)
        if not isinstance(request.labels, str):
            self._must_know(request.labels, "labels")
            shares = {name: request.labels.get(name, 0.0) for name in classes}
        return Counted(apportioned(request.n, list(shares.values())), seed)

    def _must_know(self, named: Iterable[str], field: str) -> None:
        classes = self.spec.space.classes
        if unknown := sorted(set(named) - set(classes)):
            raise InvalidSynthesisRequest(
                f"class {unknown[0]!r} is not in the vocabulary.",
                field=f"{field}.{unknown[0]}",
                mend=f"Use {', '.join(classes[:10])}{' ...' if len(classes) > 10 else ''}.",
            )
