"""What a number of secure sums rests on, in words: said whole, and never of a plain release."""

from __future__ import annotations

from core.privacy.premise import NONE, ONLOOKERS, View, in_words, premise


def test_the_premise_of_a_booked_number_names_how_many_may_collude() -> None:
    assert premise([2, None, 2]) == (
        "no more than 2 of a round's other clients work with the coordinator"
    )
    assert "no more than 1 or 3 of" in premise([3, 1])
    assert "no more than 0 of" in premise([0])  # a number of none is a premise, too
    assert premise([None]) == premise([]) == NONE


def test_in_words_it_says_what_is_true_without_it() -> None:
    seen = [View(who=who, epsilon=1.0 + place, premise=NONE) for place, who in enumerate(ONLOOKERS)]
    assert in_words(seen) == in_words([]) == ""
    seen[0] = View(who="booked", epsilon=1.0, premise=premise([2]))
    said = in_words(seen)
    assert premise([2]) in said
    assert "against everybody else together it is 4 " in said
