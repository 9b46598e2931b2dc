"""Whole secure rounds through their wire objects: exact sums, the promised noise, and refusals."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from core.errors import PlanRefused, UpdateNoiseImplausible, UpdateNormImplausible
from core.federation.aggregate import Aggregated, opened
from core.federation.secure_sum import (
    ALL_SITES,
    bound,
    check_session,
    check_sum,
    crowd_of,
    grid_of,
    session_of,
    summed,
)
from core.federation.updates import TENSOR
from core.models.frame import Frame
from core.models.layout import layout_of
from core.privacy.discrete import lattice
from core.privacy.discrete.gaussian import SMOOTH, csprng, seeded
from core.privacy.mechanism import sensitivity
from core.secagg import masks
from core.secagg.collector import TooFew, parted
from core.secagg.messages import Session
from core.storage import sha256_of
from core.synthesis.request import SynthesisRequest
from core.synthesis.sampler import Generator
from core.training.secure import contribution
from core.wire import tensors
from core.wire.messages import ObjectRef
from core.wire.secure import SumOrder
from tests.core.secure_world import (
    Round,
    names_of,
    order_of,
    secure_round,
    secure_run,
    secure_spec,
    some_data,
)
from tests.core.worlds import SECRET

CLIENTS = 5
SPEC = secure_spec(drop=1, collude=1, clients=CLIENTS)


@pytest.fixture(scope="module")
def run() -> list[tuple[Round, Aggregated]]:
    return secure_run(SPEC, CLIENTS)


def test_a_whole_run_sums_exactly_and_makes_a_model(run: list[tuple[Round, Aggregated]]) -> None:
    assert [SPEC.kind(n) for n in range(len(run))] == ["sketch", "spread", "train", "validate"]
    for number, (made, _) in enumerate(run):
        grid = grid_of(SPEC, number, CLIENTS)
        content, _ = tensors.unpack(summed(made.transcript, made.masked, SPEC))
        steps = content[TENSOR].astype(np.float64) / grid.step
        # float32 on the wire between opening and model is what rounds; nothing before it does.
        assert np.array_equal(content[TENSOR], (made.exact * grid.step).astype(np.float32))
        assert np.abs(steps - made.exact).max() <= np.abs(made.exact).max() * 2.0**-24
    last = run[-1][1]
    frame = Frame.from_bytes(last.frame)
    assert frame.client_ids == (ALL_SITES,)
    rows = Generator.load(last.frame, last.weights, SPEC).sample(
        SynthesisRequest(run="run-1", n=20, mixture="neutral"), 0
    )
    assert np.isfinite(rows.x).all()


def test_a_replay_of_the_objects_gives_the_same_model(run: list[tuple[Round, Aggregated]]) -> None:
    for (_, before), (made, after) in pairwise(run):
        again = made.aggregated(SPEC, before)
        assert (again.frame, again.weights, again.optimiser) == (
            after.frame, after.weights, after.optimiser,
        )  # fmt: skip


def test_one_bit_of_a_masked_vector_is_noticed_or_is_one_step(
    run: list[tuple[Round, Aggregated]],
) -> None:
    """The highest bit spoils the sum, which is refused; the lowest moves it by one step, which no
    check can see: what a site sends, nobody but it can know.
    """
    made, _ = run[0]
    grid = grid_of(SPEC, 0, CLIENTS)
    session = made.session
    name = min(made.masked)
    signature, vector = parted(made.masked[name])
    words = masks.unpack(vector, session.length, session.bits)

    def with_bit(place: int, bit: int) -> dict[str, bytes]:
        changed = words.copy()
        changed[place] ^= words.dtype.type(1 << bit)
        return made.masked | {name: signature + masks.pack(changed, session.bits)}

    with pytest.raises(UpdateNormImplausible):
        summed(made.transcript, with_bit(0, session.bits - 1), SPEC)
    with pytest.raises(UpdateNoiseImplausible):
        summed(made.transcript, with_bit(session.length - 1, session.bits - 1), SPEC)
    low, _ = tensors.unpack(summed(made.transcript, with_bit(0, 0), SPEC))
    assert abs(float(low[TENSOR][0]) / grid.step - float(made.exact[0])) == pytest.approx(
        1.0, abs=abs(float(made.exact[0])) * 2.0**-23
    )


def test_another_round_s_transcript_is_refused(run: list[tuple[Round, Aggregated]]) -> None:
    made, _ = run[0]
    later = run[1][0]
    body = later.transcript.model_dump_json().encode()
    job = made.job(SPEC).model_copy(update={"transcript": sha256_of(body)})
    objects = made.objects | {sha256_of(body): body}
    with pytest.raises(ValueError, match="another round"):
        opened(job, objects.__getitem__)


def test_without_one_vector_nothing_is_opened(run: list[tuple[Round, Aggregated]]) -> None:
    made, _ = run[1]  # of which one client is missing already
    fewer = dict(list(made.masked.items())[1:])
    with pytest.raises(TooFew):
        summed(made.transcript, fewer, SPEC)


# --- what a site refuses ---


@pytest.mark.parametrize(
    "change",
    [
        {"run_id": "another"}, {"round_number": 1}, {"attempt": 2}, {"drop": 0}, {"collude": 2},
        {"length": 3}, {"bits": 20}, {"sites": names_of(8 * CLIENTS)},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_a_session_that_differs_anywhere_is_refused(change: dict[str, object]) -> None:
    session = session_of(SPEC, 0, names_of(CLIENTS))
    check_session(SPEC, 0, session)
    other = session.model_dump() | change
    with pytest.raises(PlanRefused):
        check_session(SPEC, 0, Session.model_validate(other))


def test_an_object_s_role_is_part_of_what_all_compute_on() -> None:
    """The known wrong version binds digests: with the roles exchanged one site computes on another
    model than the rest, in the same session.
    """
    one, other = ("sha256:" + digit * 64 for digit in "12")
    frame = ObjectRef(role="frame", digest=one, size=1)
    weights = ObjectRef(role="weights", digest=other, size=1)
    swapped = (
        frame.model_copy(update={"digest": other}),
        weights.model_copy(update={"digest": one}),
    )
    assert bound((frame, weights)) == bound((weights, frame))
    sessions = [
        session_of(SPEC, 0, names_of(CLIENTS), bound(inputs))
        for inputs in ((frame, weights), swapped, (frame,))
    ]
    assert len({session.digest for session in sessions}) == 3
    with pytest.raises(ValueError, match="one role"):
        bound((frame, weights, frame.model_copy(update={"digest": other})))


def test_no_two_sums_of_one_round_are_possible() -> None:
    """A coordinator that splits the clients into several sessions: an honest one is in two."""
    founding = [f"site-{at}" for at in range(10)]
    spec = SPEC.model_copy(update={"founding_names": tuple(founding)})
    collude = spec.plan.secure.collude
    least = crowd_of(spec)
    assert 2 * least - len(founding) > collude
    session_of(spec, 0, founding[:least])
    with pytest.raises(ValueError, match=f"fewer than the {least} that the plan asks for"):
        session_of(spec, 0, founding[: least - 1])
    alone = session_of(SPEC, 0, founding[: least - 1]).model_copy(update={"plan": spec.digest})
    with pytest.raises(PlanRefused, match="that the plan asks for"):
        check_session(spec, 0, alone)


def test_nobody_hides_in_a_smaller_crowd_than_it_agreed_to() -> None:
    """The plan's quorum is one of the sum's clients, too."""
    plan = SPEC.plan.model_copy(
        update={"round": SPEC.plan.round.model_copy(update={"quorum": CLIENTS})}
    )
    spec = SPEC.model_copy(update={"plan": plan})
    check_session(spec, 0, session_of(spec, 0, names_of(CLIENTS)))
    with pytest.raises(ValueError, match=f"fewer than the {CLIENTS} that the plan asks for"):
        session_of(spec, 0, names_of(CLIENTS - 1))
    few = session_of(SPEC, 0, names_of(CLIENTS - 1)).model_copy(update={"plan": spec.digest})
    with pytest.raises(PlanRefused, match="that the plan asks for"):
        check_session(spec, 0, few)


def test_a_site_refuses_orders_without_their_sum_and_seeded_noise() -> None:
    data = some_data(1)["site-0"]
    with pytest.raises(PlanRefused, match="no secure sum"):
        contribution(order_of(SPEC, 0, "site-0", None), data, {}, secret=SECRET, bits=csprng())
    production = SPEC.model_copy(
        update={"plan": SPEC.plan.model_copy(update={"purpose": "production"})}
    )
    theirs = session_of(production, 0, names_of(CLIENTS))
    order = order_of(production, 0, "site-0", SumOrder(session=theirs, inbox=(), sharers=()))
    with pytest.raises(PlanRefused, match="seeded"):
        contribution(order, data, {}, secret=SECRET, bits=seeded(1))


# --- what a sum is checked for ---


def _sum(noises: int, drawn: int = 0, scale: float = 0.0) -> tuple[np.ndarray, lattice.Lattice]:
    """So many contributions' noise around ``scale`` times the largest honest vector of one."""
    grid = grid_of(SPEC, 0, CLIENTS)
    layout = layout_of(SPEC, 0)
    x = np.zeros(layout.update_length)
    largest = SPEC.plan.privacy.n_max * sensitivity(SPEC, 0)
    x[: layout.size] = scale * largest / math.sqrt(layout.size)
    bits = seeded(drawn)
    total = lattice.released(x, grid, bits)
    for _ in range(noises - 1):
        total = total + lattice.released(np.zeros_like(x), grid, bits)
    if noises == 0:
        total = np.rint(x / grid.step).astype(np.int64)
    return total, grid


@pytest.mark.parametrize("survivors", [CLIENTS, CLIENTS - 1])
def test_honest_sums_pass_with_and_without_drop_outs(survivors: int) -> None:
    for drawn in range(20):
        total, grid = _sum(survivors, drawn, scale=0.2)
        check_sum(SPEC, 0, total, grid, contributions=survivors)


@pytest.mark.parametrize(
    ("noises", "factor"), [(0, 1), (1, 1), (2, 1), (2 * CLIENTS, 1), (CLIENTS, 2)]
)
def test_sums_whose_noise_lacks_or_is_doubled_are_refused(noises: int, factor: int) -> None:
    total, grid = _sum(noises, 3)
    with pytest.raises(UpdateNoiseImplausible, match="null coordinates"):
        check_sum(SPEC, 0, factor * total, grid, contributions=CLIENTS)


def test_a_sum_longer_than_all_clients_units_is_refused() -> None:
    total, grid = _sum(CLIENTS, 4, scale=1.05 * CLIENTS)
    with pytest.raises(UpdateNormImplausible, match="norm"):
        check_sum(SPEC, 0, total, grid, contributions=CLIENTS)


# --- the noise that is in a sum ---


@pytest.mark.parametrize("missing", [0, 1])
def test_the_sum_carries_at_least_the_booked_noise(missing: int) -> None:
    """Of vectors of zeros the opened sum is noise alone: whole steps, of variance (M - missing) V,
    which for any S - collude of its parts is what was booked, or more.
    """
    grid = grid_of(SPEC, 0, CLIENTS)
    zeros, bits = np.zeros(layout_of(SPEC, 0).update_length), seeded(11)
    drawn = []
    for seed in range(40):
        vectors = {name: lattice.released(zeros, grid, bits) for name in names_of(CLIENTS)}
        if seed == 0:
            names = names_of(missing)
            made = secure_round(
                SPEC, 0, some_data(CLIENTS, 2), missing=names, vectors=vectors, seed=seed
            )
            content, _ = tensors.unpack(summed(made.transcript, made.masked, SPEC))
            assert np.array_equal(content[TENSOR], (made.exact * grid.step).astype(np.float32))
            drawn.append(made.exact)
        else:
            drawn.append(np.sum(list(vectors.values())[missing:], axis=0))
    noise = np.concatenate(drawn)
    variance = (CLIENTS - missing) * grid.variance
    z = noise / math.sqrt(variance)
    n = len(z)
    assert abs(z.mean()) < 5 / math.sqrt(n)
    assert abs((z**2).mean() - 1) < 5 * math.sqrt(2 / n)
    assert stats.kstest(z, "norm").pvalue > 1e-6
    booked = SPEC.event(0).noise_multiplier * grid.sensitivity
    assert grid.shares == CLIENTS - 2
    assert grid.shares * grid.variance - SMOOTH**2 >= booked**2 * (1 - 1e-12)


def test_masked_vectors_of_real_contributions_are_uniform(
    run: list[tuple[Round, Aggregated]],
) -> None:
    """The highest and the lowest four bits of what leaves a site."""
    for made, _ in run[:2]:
        bits = made.session.bits
        for body in made.masked.values():
            _, vector = parted(body)
            words = masks.unpack(vector, made.session.length, bits).astype(np.uint64)
            seen = (words >> np.uint64(bits - 4)) & np.uint64(15)
            assert stats.chisquare(np.bincount(seen.astype(int), minlength=16)).pvalue > 1e-6
            low = (words & np.uint64(15)).astype(int)
            assert stats.chisquare(np.bincount(low, minlength=16)).pvalue > 1e-6
    # And it is not so before masks: the contribution's high bits hold its sign alone.
    made = run[0][0]
    first = next(iter(made.contributions.values()))
    high = (masks.encode(first, made.session.bits).astype(np.uint64)
            >> np.uint64(made.session.bits - 4)) & np.uint64(15)  # fmt: skip
    assert stats.chisquare(np.bincount(high.astype(int), minlength=16)).pvalue < 1e-12
