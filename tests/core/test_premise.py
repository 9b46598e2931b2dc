"""What a number of secure sums rests on, in words: said whole, and never of a plain release."""

from __future__ import annotations

from core.privacy.premise import NONE, ONLOOKERS, View, in_words, premise, resting


def test_the_premise_of_a_booked_number_names_how_many_may_collude() -> None:
    assert premise([2, None, 2]) == (
        "no more than 2 of a round's other clients work with the coordinator"
    )
    assert "no more than 1 or 3 of" in premise([3, 1])
    assert "no more than 0 of" in premise([0])  # a number of none is a premise, too
    assert premise([None]) == premise([]) == NONE


def test_in_words_it_says_what_is_true_without_it() -> None:
    seen = [
        View(who=who, epsilon=1.0 + place, premise=NONE).model_dump()
        for place, who in enumerate(ONLOOKERS)
    ]
    assert in_words(seen) == in_words([]) == ""
    seen[0]["premise"] = premise([2])
    said = in_words(seen)
    assert premise([2]) in said
    assert "against everybody else together the plan's is 4 " in said


def test_views_of_another_version_or_of_a_forger_are_no_crash() -> None:
    booked = {"who": "booked", "epsilon": 1.0, "premise": premise([2]), "since": "later"}
    assert in_words([booked]) == f"epsilon of founding clients holds while {premise([2])}"
    assert in_words(
        [booked, {"who": "moon"}, {"who": "everybody", "epsilon": "x"}, {}]
    ) == in_words([booked])
    assert in_words([{"who": "everybody", "epsilon": 3.0, "premise": NONE}]) == ""


def test_of_an_account_it_ends_the_sentence() -> None:
    assert resting([None, None]) == ""
    assert resting([None, 1]).startswith(
        "; secure sums among it: epsilon holds while no more than 1"
    )
