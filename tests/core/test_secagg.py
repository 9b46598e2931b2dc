"""The sum and nothing but it: exact, whoever drops out, and refused where it would say more."""

from __future__ import annotations

import itertools
from copy import deepcopy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from core.secagg import masks, shamir
from core.secagg.collector import Collector, Rejected, TooFew
from core.secagg.graph import NoThresholds, Thresholds, neighbours_of, quorum, ring
from core.secagg.messages import Attestation
from core.secagg.participant import Participant, Refused, State, own_purpose, pair_seed
from tests.core.secagg_world import World, session, some_vectors

# --- sharing ---


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.integers(1, 9), st.integers(0, 6), st.randoms())
def test_enough_shares_give_the_secret_back(
    secret: bytes, t: int, more: int, random: object
) -> None:
    points = list(range(1, t + more + 1))
    shares = shamir.share(secret, t, points)
    random.shuffle(points)  # type: ignore[attr-defined]
    chosen = {point: shares[point] for point in points[: t + more // 2]}
    assert shamir.combine(chosen, t) == secret
    with pytest.raises(shamir.NotEnoughShares):
        shamir.combine({point: shares[point] for point in points[: t - 1]}, t)


def test_fewer_shares_are_uniform_whatever_the_secret() -> None:
    """A chi-square over the shares' leading bits, for two secrets that could not differ more."""
    for secret in (bytes(32), b"\xff" * 32):
        leading = [shamir.share(secret, 3, [1, 2, 3, 4])[2][1] for _ in range(4_000)]
        found = np.bincount(np.array(leading) >> 3, minlength=32)
        assert stats.chisquare(found).pvalue > 1e-6


def test_a_wrong_share_is_noticed_where_there_are_more_than_needed() -> None:
    shares = shamir.share(bytes(range(32)), 3, [1, 2, 3, 4])
    shares[2] = shares[3]
    with pytest.raises(ValueError, match="not one of the same secret"):
        shamir.combine(shares, 3)
    with pytest.raises(ValueError, match="field element"):
        shamir.combine({1: b"\xff" * 33, 2: shares[1], 3: shares[3]}, 3)


@pytest.mark.parametrize(
    ("secret", "threshold", "points"),
    [(b"short", 1, [1]), (bytes(32), 0, [1]), (bytes(32), 3, [1, 2]), (bytes(32), 2, [0, 1]),
     (bytes(32), 2, [1, 1])],
)  # fmt: skip
def test_what_cannot_be_shared(secret: bytes, threshold: int, points: list[int]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        shamir.share(secret, threshold, points)


def test_the_field_is_a_field() -> None:
    """Fermat for many bases: 2^256 + 297 is prime (a composite would fail at once)."""
    assert all(pow(base, shamir.PRIME - 1, shamir.PRIME) == 1 for base in range(2, 60))


# --- masks ---


@settings(max_examples=80, deadline=None)
@given(
    bits=st.integers(1, 64), length=st.integers(1, 200_000), seed=st.integers(0, 2**32),
)  # fmt: skip
def test_masks_cancel_and_vectors_come_back(bits: int, length: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    values = random.integers(low, high, length, endpoint=True)
    vector = masks.encode(values, bits)
    seeds = [random.bytes(32) for _ in range(4)]
    masks.apply(vector, seeds[:2], seeds[2:])
    body = masks.pack(vector, bits)
    assert len(body) == -(-bits // 8) * length
    back = masks.unpack(body, length, bits)
    masks.apply(back, seeds[2:], seeds[:2])
    np.testing.assert_array_equal(masks.decode(back, bits), values)


def test_a_mask_is_uniform_and_its_seed_s_own() -> None:
    zero = masks.encode(np.zeros(200_000, np.int64), 32)
    one, two = zero.copy(), zero.copy()
    masks.apply(one, [b"a" * 32])
    masks.apply(two, [b"b" * 32])
    for mask in (one, two, one - two):
        assert stats.chisquare(np.bincount(mask >> 24, minlength=256)).pvalue > 1e-6
    again = zero.copy()
    masks.apply(again, [b"a" * 32])
    np.testing.assert_array_equal(one, again)
    # By pieces or as a whole: the stream is one.
    part = masks.encode(np.zeros(70_000, np.int64), 32)
    masks.apply(part, [b"a" * 32])
    np.testing.assert_array_equal(part, one[:70_000])


# --- thresholds ---


@pytest.mark.parametrize(
    ("sites", "drop", "collude", "why"),
    [(2, 0, 0, "fewer than three"), (5, 4, 1, "fewer than three"), (3, 1, 0, "fewer than three"),
     (5, 2, 2, "fewer than two"), (5, -1, 0, "fewer than two"),
     (5, 2, 1, "two stories"), (10, 5, 1, "two stories"), (1000, 500, 10, "two stories")],
)  # fmt: skip
def test_thresholds_that_promise_nothing_are_refused(
    sites: int, drop: int, collude: int, why: str
) -> None:
    with pytest.raises(NoThresholds, match=why):
        Thresholds.of(sites, drop, collude)


@settings(max_examples=150, deadline=None)
@given(st.integers(3, 1_200), st.floats(0, 0.3), st.floats(0, 0.3))
def test_thresholds_keep_their_word(sites: int, dropping: float, colluding: float) -> None:
    drop, collude = int(dropping * sites), int(colluding * sites)
    try:
        made = Thresholds.of(sites, drop, collude)
    except NoThresholds:
        assert drop + collude > sites - 2 or 2 * (sites - drop) <= sites + collude
        return
    assert made.survivors == sites - drop >= quorum(sites, collude)
    assert 1 <= made.threshold <= made.neighbours <= sites - 1
    # Whoever is missing and whoever is dishonest, chosen after the ring is known.
    assert made.threshold > collude
    assert made.threshold <= made.neighbours - drop
    assert made.neighbours > drop + collude  # what a ring of so many nearest needs to fall apart


@pytest.mark.parametrize(("sites", "drop", "collude"), [(60, 9, 4), (48, 5, 8), (100, 12, 3)])
def test_no_choice_of_missing_sites_leaves_two_sums(sites: int, drop: int, collude: int) -> None:
    """The known wrong version takes the missing and the dishonest for random. A coordinator that
    has seen the ring leaves out the neighbours of an arc on both its sides.
    """
    made = Thresholds.of(sites, drop, collude)
    order = ring([bytes([at] * 32) for at in range(sites)])
    gone = drop + collude
    for length in range(1, sites - gone):
        for left in range(gone + 1):
            walls = {order[at % sites] for at in range(-left, 0)}
            walls |= {order[(length + at) % sites] for at in range(gone - left)}
            staying = [site for site in range(sites) if site not in walls]
            assert _connected(staying, order, made.neighbours)


def _connected(staying: list[int], order: list[int], degree: int) -> bool:
    known, left = {staying[0]}, [staying[0]]
    while left:
        for other in neighbours_of(left.pop(), order, degree):
            if other in staying and other not in known:
                known.add(other)
                left.append(other)
    return len(known) == len(staying)


@given(st.integers(3, 60), st.integers(1, 20), st.randoms())
def test_neighbours_know_each_other(sites: int, half: int, random: object) -> None:
    order = ring([random.randbytes(32) for _ in range(sites)])  # type: ignore[attr-defined]
    assert sorted(order) == list(range(sites))
    found = [neighbours_of(site, order, 2 * half) for site in range(sites)]
    for site, others in enumerate(found):
        assert len(others) == min(2 * half, sites - 1)
        assert all(site in found[other] for other in others)


# --- the protocol ---


@pytest.mark.parametrize(("count", "bits"), [(3, 12), (5, 32), (10, 33), (10, 47), (40, 24)])
def test_the_sum_is_exact(count: int, bits: int) -> None:
    asked = session(count, drop=0, collude=1, bits=bits)
    vectors = some_vectors(asked)
    total = World(asked).total(vectors)
    np.testing.assert_array_equal(total, sum(vectors.values()))


class Stage:
    """How far a site goes before it vanishes."""

    KEYS, SHARES, VECTOR, CONFIRMED, ALL = range(1, 6)


@pytest.mark.parametrize(("drop", "collude"), [(1, 1), (2, 0)])
def test_every_pattern_of_five_sites(drop: int, collude: int) -> None:
    """Each of five sites vanishes before its keys, its shares, its vector, its confirmation, its
    shares of others', or not at all: 6^5 patterns. What two patterns have in common is done once.
    """
    asked = session(5, drop=drop, collude=collude)
    vectors = some_vectors(asked)
    seen = sums = 0
    everybody = list(asked.sites)
    start = World(asked)
    for present in _subsets(everybody):
        keys = _copy(start)
        keys.advertise(present)
        try:
            keys.collector.roster()
        except TooFew:
            assert len(present) < 5 - drop
            seen += 6 ** len(present) * 1
            continue
        for sharing in _subsets(present):
            shares = _copy(keys)
            shares.share(sharing)
            for sending in _subsets(sharing):
                sent = _copy(shares)
                try:
                    sent.send({name: vectors[name] for name in sending})
                    listed = sent.collector.survivors()
                except TooFew:
                    assert len(sending) < 5 - drop
                    continue
                assert listed == tuple(sending)
                assert len(sending) >= 5 - drop
                for confirming in _subsets(sending):
                    signed = _copy(sent)
                    signed.confirm(confirming)
                    if len(confirming) < quorum(5, collude):
                        for name in confirming:
                            with pytest.raises(Refused, match="confirmations of"):
                                signed.sites[name].open(signed.collector.confirmations())
                        continue
                    for opening in _subsets(confirming):
                        opened = _copy(signed)
                        opened.open(opening)
                        sums += _opens(opened, opening, sending, vectors)
    assert sums > 10


def _opens(world: World, opening: list[str], sending: list[str], vectors: object) -> bool:
    """The sum is right, or there is none; there is one whenever enough sites have answered."""
    present = len(world.collector.roster())
    threshold = world.session.thresholds(present).threshold
    try:
        total = world.collector.total()
    except TooFew:
        # A survivor's own neighbours are one fewer than those that answer.
        assert len(opening) - 1 < threshold
        return False
    wanted = sum(vectors[name] for name in sending)  # type: ignore[index]
    np.testing.assert_array_equal(total, wanted)
    return True


def _subsets(names: list[str]) -> list[list[str]]:
    return [
        list(chosen)
        for size in range(len(names) + 1)
        for chosen in itertools.combinations(names, size)
    ]


def _copy(world: World) -> World:
    """The same keys and messages, in objects of their own."""
    other = object.__new__(World)
    other.session, other.identities, other.known = world.session, world.identities, world.known
    other.sites = {}
    for name, site in world.sites.items():
        state = site.state.model_copy()
        other.sites[name] = Participant(
            world.session, name, world.identities[name], world.known, state
        )
    other.collector = deepcopy(world.collector)
    return other


@pytest.mark.parametrize("seed", range(6))
def test_random_patterns_of_fifty_sites(seed: int) -> None:
    """On a ring: nobody has all others as neighbours."""
    asked = session(50, drop=8, collude=3, length=5)
    assert Thresholds.of(50, 8, 3).neighbours < 49
    vectors = some_vectors(asked, seed)
    random = np.random.default_rng(seed)
    names = list(random.permutation(asked.sites))
    gone = sorted(random.integers(0, 9, 3))
    present = [str(name) for name in names[gone[0] :]]
    sharing = [str(name) for name in names[gone[1] :]]
    sending = [str(name) for name in names[gone[2] :]]
    world = World(asked)
    world.advertise(present)
    world.share(sharing)
    world.send({name: vectors[name] for name in sending})
    world.confirm(sending)
    world.open(sending[2:])
    np.testing.assert_array_equal(world.collector.total(), sum(vectors[name] for name in sending))


# --- what nobody learns ---


def test_a_masked_vector_says_nothing_without_the_shares() -> None:
    """What the collector holds of one site is uniform, whatever the site's vector is; and so is the
    sum, before it is opened.
    """
    asked = session(4, drop=0, collude=1, length=40_000, bits=32)
    for fill in (0, 5):
        vectors = {name: np.full(asked.length, fill) for name in asked.sites}
        world = World(asked)
        world.advertise(vectors)
        world.share(vectors)
        world.send(vectors)
        bodies = [masks.unpack(body, asked.length, 32) for body in world.collector._masked.values()]
        for seen in (*bodies, sum(bodies[1:], bodies[0])):
            assert stats.chisquare(np.bincount(seen >> 24, minlength=256)).pvalue > 1e-6


def test_colluders_and_the_coordinator_open_no_single_site() -> None:
    """With all that ``collude`` sites know, an honest site's shares stay too few."""
    asked = session(7, drop=1, collude=2)
    world = World(asked)
    world.total(some_vectors(asked))
    threshold = asked.thresholds(7).threshold
    target, dishonest = asked.sites[0], asked.sites[1:3]
    keys = {}
    for name in dishonest:
        site = world.sites[name]
        sealed = next(each for each in site.state.inbox if each.sender == target)
        keys[site._neighbourhood().points[name]] = site._unseal(sealed)[0]
    assert len(keys) < threshold
    with pytest.raises(shamir.NotEnoughShares):
        shamir.combine(keys, threshold)


# --- what is refused ---


@pytest.fixture
def world() -> World:
    made = World(session(5, drop=1, collude=1))
    made.advertise(made.sites)
    return made


def test_keys_of_another_are_refused(world: World) -> None:
    """The coordinator puts keys of its own in place of a site's."""
    forged = world.participant("site-001").advert()
    roster = [
        forged.model_copy(update={"signature": "ab" * 64}) if each.site == forged.site else each
        for each in world.collector.roster()
    ]
    with pytest.raises(Refused, match="not signed by 'site-001'"):
        world.sites["site-000"].share(roster)


def test_keys_of_another_session_are_refused(world: World) -> None:
    """Played back from the round before, or from another attempt of this one."""
    for change in ({"round_number": 1}, {"attempt": 2}, {"run_id": 7}):
        other = session(5, drop=1, collude=1, **{k: v for k, v in change.items() if k != "run_id"})
        if "run_id" in change:
            other = other.model_copy(update={"run_id": "another"})
        old = world.participant("site-001", other).advert()
        roster = [old if each.site == old.site else each for each in world.collector.roster()]
        with pytest.raises(Refused, match="not signed"):
            world.sites["site-000"].share(roster)


def test_rosters_that_are_wrong_are_refused(world: World) -> None:
    roster = world.collector.roster()
    site = world.sites["site-000"]
    with pytest.raises(Refused, match="twice"):
        site.share([*roster, roster[0]])
    with pytest.raises(Refused, match="has not the keys"):
        site.share(roster[1:])
    with pytest.raises(Refused, match=r"two stories|fewer"):
        site.share(roster[:3])
    shared = site.share(roster)
    assert site.share(roster) == shared, "the same again is answered with the same"
    with pytest.raises(Refused, match="another one than before"):
        site.share(roster[:4])


def test_a_vector_is_masked_once(world: World) -> None:
    """The known wrong version: two vectors under one mask show their difference."""
    vectors = some_vectors(world.session)
    world.share(world.sites)
    world.send(vectors)
    with pytest.raises(Refused, match="masked already"):
        world.sites["site-000"].mask(
            world.collector.inbox("site-000"), world.collector.sharers(), vectors["site-001"]
        )


def test_shares_of_strangers_are_refused(world: World) -> None:
    world.share(world.sites)
    site, zero = world.sites["site-000"], np.zeros(world.session.length, np.int64)
    inbox, all_of_us = world.collector.inbox("site-000"), world.collector.sharers()
    with pytest.raises(Refused, match="twice"):
        site.mask([*inbox, inbox[0]], all_of_us, zero)
    others = world.collector.inbox("site-001")[1:]
    with pytest.raises(Refused, match="were given to"):
        site.mask(others, ["site-000", *(each.sender for each in others)], zero)
    swapped = inbox[0].model_copy(update={"box": inbox[1].box})
    with pytest.raises(Refused, match="not sealed by it"):
        site.mask([swapped, *inbox[1:]], all_of_us, zero)
    with pytest.raises(Refused, match="2 sites share, 4 are needed"):
        site.mask(inbox[:1], ["site-000", inbox[0].sender], zero)
    with pytest.raises(Refused, match="not those of all neighbours"):
        site.mask(inbox[1:], all_of_us, zero)
    for wrong in (all_of_us[1:], [*all_of_us, "stranger"], [*all_of_us, "site-001"]):
        with pytest.raises(Refused, match="the sharers name"):
            site.mask(inbox, wrong, zero)
    with pytest.raises(Refused, match="is not 7 long"):
        site.mask(inbox, all_of_us, zero[:3])


def test_two_stories_are_not_told(world: World) -> None:
    """A list of survivors is signed once; the other half of a story has too few signatures."""
    vectors = some_vectors(world.session)
    world.share(world.sites)
    world.send(vectors)
    everybody = world.collector.survivors()
    site = world.sites["site-000"]
    first = world.confirmed("site-000")
    assert world.confirmed("site-000") == first
    with pytest.raises(Refused, match="another list"):
        world.confirmed("site-000", everybody[:4])
    others = [world.confirmed(name) for name in everybody[1:]]
    with pytest.raises(Refused, match="3 confirmations of 4"):
        site.open([first, *others[:2]])
    with pytest.raises(Refused, match="twice"):
        site.open([first, first, *others[:2]])
    world.sites["site-004"].state.survivors = ()
    forged = world.confirmed("site-004", everybody[:3] + everybody[4:])
    with pytest.raises(Refused, match="not signed"):
        site.open([first, *others[:2], forged])
    assert {each.kind for each in site.open([first, *others]).shares} == {"seed"}


@pytest.fixture
def unattested(monkeypatch: pytest.MonkeyPatch) -> None:
    """The known wrong version: nobody asks by which lists the others have masked."""
    check = Participant._check

    def only_others(me: Participant, site: str, signature: str, signed: bytes, what: str) -> None:
        if what != "masks":
            check(me, site, signature, signed, what)

    monkeypatch.setattr(Participant, "_check", only_others)


def _isolated(count: int, drop: int, collude: int) -> tuple[World, str, int]:
    """A coordinator that spends ``drop`` twice: one site is told that some of its neighbours have
    shared nothing, the others that the rest of its neighbours have sent no vectors. That site is
    not asked to sign anything. The world after the others were asked to confirm, the site, and how
    many have.
    """
    world = World(session(count, drop=drop, collude=collude))
    names, vectors = list(world.session.sites), some_vectors(world.session)
    world.advertise(names)
    world.share(names)
    lone = names[0]
    near = world.collector.neighbours(lone)
    withheld, missing = near[:drop], near[drop:]
    assert len(missing) <= drop
    everybody = world.collector.sharers()
    for name in names:
        told = [each for each in everybody if name != lone or each not in withheld]
        boxes = [box for box in world.collector.inbox(name) if box.sender in told]
        body = world.sites[name].mask(boxes, told, vectors[name])
        if name not in missing:
            world.collector.collect(name, body)
    signed, refused = 0, set()
    for name in set(world.collector.survivors()) - {lone}:
        try:
            world.collector.confirm(world.confirmed(name))
            signed += 1
        except Refused as refusal:
            refused.add(str(refusal))
    assert refused <= {f"the masks of {lone!r} are not signed by {lone!r} as they are known here"}
    return world, lone, signed


RINGS = [(100, 10, 1), (40, 8, 1), (60, 12, 2)]


@pytest.mark.parametrize(("count", "drop", "collude"), RINGS)
def test_nobody_is_left_alone_with_masks_that_come_off(count: int, drop: int, collude: int) -> None:
    """Quorums do not see it, for the one who was told something else need not sign."""
    world, lone, signed = _isolated(count, drop, collude)
    assert signed == 0
    for name in world.collector.survivors():
        if name != lone:
            with pytest.raises(Refused, match="no list of survivors was signed"):
                world.sites[name].open(())


@pytest.mark.parametrize(("count", "drop", "collude"), RINGS)
def test_defect_without_attestations_one_vector_is_read(
    unattested: None, count: int, drop: int, collude: int
) -> None:
    world, lone, signed = _isolated(count, drop, collude)
    assert signed >= quorum(count, collude)
    confirmations = world.collector.confirmations()
    for name in [each.site for each in confirmations]:
        world.collector.open(world.sites[name].open(confirmations))
    # Every mask on the lone site's vector is known to the coordinator now.
    body = world.collector._masked[lone]
    vector = masks.unpack(body, world.session.length, world.session.bits)
    shares, collector = world.collector._shares(), world.collector
    threshold = collector._neighbourhood().thresholds.threshold
    adverts = {advert.site: advert for advert in collector.roster()}
    own = masks.seed_of(collector._secret(lone, shares[lone], threshold),
                        own_purpose(world.session, lone))  # fmt: skip
    plus, minus = [own], []
    for other in world.collector.neighbours(lone)[drop:]:
        secret = collector._secret(other, shares[other], threshold)
        seed = pair_seed(world.session, secret, other, adverts[lone])
        (plus if lone < other else minus).append(seed)
    masks.apply(vector, minus, plus)
    np.testing.assert_array_equal(
        masks.decode(vector, world.session.bits), some_vectors(world.session)[lone]
    )


@pytest.mark.parametrize("which", ["sealing_key", "masking_key"])
def test_keys_of_low_order_cost_nobody_anything(which: str) -> None:
    """The known wrong version finds a masking key out when it masks: after the reservation."""
    world = World(session(5))
    names = list(world.session.sites)
    bad = world.sites[names[4]].advert().model_copy(update={which: "00" * 32})
    signature = world.identities[names[4]].sign(bad.signed(world.session)).hex()
    bad = bad.model_copy(update={"signature": signature})
    roster = [*(world.sites[name].advert() for name in names[:4]), bad]
    assert not bad.usable
    assert all(advert.usable for advert in roster[:4])
    with pytest.raises(Refused, match="'site-004' are not of the curve"):
        world.sites[names[0]].share(roster)


def test_each_survivor_s_own_attestation_is_asked_for(world: World) -> None:
    vectors = some_vectors(world.session)
    world.share(world.sites)
    world.send(vectors)
    site, listed = world.sites["site-000"], world.collector.survivors()
    given = world.collector.attestations()
    another = given[1].model_copy(update={"signature": given[2].signature})
    for wrong in (given[1:], [*given, given[0]], [*given[:-1], given[0]]):
        with pytest.raises(Refused, match="not one attestation of each survivor"):
            site.confirm(listed, wrong)
    with pytest.raises(Refused, match="masks of 'site-001' are not signed"):
        site.confirm(listed, [given[0], another, *given[2:]])
    before = Attestation.signed(
        world.session.model_copy(update={"attempt": 2}), site.state.roster, site.state.sharers
    )
    replayed = given[1].model_copy(
        update={"signature": world.identities["site-001"].sign(before).hex()}
    )
    with pytest.raises(Refused, match="masks of 'site-001' are not signed"):
        site.confirm(listed, [given[0], replayed, *given[2:]])
    assert site.confirm(listed, given).site == "site-000"


def test_masks_are_not_kept_among_a_few(unattested: None) -> None:
    """A coordinator that tells two halves of the sites that the other half has shared nothing gets
    two sums, each with less noise than was promised, if sites sign the survivors only. Here, even
    without attestations, each half signs another view, and neither half alone is enough.
    """
    world = World(session(9, drop=2, collude=1))
    names = list(world.session.sites)
    vectors = some_vectors(world.session)
    world.advertise(names)
    world.share(names)
    halves = (names[:7], names[2:])  # each as large as the session allows
    told = {name: halves[0] if name in names[:4] else halves[1] for name in names}
    for name, site in world.sites.items():
        inbox = [box for box in world.collector.inbox(name) if box.sender in told[name]]
        world.collector.collect(name, site.mask(inbox, told[name], vectors[name]))
    signed = {name: world.confirmed(name, told[name]) for name in names}
    for name, site in world.sites.items():
        alike = [signed[other] for other in told[name] if told[other] == told[name]]
        with pytest.raises(Refused, match="of 6 that are needed"):
            site.open(alike)
        with pytest.raises(Refused, match="not signed"):
            site.open([signed[other] for other in told[name]])


def test_survivors_too_few_for_the_noise_are_not_summed(world: World) -> None:
    vectors = some_vectors(world.session)
    world.share(world.sites)
    world.send(vectors)
    with pytest.raises(Refused, match="less noise than was promised"):
        world.confirmed("site-000", ["site-000", "site-001", "site-002"])
    with pytest.raises(Refused, match="not among the survivors"):
        world.confirmed("site-000", ["site-001", "site-002", "site-003", "site-004"])
    with pytest.raises(Refused, match="not of the session"):
        world.confirmed("site-000", ["site-000", "site-001", "site-002", "stranger"])


def test_no_site_s_seed_and_key_are_both_opened(world: World) -> None:
    vectors = some_vectors(world.session)
    world.share(world.sites)
    del vectors["site-003"]
    world.send(vectors)
    world.confirm(vectors)
    world.open(vectors)
    kinds: dict[str, set[str]] = {}
    for opening in world.collector._openings.values():
        for each in opening.shares:
            kinds.setdefault(each.about, set()).add(each.kind)
    assert kinds.pop("site-003") == {"key"}
    assert all(found == {"seed"} for found in kinds.values())
    np.testing.assert_array_equal(world.collector.total(), sum(vectors.values()))


def test_the_collector_names_who_is_wrong(world: World) -> None:
    collector, vectors = world.collector, some_vectors(world.session)
    with pytest.raises(Rejected, match="said something else before"):
        collector.advertise(world.participant("site-000").advert())
    stranger = world.sites["site-000"].advert().model_copy(update={"site": "stranger"})
    with pytest.raises(Rejected, match="not among"):
        collector.advertise(stranger)
    world.share(list(world.sites)[:4])
    shares = world.sites["site-004"].share(collector.roster())
    with pytest.raises(Rejected, match="in another's name"):
        collector.share("site-004", world.sites["site-003"].state.shared)
    with pytest.raises(Rejected, match="not for its neighbours"):
        collector.share("site-004", shares[1:])
    collector.inbox("site-000")
    with pytest.raises(Rejected, match="too late"):
        collector.share("site-004", shares)
    with pytest.raises(Rejected, match="shared no secrets"):
        collector.collect("site-004", b"")
    with pytest.raises(Rejected, match="bytes are not"):
        collector.collect("site-000", b"short")
    world.send({name: vectors[name] for name in list(world.sites)[:4]})
    world.confirm(list(world.sites)[:4])
    opening = world.sites["site-000"].open(collector.confirmations())
    with pytest.raises(Rejected, match="something else than it was asked for"):
        collector.open(opening.model_copy(update={"shares": opening.shares[1:]}))
    with pytest.raises(TooFew, match="shares of"):
        collector.total()


def test_a_session_s_state_survives_a_restart() -> None:
    """Killed after every message: what goes on is what was kept, and says the same."""
    asked = session(5, drop=1, collude=1)
    world, vectors = World(asked), some_vectors(asked)

    def restart() -> None:
        for name, site in world.sites.items():
            kept = State.model_validate_json(site.state.model_dump_json())
            world.sites[name] = Participant(asked, name, world.identities[name], world.known, kept)

    world.advertise(world.sites)
    restart()
    world.advertise(world.sites)
    world.share(world.sites)
    restart()
    world.share(world.sites)
    world.send(vectors)
    restart()
    world.confirm(vectors)
    restart()
    world.confirm(vectors)
    world.open(vectors)
    np.testing.assert_array_equal(world.collector.total(), sum(vectors.values()))


def test_who_is_not_known_is_not_summed_with() -> None:
    world = World(session(4, drop=0, collude=1))
    del world.known["site-002"]
    with pytest.raises(Refused, match="no key of site-002 is known"):
        world.participant("site-000")


# --- what a coordinator asks of a collector that keeps its messages elsewhere ---


def test_the_sum_can_be_opened_from_the_last_share_that_it_needs() -> None:
    asked = session(5, drop=1, collude=1)
    world = World(asked)
    vectors = some_vectors(asked)
    world.advertise(vectors)
    world.share(vectors)
    there = {name: vector for name, vector in vectors.items() if name != "site-002"}
    world.send(there)
    world.confirm(there)
    opened = []
    confirmations = world.collector.confirmations()
    for name in there:
        before = world.collector.can_open()
        assert before is (len(opened) > 0 and opened[-1])
        world.collector.open(world.sites[name].open(confirmations))
        opened.append(world.collector.can_open())
        if opened[-1]:
            assert (world.collector.total() == sum(there.values())).all()
        else:
            with pytest.raises(TooFew):
                world.collector.total()
    assert opened[0] is False
    assert opened[-1] is True


def test_a_collector_of_names_alone_knows_what_one_of_messages_knows() -> None:
    asked = session(5, drop=1, collude=1)
    world = World(asked)
    vectors = some_vectors(asked)
    world.total(vectors)
    known = Collector.before(
        asked, world.collector.roster(), world.collector.sharers(), world.collector.survivors()
    )
    assert not known.can_open()
    for name in asked.sites:
        assert known.neighbours(name) == world.collector.neighbours(name)
        known.must_take_shares(name, world.sites[name].state.shared)
        known.open(world.sites[name].open(world.collector.confirmations()))
    assert known.can_open()
    with pytest.raises(Rejected, match="not for its neighbours"):
        known.must_take_shares("site-000", world.sites["site-000"].state.shared[:-1])
    with pytest.raises(TooFew, match="vectors"):
        Collector.before(asked, world.collector.roster(), asked.sites, asked.sites[:3])
    with pytest.raises(Rejected, match="shared no secrets"):
        Collector.before(asked, world.collector.roster(), asked.sites[:4], asked.sites)
