"""A published generator as one file that needs nothing else: ``pack`` writes it, ``load`` reads it.

A safetensors file. Tensors (float32): ``frame.*`` and ``weights.*`` are what samplers run, of the
frame and of the average weights; ``clients.codes`` [M, c], ``clients.offsets`` [M, c] and
``clients.label_shift`` [M, C] are what clients have of their own. Metadata (text): ``format``,
``spec`` (JSON), ``clients`` (JSON, M names), ``guided``, ``card`` (Markdown), ``licence`` and
``receipt``: a signed ``core.receipts.receipt.ModelReceipt``, which holds digests of the tensors
and of the card. The same model gives the same bytes.

What only training needs is left out (encoder, MMD targets, counts of units), and so is all that
belongs to a client that has withdrawn. Everything here was released before: no privacy cost.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from core.federation.plan import RunSpec
from core.models.frame import Frame
from core.models.layout import ENCODER, Layout, residual_rank, shared_layout
from core.receipts.opening import ModelFacts, caveat_of
from core.receipts.receipt import NOT_PRIVATE, ModelReceipt
from core.receipts.signing import Signed
from core.storage import sha256_of
from core.synthesis.card import Card, described
from core.synthesis.sampler import Generator
from core.wire import tensors
from core.wire.tensors import TensorFileError

FORMAT = "fedhypevae-generator-1"
SIMULATION = "a simulation: records of all sites were in one process"
MAX_BYTES = 1 << 31  # of a file: more than any plan may ask for

_FRAME = (
    "base", "directions", "basis", "scale", "factors", "factor_directions", "class_probs",
)  # fmt: skip
_OWN = ("codes", "offsets", "label_shift")
_MEND = "Download it again (GET /v1/runs/{run}/export)."

Arrays = Mapping[str, NDArray[np.float32]]


def pack(
    generator: Generator,
    facts: ModelFacts,
    *,
    licence: str,
    sign: Callable[[ModelReceipt], Signed],
    without: frozenset[str] = frozenset(),
    domains: Mapping[str, Sequence[str]] | None = None,
) -> bytes:
    """The file of a generator. ``without``: names of clients whose own part must not be in it.
    ``domains``: label -> clients that it stands for in mixtures.
    """
    spec, left = generator.spec, [name for name in generator.clients if name not in without]
    withdrawn = tuple(sorted({*facts.withdrawn, *without}))
    caveat = caveat_of(spec, facts.noise_mode, generator.caveat)
    if spec.plan.purpose == "simulation":
        caveat = caveat or SIMULATION
    text = described(
        spec,
        facts.model,
        facts.per_client,
        relation=facts.relation,
        noise_mode=facts.noise_mode,
        caveat=caveat,
        withdrawn=withdrawn,
        clients=left,
        guided=generator.guided,
        licence=licence,
    )
    arrays = _arrays(generator, [generator.clients.index(name) for name in left])
    signed = sign(
        ModelReceipt(
            model=facts.model,
            per_client=facts.per_client,
            relation=facts.relation,
            noise_mode=facts.noise_mode,
            label=NOT_PRIVATE if caveat else "",
            caveat=caveat,
            withdrawn=withdrawn,
            views=facts.views,
            domains={label: tuple(names) for label, names in (domains or {}).items()},
            licence=licence,
            tensors=_digest(arrays, left, guided=generator.guided),
            card=sha256_of(text.encode()),
        )
    )
    return tensors.pack(
        arrays,
        {
            "format": FORMAT,
            "spec": spec.model_dump_json(),
            "clients": json.dumps(left),
            "guided": "yes" if generator.guided else "no",
            "card": text,
            "licence": licence,
            "receipt": signed.model_dump_json(),
        },
    )


def load(source: bytes | Path) -> tuple[Generator, Card]:
    """The generator and card of a file. Its parts belong together, or it raises
    ``TensorFileError``: for anything malformed, of other shapes, not finite, or altered.
    """
    content, metadata = tensors.unpack(source if isinstance(source, bytes) else _read(source))
    if metadata.get("format") != FORMAT:
        raise _unlike("this tensor file is not an exported generator of a known format")
    try:
        spec = RunSpec.model_validate_json(metadata["spec"])
        signed = Signed.model_validate_json(metadata["receipt"])
        receipt = ModelReceipt.model_validate(signed.receipt)
        clients = _names(metadata["clients"])
        guided, text = metadata["guided"] == "yes", metadata["card"]
    except KeyError as error:
        raise _unlike(f"its metadata have no {error}") from error
    except ValidationError as error:
        raise _unlike(f"{error.title} in its metadata cannot be read") from error
    arrays = _checked(spec, content, len(clients))
    if spec.digest != receipt.model.plan_digest:
        raise _unlike("its specification is not the one that its receipt names")
    if _digest(arrays, clients, guided=guided) != receipt.tensors:
        raise _unlike("its numbers are not those that its receipt names")
    if sha256_of(text.encode()) != receipt.card:
        raise _unlike("its card is not the one that its receipt names")
    if metadata.get("licence") != receipt.licence:
        raise _unlike("its licence is not the one that its receipt names")
    if receipt.id != signed.id:
        raise _unlike("the id of its receipt is another one's")
    return _generator(spec, arrays, clients, receipt, guided=guided), Card(receipt, signed, text)


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise _unlike(f"{path} is larger than any exported generator")
        return path.read_bytes()
    except OSError as error:
        raise TensorFileError(f"cannot read {path}: {error.strerror}", field="file") from error


def _unlike(why: str) -> TensorFileError:
    return TensorFileError(f"{why}.", field="file", mend=_MEND)


def _names(text: str) -> list[str]:
    try:
        names = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _unlike("the names of its clients cannot be read") from error
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not is_list or len(set(names)) < len(names):
        raise _unlike("the names of its clients are not a list of different texts")
    return list(names)


def _layout(spec: RunSpec) -> Layout:
    """The shared weights that samplers run."""
    return shared_layout(spec).only(lambda group: group != ENCODER)


def _arrays(generator: Generator, places: list[int]) -> dict[str, NDArray[np.float32]]:
    frame = generator.frame
    found = {f"frame.{name}": getattr(frame, name) for name in _FRAME}
    names = [name for name, _ in _layout(generator.spec).blocks]
    found |= {f"weights.{name}": generator.weights[name] for name in names}
    own = (frame.codes, generator.offsets, generator.label_shift)
    found |= {f"clients.{name}": rows[places] for name, rows in zip(_OWN, own, strict=True)}
    return {name: _single(name, values) for name, values in found.items()}


def _single(name: str, values: NDArray[np.floating]) -> NDArray[np.float32]:
    """Published files are float32, so nothing is rounded here: the file makes the same rows."""
    single = np.asarray(values, np.float32)
    if not np.array_equal(single, values):
        raise ValueError(f"{name} is not what a published file holds: it does not fit float32")
    return single


def _checked(
    spec: RunSpec, content: Mapping[str, NDArray[np.generic]], clients: int
) -> dict[str, NDArray[np.float32]]:
    """The tensors, if they are exactly those of the specification."""
    width, classes, dim = spec.plan.model.code_dim, len(spec.space.classes), spec.space.dim
    factors = content["frame.factors"].shape[0] if "frame.factors" in content else 0
    frame = _empty_frame(spec)
    shapes = {f"frame.{name}": getattr(frame, name).shape for name in _FRAME}
    shapes |= {"frame.factors": (factors, dim), "frame.factor_directions": (width, factors)}
    shapes |= {f"weights.{name}": shape for name, shape in _layout(spec).blocks}
    own = ((clients, width), (clients, width), (clients, classes))
    shapes |= {f"clients.{name}": shape for name, shape in zip(_OWN, own, strict=True)}
    if odd := sorted(set(content) ^ set(shapes)):
        raise _unlike(f"tensor {odd[0]!r} is missing, or does not belong there")
    arrays = {}
    for name, shape in shapes.items():
        values = content[name]
        if values.dtype != np.float32 or values.shape != shape or not np.isfinite(values).all():
            raise _unlike(f"{name} is not finite float32 of shape {shape}")
        arrays[name] = np.asarray(values, np.float32)
    return arrays


def _digest(arrays: Arrays, clients: list[str], *, guided: bool) -> str:
    """Of all that decides rows beside the specification."""
    made = hashlib.sha256()
    for name in sorted(arrays):
        values = arrays[name]
        made.update(json.dumps([name, list(values.shape)]).encode())
        made.update(np.ascontiguousarray(values, "<f4").data)
    made.update(json.dumps([clients, guided]).encode())
    return f"sha256:{made.hexdigest()}"


def _empty_frame(spec: RunSpec) -> Frame:
    """Of a run that nobody took part in; what training alone needs stays so."""
    width, classes, dim = spec.plan.model.code_dim, len(spec.space.classes), spec.space.dim
    return Frame(
        base=np.zeros((classes, dim)),
        directions=np.zeros((width, classes, dim)),
        basis=np.zeros((residual_rank(spec), dim)),
        scale=np.zeros(1),
        factors=np.zeros((0, dim)),
        factor_directions=np.zeros((width, 0)),
        targets=np.zeros((classes, 0)),
        target_variance=np.zeros(classes),
        codes=np.zeros((0, width)),
        code_offset=np.zeros(width),
        code_scale=np.ones(1),
        class_probs=np.zeros(classes),
        sizes=np.zeros(0),
        client_ids=(),
        clients=(),
    )


def _generator(
    spec: RunSpec, arrays: Arrays, clients: list[str], receipt: ModelReceipt, *, guided: bool
) -> Generator:
    def read(name: str) -> NDArray[np.float64]:
        return np.asarray(arrays[name], np.float64)

    frame = replace(
        _empty_frame(spec),
        **{name: read(f"frame.{name}") for name in _FRAME},
        codes=read("clients.codes"),
        sizes=np.zeros(len(clients)),
        client_ids=tuple(clients),
        clients=tuple(clients),
    )
    frame.require(spec)
    if not (frame.class_probs >= 0).all() or not frame.class_probs.sum() > 0:
        raise _unlike("frame.class_probs is not a distribution")
    return Generator(
        spec=spec,
        frame=frame,
        weights={name: read(f"weights.{name}") for name, _ in _layout(spec).blocks},
        offsets=read("clients.offsets"),
        label_shift=read("clients.label_shift"),
        guided=guided,
        caveat=receipt.caveat,
        withdrawn=frozenset(receipt.withdrawn),
    )
