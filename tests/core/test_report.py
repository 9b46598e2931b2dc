"""The report as data and as a page: figures that agree with what they are made of, and escaping."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest

from core.federation.plan import Noise
from core.models.build import build
from core.models.layout import sketch_layout
from core.privacy.accounting import epsilon
from core.privacy.mechanism import sensitivity
from core.report import local, local_page, page, svg
from core.report.make import Known, make
from core.report.released import released
from core.report.report import Report
from core.report.site import Estimate
from core.report.spending import Reserved, spending
from core.synthesis.request import SynthesisRequest
from core.synthesis.sampler import Generator
from tests.core import reports, worlds


@pytest.fixture(scope="module")
def generator() -> Generator:
    return reports.generator()


@pytest.fixture(scope="module")
def known(generator: Generator) -> Known:
    return reports.known(generator.spec)


@pytest.fixture(scope="module")
def report(generator: Generator, known: Known) -> Report:
    return make(known, generator, reports.statistics())


# --- privacy ---


def test_epsilon_of_a_point_is_of_all_reservations_until_then(known: Known, report: Report) -> None:
    delta = report.privacy.delta
    for one, (name, _, rows) in zip(report.privacy.clients, known.reserved, strict=True):
        assert one.client == name
        for point in one.curve:
            until = [row.event for row in rows if row.round <= point.round]
            assert point.epsilon == epsilon(until, delta)
        assert one.epsilon == one.curve[-1].epsilon == epsilon([row.event for row in rows], delta)
    by_name = {one.client: one for one in report.privacy.clients}
    assert (by_name["site-b"].lost, by_name["site-a"].lost) == (1, 0)
    assert by_name["site-b"].epsilon > by_name["site-a"].epsilon == by_name["site-c"].epsilon


def test_curves_of_many_rounds_and_clients_stay_bounded() -> None:
    spec = worlds.spec(privacy={"rounds": 40})

    def rows(lost_in: int) -> list[Reserved]:
        numbers = sorted([*range(spec.last_round + 1), lost_in])
        return [Reserved(number, spec.event(number), lost=False) for number in numbers]

    few = spending(spec, [("a", "record", rows(3))])
    assert len(few[0].curve) == 8
    assert [few[0].curve[0].round, few[0].curve[-1].round] == [0, spec.last_round]
    assert few[0].curve == tuple(sorted(few[0].curve, key=lambda point: point.epsilon))
    many = spending(spec, [(f"c{i}", "record", rows(i)) for i in range(1, 31)])
    assert {len(one.curve) for one in many} == {1}
    assert all(one.curve[0].epsilon == one.epsilon == few[0].epsilon for one in many)
    assert spending(spec, [("new", "record", [])])[0].epsilon == 0.0


@pytest.mark.parametrize("spent", [0.1, 1.0, 4.0])
def test_the_best_guess_is_reached_by_the_worst_mechanism(spent: float) -> None:
    """Randomised response with (eps, delta): the guess "used" is right as often as is said."""
    delta = 1e-3
    assert page.best_guess(0.0, 0.0) == 0.5
    # It tells the truth outright with probability delta, else it lies with odds 1 : e^eps.
    truth = delta + (1 - delta) * math.exp(spent) / (1 + math.exp(spent))
    assert page.best_guess(spent, delta) == pytest.approx(truth, rel=1e-12)
    assert page.best_guess(200.0, delta) == 1.0


# --- what was released ---


def test_errors_of_released_shares_and_sizes_are_those_of_the_noise() -> None:
    noise = Noise(sketch_multiplier=2.0, train_multiplier=1.0)
    spec = worlds.spec(classes=4, noise=noise)
    layout, draw = sketch_layout(spec), np.random.default_rng(0)
    truth = [np.zeros(layout.size), np.zeros(layout.size)]
    for sketch, counts in zip(truth, ([300, 200, 100, 400], [100, 500, 200, 200]), strict=True):
        layout.split(sketch)["counts"][...] = spec.plan.sketch.count_weight * np.array(counts)
    std = 2.0 * sensitivity(spec, 0)
    found = []
    for _ in range(300):
        noised = [sketch + draw.normal(0.0, std, layout.size) for sketch in truth]
        frame = build(spec, noised, ["1", "2"], ["a", "b"])
        found.append(released(spec, frame, founding=2))
    shares = np.array([[one.value for one in each.classes] for each in found])
    sizes = np.array([[one.units.value for one in each.sizes] for each in found])
    assert np.mean([each.classes[0].se for each in found]) == pytest.approx(
        shares.std(axis=0).mean(), rel=0.15
    )
    assert found[0].sizes[0].units.se == pytest.approx(sizes.std(axis=0).mean(), rel=0.1)
    assert sizes.mean(axis=0) == pytest.approx([1000.0, 1000.0], abs=3.0)


def test_withdrawn_clients_are_in_no_picture(generator: Generator, known: Known) -> None:
    facts = replace(known.facts, withdrawn=("site-b",))
    report = make(replace(known, facts=facts), generator, reports.statistics())
    assert report.measured is not None
    assert [one.client for one in report.measured.sites] == ["site-a"]
    assert set(report.measured.pooled.domains) == {"site-a", "site-c"}
    assert report.synthetic.projection.clients == ("site-a", "site-c")
    assert report.synthetic.differences.clients == ("site-a", "site-c")
    assert [one.client for one in report.released.sizes] == ["site-a", "site-c"]


def test_what_the_model_makes_is_the_same_each_time(generator: Generator, known: Known) -> None:
    first, again = make(known, generator), make(known, generator)
    assert first.digest == again.digest
    found = np.array(first.synthetic.differences.values)
    assert np.array_equal(found, found.T)
    assert np.array_equal(np.diag(found), np.zeros(3))
    # site-c is shifted twice as far from site-a as site-b is.
    assert found[0, 2] > 1.5 * found[0, 1] > 0
    assert sum(first.synthetic.balance.shares) == pytest.approx(1.0)
    changed = replace(known, reserved=known.reserved[:2])
    assert make(changed, generator).digest != first.digest


# --- what was measured ---


def test_what_noise_leaves_nothing_of_is_absent(generator: Generator, known: Known) -> None:
    found = reports.statistics()
    nothing = replace(found.pooled, accuracy=Estimate(float("nan"), float("inf")))
    report = make(known, generator, replace(found, pooled=nothing))
    assert report.measured is not None
    assert report.measured.pooled.accuracy is None
    assert Report.model_validate_json(report.model_dump_json()) == report
    assert "–" in page.html(report)


def test_a_figure_that_noise_drowns_is_said_to_be_so(generator: Generator, known: Known) -> None:
    found = reports.statistics()
    wide = tuple(Estimate(1.3, 27.0) for _ in found.classes)
    body = page.html(
        make(known, generator, replace(found, pooled=replace(found.pooled, recall=wide)))
    )
    assert body.count("too noisy to tell") == len(found.classes)
    assert "too noisy to tell" not in page.html(make(known, generator, found))


def test_an_attack_beyond_the_guarantee_is_an_alarm(generator: Generator, known: Known) -> None:
    calm = page.html(make(known, generator, reports.statistics(epsilon_lower=0.4)))
    alarm = page.html(make(known, generator, reports.statistics(epsilon_lower=60.0)))
    nothing = page.html(make(known, generator, reports.statistics(epsilon_lower=0.0)))
    assert "Stop using this model" in alarm
    assert "Stop using this model" not in calm
    assert "it is at least 0.4" in calm
    assert "has proved nothing" in nothing
    for body in (calm, alarm, nothing):
        assert "An attack that fails proves nothing" in body


# --- the page ---


def test_what_others_have_written_is_escaped(generator: Generator, known: Known) -> None:
    hostile = '"><img src=x onerror=alert(1)>'
    space = generator.spec.space
    classes = (hostile, "</style><b>", *space.classes[2:])
    spec = generator.spec.model_copy(
        update={"space": space.model_copy(update={"classes": classes})}
    )
    report = make(known, replace(generator, spec=spec), reports.statistics())
    body = page.html(report)
    assert hostile not in body
    assert body.count("</style>") == 1
    assert not re.search(r"<(img|script|b>)[^o]", body.replace("<b>", ""))
    assert "&lt;img src=x onerror=alert(1)&gt;" in body
    assert reports.HOSTILE not in body


def test_a_model_that_is_not_private_is_stamped_first(generator: Generator, known: Known) -> None:
    report = make(reports.stamped(known), generator)
    body = page.html(report)
    assert report.label == "NOT PRIVATE"
    assert body.index("NOT PRIVATE") < body.index("In short")
    assert "NOT PRIVATE" not in page.html(make(known, generator))


def test_every_figure_speaks(report: Report) -> None:
    body = page.html(report)
    drawn = re.findall(r"<svg[^>]*>.*?</svg>", body, re.DOTALL)
    assert len(drawn) == body.count("<figure>") >= 15
    for one in drawn:
        assert re.match(r'<svg [^>]*role="img" aria-label="[^"]+"><title>[^<]+</title><desc>', one)
    assert body.count("<caption>") == body.count("<table>")
    assert all('scope="' in head for head in re.findall(r"<th\b[^>]*>", body))


# --- figures ---


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (-3.2, 7.9), (0.91, 0.95), (0.0, 12_345.0), (-1e-6, 2e-6)]
)
def test_ticks_are_round_and_within(low: float, high: float) -> None:
    ticks = svg.Range(low, high).ticks()
    assert 2 <= len(ticks) <= 6
    assert all(low - 1e-12 <= tick <= high + 1e-12 for tick in ticks)
    steps = np.diff(ticks)
    assert np.allclose(steps, steps[0])
    leading = steps[0] / 10.0 ** math.floor(math.log10(steps[0]) + 1e-9)
    assert min(abs(leading - nice) for nice in (1, 2, 5, 10)) < 1e-6


def test_marks_stand_where_their_values_are() -> None:
    plot = svg.Plot("t", "d", svg.Range(0.0, 10.0), svg.Range(-1.0, 1.0), "x", "y")
    assert plot.px(5.0) == pytest.approx((plot.px(0.0) + plot.px(10.0)) / 2)
    assert plot.py(1.0) < plot.py(0.0) < plot.py(-1.0)
    plot.dot(5.0, 0.0, "c0", title='<&"')
    drawn = str(plot.svg())
    assert f'cx="{plot.px(5.0):g}"' in drawn
    assert "<title>&lt;&amp;&#34;</title>" in drawn


def test_ranges_survive_odd_values() -> None:
    for values in ([], [0.0], [float("nan")], [3.0, 3.0], [float("inf"), 1.0]):
        found = svg.Range.around(values)
        assert found.low < found.high
        assert found.ticks()


# --- the site's own report ---


def test_a_site_finds_copies_of_its_records(generator: Generator) -> None:
    made = generator.sample(
        SynthesisRequest(run="r", n=local.MOST, mixture={"site-a": 1.0}), seed=0
    )
    stolen = worlds.clusters(300, classes=5, seed=5)
    stolen = replace(stolen, x=made.x[:300] * np.float32(1.0001), y=made.y[:300])
    fresh = worlds.clusters(200, classes=5, seed=50)
    none = np.zeros(300, bool)
    found = local.measure(generator, "site-a", stolen, none, fresh)
    assert found.attack is not None
    assert found.attack.auc > 0.99
    assert found.copies_members is not None
    assert found.copies_members.closer.value > 0.95
    assert found.copies_members.median_ratio < 0.05
    honest = local.measure(
        generator, "site-a", worlds.clusters(300, classes=5, seed=6), none, fresh
    )
    assert honest.attack is not None
    assert abs(honest.attack.auc - 0.5) < 4 * honest.attack.null_sd
    assert honest.accuracy["site-a"].value > 0.9


def test_a_site_without_a_code_or_holdout_says_so(generator: Generator) -> None:
    data = worlds.clusters(60, classes=5, seed=5)
    found = local.measure(generator, "site-<z>", data, np.zeros(60, bool))
    assert (found.source, found.attack, list(found.accuracy)) == ("neutral", None, ["neutral"])
    assert found.tested == "records that the model was trained on"
    body = local_page.html(found, generator.spec, "first", 3)
    assert body.count(local.STAMP) >= 2
    assert "a little too good" in body
    assert "site-<z>" not in body
    held_out = np.arange(60) < 30
    other = local.measure(generator, "site-a", data, held_out)
    assert (other.members, other.held_out, other.tested) == (30, 30, "held-out records")
    with pytest.raises(ValueError, match="no valid record"):
        local.measure(generator, "site-a", data, np.ones(60, bool))
