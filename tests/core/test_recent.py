"""What was used last is kept, and no more than so many."""

from __future__ import annotations

from core.recent import Recent


def test_the_least_recently_used_value_goes() -> None:
    kept = Recent[str, int](2)
    assert kept.keep("a", 1) == 1
    kept.keep("b", 2)
    assert kept.get("a") == 1  # used: now "b" is the oldest
    kept.keep("c", 3)
    assert (kept.get("a"), kept.get("b"), kept.get("c")) == (1, None, 3)


def test_a_value_is_replaced_in_place() -> None:
    kept = Recent[str, int](2)
    for key, value in (("a", 1), ("b", 2), ("a", 4), ("c", 3)):
        kept.keep(key, value)
    assert (kept.get("a"), kept.get("b"), kept.get("c")) == (4, None, 3)
