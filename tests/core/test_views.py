"""What a secure sum costs against whom: scaling, order and the proved floor of each number."""

from __future__ import annotations

import math
from dataclasses import replace
from html import unescape

import pytest

from core.privacy.accounting import epsilon
from core.privacy.events import release
from core.privacy.views import (
    Release,
    Who,
    release_of,
    seen,
    views,
    views_of_plan,
    views_of_secure,
)
from core.receipts.opening import ModelFacts
from core.receipts.receipt import Receipt, canonical
from core.report import page
from core.report.make import make
from core.report.report import Report
from tests.core import reports
from tests.core.secure_world import secure_spec

M = 6


def test_views_are_ordered_and_the_booked_one_is_the_plan_s() -> None:
    spec = secure_spec(drop=1, collude=2)
    found = {view.who: view.epsilon for view in views_of_plan(spec, M)}
    assert found["coordinator"] < found["client"] < found["booked"] < found["everybody"]
    assert found["booked"] == epsilon(spec.events(), spec.plan.privacy.delta)


@pytest.mark.parametrize(
    ("who", "unknown"), [("coordinator", M - 1), ("client", M - 2), ("everybody", 1)]
)
def test_multipliers_are_those_of_the_noise_that_is_not_known(who: Who, unknown: int) -> None:
    """Against the variances themselves: k of the M - drop - collude shares, less what is felt of
    the grid; never above, and below by no more than theorem 1 takes.
    """
    spec = secure_spec(drop=1, collude=2)
    for number in range(spec.last_round + 1):
        made = release_of(spec, number, M)
        assert made.grid is not None
        z = seen(made, who).noise_multiplier
        exact = math.sqrt(unknown * made.grid.variance) / made.grid.sensitivity
        assert exact * math.sqrt(1 - 17 / (unknown * made.grid.variance)) < z < exact
        share = made.event.noise_multiplier * math.sqrt(unknown / (M - 3))
        assert z == pytest.approx(share, rel=0.02)
        assert seen(made, who).sample_rate == made.event.sample_rate


def test_whoever_sees_through_the_allowance_faces_what_is_booked() -> None:
    spec = secure_spec(drop=1, collude=1)
    made = release_of(spec, 0, M)
    assert seen(made, "client").noise_multiplier >= made.event.noise_multiplier


def test_fewer_clients_make_no_view_worse() -> None:
    spec = secure_spec(drop=1, collude=1)
    few, many = views_of_plan(spec, 4), views_of_plan(spec, 9)
    for less, more in zip(few, many, strict=True):
        assert less.epsilon <= more.epsilon * 1.005  # variances are whole numbers of steps


def test_plain_releases_are_the_same_for_everybody() -> None:
    event = release(noise_multiplier=1.0, sample_rate=1.0, unit="record")
    found = views([Release(event)] * 3, 1e-5)
    assert {view.epsilon for view in found} == {epsilon([event] * 3, 1e-5)}
    assert {view.premise for view in found} == {"none"}


def test_too_few_clients_have_no_views() -> None:
    with pytest.raises(ValueError, match="fewer than three"):
        views_of_plan(secure_spec(drop=0, collude=1), 2)


# --- where they are said ---


def test_the_report_says_them_and_plain_reports_stay_as_they_were() -> None:
    generator = reports.generator(rounds=1)
    known = reports.known(generator.spec)
    before = make(known, generator)
    assert "views" not in before.model_dump()["privacy"]
    assert "Who looks" not in page.html(before)
    told = views_of_secure(secure_spec(), M)
    facts = replace(known.facts, views=told)
    report = make(replace(known, facts=facts), generator)
    assert Report.model_validate_json(report.model_dump_json()).privacy.views == told
    html = unescape(page.html(report))
    for view in told:
        assert f"{view.epsilon:.3f}" in html
        assert view.premise in html
    assert "everybody else together" in html
    # What is said in plain words of the booked number is said on its premise, and the number that
    # needs none beside it.
    seen = {view.who: view for view in told}
    plainly = html[html.index("In plain words") :].split("</p>")[0]
    assert seen["booked"].premise in plainly
    without = page.best_guess(seen["everybody"].epsilon, report.privacy.delta)
    assert page.percent(without) in plainly
    assert html.count(f"while {seen['booked'].premise}") == 2  # the tile, the ledger's bound
    assert "Suppose that" not in page.html(before)


def test_receipts_sign_them_and_receipts_of_before_keep_their_bytes() -> None:
    said = {
        "model": {"run_id": "1", "run": "r", "round": 1, "plan_digest": "p", "frame_digest": "f",
                  "weights_digest": "w"},
        "asked": {"mixture": "neutral", "mode": "blend", "n": 3, "labels": "model",
                  "class_counts": None, "temperature": 1.0, "guidance": "model", "seed": 0},
        "n": 3, "codes": [], "labels_by": "generator", "per_client": [], "relation": "add-remove",
        "noise_mode": "csprng",
        "made_with": {"fedhypevae": "1", "numpy": "2", "instruction_set": "x"},
    }  # fmt: skip
    plain = Receipt.model_validate(said)
    assert b"views" not in plain.canonical()
    told = plain.model_copy(update={"views": views_of_secure(secure_spec(), M)})
    assert told.id != plain.id
    assert Receipt.model_validate_json(told.canonical()) == told
    assert canonical([view.model_dump() for view in told.views]) in told.canonical()
    assert ModelFacts(plain.model, (), "r", "csprng").views == ()


def test_a_part_of_a_plan_costs_less_than_all_of_it() -> None:
    spec = secure_spec()
    first, every = views_of_secure(spec, M, up_to=0), views_of_secure(spec, M)
    assert all(part.epsilon < whole.epsilon for part, whole in zip(first, every, strict=True))
    plain = reports.generator(rounds=1).spec
    assert views_of_secure(plain, M) == ()
    assert len({view.epsilon for view in views_of_plan(plain, M)}) == 1
