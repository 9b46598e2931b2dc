"""A round's accepted updates become the next model. Pure functions of stored bytes, in numpy.

Updates are read one at a time, in the fixed order of the job, into one float64 sum: memory is
O(P) whatever the number of clients, and a replay of the round gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from core.federation import offsets
from core.federation.choice import chosen, classifiers, published_average
from core.federation.label_shift import Centre, LabelShift, bias_part
from core.federation.offsets import Offsets
from core.federation.opening import Read
from core.federation.opening import opened as opened
from core.federation.outliers import diagnose
from core.federation.packing import pack_optimiser
from core.federation.packing import pack_weights as pack_weights
from core.federation.plan import RunSpec
from core.federation.robust import sum_of
from core.federation.server import Gradient, State, advance, average_decay, starting_state
from core.federation.updates import expectation, read_update
from core.federation.withdrawal import without
from core.models.build import build
from core.models.evidence import from_sketches
from core.models.frame import Frame
from core.models.joining import join
from core.models.layout import posted_layout, shared_layout
from core.models.spread import with_spread
from core.report.reference import with_reference
from core.report.vectors import with_vectors
from core.training.validation import CLASSIFIERS
from core.wire import tensors
from core.wire.messages import AggregateInput, AggregateJob, Diagnostics

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Aggregated:
    """The files of a published round; ``diagnostics`` of its updates, which is not published."""

    frame: bytes
    weights: bytes
    optimiser: bytes
    diagnostics: Diagnostics = field(default_factory=Diagnostics)


class _Releases:
    """The round's released vectors [P] in their order, read one at a time; remembers norms.

    ``noise_gain``: the noise in each, in terms of what its event promises. ``noise_std`` of each.
    """

    def __init__(self, job: AggregateJob, read: Read, noise_gain: float) -> None:
        self._job, self._read, self.noise_gain = job, read, noise_gain
        self.expected = expectation(job.spec, job.round_number)
        self.noise_std = self.expected.noise_std * noise_gain
        self._norms: dict[str, float] = {}

    def __iter__(self) -> Iterator[tuple[AggregateInput, NDArray[np.float32]]]:
        for update in self._job.updates:
            body = self._read(update.digest)
            released = read_update(body, self.expected)[: self.expected.size]
            self._norms[update.client_id] = float(np.linalg.norm(released.astype(np.float64)))
            yield update, released

    def all(self) -> list[Vector]:
        return [np.asarray(released, np.float64) for _, released in self]

    def diagnostics(self) -> Diagnostics:
        """Once all were read."""
        return diagnose(self._job.updates, self._norms, self.expected.noise_std)


def aggregate(job: AggregateJob, read: Read, noise_gain: float = 1.0) -> Aggregated:
    """The next model from a round's updates; ``read`` gives a stored object's bytes by digest.

    ``noise_gain``: of a simulated secure sum, the noise in it in terms of what the event promises;
    a job with a transcript says it by itself.

    Raises an ``UpdateRejected`` if a stored update is not what was accepted, ``ValueError`` if
    the job names no update or lacks the previous model.
    """
    if not job.updates:
        raise ValueError("a round without updates cannot be aggregated")
    if job.transcript is not None:
        made = _made(*opened(job, read))
        return replace(made, diagnostics=Diagnostics())  # nobody's own norm is known
    return _made(job, read, noise_gain)


def _made(job: AggregateJob, read: Read, noise_gain: float) -> Aggregated:
    releases = _Releases(job, read, noise_gain)
    match job.spec.kind(job.round_number):
        case "sketch":
            made = _sketch_round(job, releases)
        case "spread":
            made = _spread_round(job, read, releases)
        case "train":
            made = _train_round(job, read, releases)
        case "validate":
            made = _validate_round(job, read, releases)
        case "report":
            made = _report_round(job, read, releases)
        case "join":
            made = _join_round(job, read, releases)
    made = without(made, job.withdrawn)
    if job.spec.report_round == job.round_number + 1:
        weights = with_reference(job.spec, made.frame, made.weights, job.withdrawn)
        made = replace(made, weights=weights)
    return replace(made, diagnostics=releases.diagnostics())


def _sketch_round(job: AggregateJob, releases: _Releases) -> Aggregated:
    spec = job.spec
    sketches = releases.all()
    ids, names = [u.client_id for u in job.updates], [u.client for u in job.updates]
    frame = build(spec, sketches, ids, names, releases.noise_gain)
    own = Offsets.start(spec, len(job.updates))
    kept: dict[str, tensors.Array] = {}
    if spec.sketch_rounds > 1:  # the second step's estimates combine both releases
        kept["sketches"] = np.asarray(sketches, np.float32)  # as they came: nothing is rounded
        if releases.noise_gain != 1.0:
            kept["sketch_noise_gain"] = np.array([releases.noise_gain])
    body = frame.to_bytes(spec.digest)
    return _packed(spec, 0, body, starting_state(spec, frame), own, kept)


def _spread_round(job: AggregateJob, read: Read, releases: _Releases) -> Aggregated:
    spec = job.spec
    frame_body, _, optimiser = _previous(job, read)
    state, _ = tensors.unpack(optimiser)
    gain = float(np.asarray(state.get("sketch_noise_gain", np.ones(1)))[0])
    sketches = list(np.asarray(state["sketches"], np.float64))
    evidence = from_sketches(spec, sketches, spec.noise.sketch_multiplier * gain)
    clients = [update.client_id for update in job.updates]
    before = Frame.from_bytes(frame_body)
    frame = with_spread(spec, before, evidence, releases.all(), clients, releases.noise_gain)
    own = Offsets.start(spec, len(frame.client_ids))
    body = frame.to_bytes(spec.digest)
    return _packed(spec, job.round_number, body, starting_state(spec, frame), own)


def _join_round(job: AggregateJob, read: Read, releases: _Releases) -> Aggregated:
    """A frame with more clients; nobody trains, so the other files stay byte for byte (but for
    the joiners' own offsets, where codes are trained).
    """
    frame_body, weights, optimiser = _previous(job, read)
    before = Frame.from_bytes(frame_body)
    frame = join(
        job.spec,
        before,
        releases.all(),
        [update.client_id for update in job.updates],
        [update.client for update in job.updates],
    )
    weights = offsets.joined(job.spec, before, frame, weights, optimiser)
    return Aggregated(frame.to_bytes(job.spec.digest), weights, optimiser)


def _previous(job: AggregateJob, read: Read) -> tuple[bytes, bytes, bytes]:
    """Frame, weights and optimiser state of the model before this round."""
    if job.frame is None or job.weights is None or job.optimiser is None:
        raise ValueError("this round needs the previous frame, weights and optimiser state")
    return read(job.frame), read(job.weights), read(job.optimiser)


def _train_round(job: AggregateJob, read: Read, releases: _Releases) -> Aggregated:
    spec = job.spec
    frame_body, weights_body, optimiser_body = _previous(job, read)
    frame = Frame.from_bytes(frame_body)
    expected = releases.expected
    posted, shared = posted_layout(spec), shared_layout(spec)
    summed = sum_of(spec.plan, expected.size, len(job.updates))
    units = 0.0
    # Gradients of a unit, on average: public, by q, never by the batch itself.
    per_unit = spec.plan.privacy.sample_rate * spec.plan.privacy.local_steps
    # Parts of each client that answered, by its place in the frame:
    codes: dict[int, Vector] = {}
    biases: dict[int, Vector] = {}
    previous, _ = tensors.unpack(weights_body)
    kept, _ = tensors.unpack(optimiser_body)
    shift = LabelShift.read(spec, kept, len(frame.client_ids))
    for update, released in releases:
        summed.add(released)
        place = frame.client_ids.index(update.client_id)
        units += float(frame.sizes[place])
        codes[place] = offsets.code_part(posted, released)
        if shift is not None:
            biases[place] = bias_part(posted, released) / per_unit
    batch = per_unit * units  # as expected: units are noised counts
    total = summed.total()
    noise_std = releases.noise_std * summed.noise_gain / batch
    before = State(
        phi=np.asarray(kept["phi"], np.float64),
        average=np.asarray(previous["average"], np.float64),
        first=np.asarray(kept["first"], np.float64),
        second=np.asarray(kept["second"], np.float64),
    )
    step = job.round_number - spec.sketch_rounds + 1
    mean = total[posted.places(shared)] / batch
    if spec.plan.regulariser.active:
        from core.training.free_terms import free_gradient  # torch: slow to import, seldom needed

        mean = mean + free_gradient(spec, frame, before.phi, job.round_number)
    after = advance(spec, frame, step, before, Gradient(mean, noise_std))
    own = Offsets.read(spec, previous, kept)
    if own is not None:
        own = own.after(spec, frame, codes, average_decay(spec, step))
    if shift is not None:
        centre = None
        if spec.plan.aggregation == "trimmed-mean":  # one client's labels must not move the others'
            centre = Centre(bias_part(posted, total) / per_unit, summed.noise_gain)
        shift = shift.after(frame, biases, releases.noise_std / per_unit, centre)
    return _packed(spec, job.round_number, frame_body, after, own, frame=frame, shift=shift)


def _validate_round(job: AggregateJob, read: Read, releases: _Releases) -> Aggregated:
    """Publish the candidate that the released right answers favour; nobody trains."""
    spec = job.spec
    frame_body, weights_body, optimiser = _previous(job, read)
    frame = Frame.from_bytes(frame_body)
    total = np.sum(releases.all(), axis=0)
    clients = [update.client_id for update in job.updates]
    best, accuracy = chosen(spec, frame, clients, total, releases.noise_std)
    content, metadata = tensors.unpack(weights_body)
    average = np.asarray(content["average"], np.float64)
    published = published_average(spec, frame, average, best).astype(np.float32)
    own = {name: np.asarray(value) for name, value in content.items() if name != CLASSIFIERS}
    answer = {"chosen": best, "guided": "yes" if best == "guided" else "no"}
    return Aggregated(
        frame=frame_body,
        weights=tensors.pack(
            own | {"average": published, "validation": accuracy.astype(np.float32)},
            metadata | answer | {"round": str(job.round_number)},
        ),
        optimiser=optimiser,
    )


def _report_round(job: AggregateJob, read: Read, releases: _Releases) -> Aggregated:
    """The model stays as it was; what sites said of it is published with it, client by client."""
    frame_body, weights_body, optimiser = _previous(job, read)
    frame = Frame.from_bytes(frame_body)
    clients = dict(zip(frame.client_ids, frame.clients, strict=True))
    vectors = {update.client_id: released for update, released in releases}
    left = {client: name for client, name in clients.items() if client not in job.withdrawn}
    weights = with_vectors(weights_body, job.round_number, vectors, left)
    return Aggregated(frame_body, weights, optimiser)


def _packed(
    spec: RunSpec,
    round_number: int,
    frame_body: bytes,
    state: State,
    own: Offsets | None,
    kept: Mapping[str, tensors.Array] | None = None,
    frame: Frame | None = None,
    shift: LabelShift | None = None,
) -> Aggregated:
    """The files of a round; ``kept`` is what the next one needs. ``frame``, ``shift``: of a
    training round, the latter where it trains a classifier.
    """
    more = dict(offsets.published(own))
    if shift is not None:
        more |= shift.published()
    last = round_number == spec.last_training_round
    if frame is not None and last and spec.plan.privacy.validates:
        averages = own.average if own is not None else np.zeros_like(frame.codes)
        more[CLASSIFIERS] = classifiers(spec, frame, state.average, averages)
    return Aggregated(
        frame=frame_body,
        weights=pack_weights(spec, round_number, state.phi, state.average, **more),
        optimiser=pack_optimiser(
            spec,
            round_number,
            state.phi,
            state.first,
            state.second,
            **offsets.state(own),
            **(shift.state() if shift is not None else {}),
            **(kept or {}),
        ),
    )
