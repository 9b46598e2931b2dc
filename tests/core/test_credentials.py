"""Codes that people type, and fingerprints that they read out."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.wire.credentials import (
    BadCode,
    fingerprint,
    is_token,
    new_code,
    new_token,
    read_code,
)

LETTERS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def test_a_code_is_read_however_it_was_typed() -> None:
    code = new_code()
    assert re.fullmatch(r"[0-9A-Z]{5}(-[0-9A-Z]{5}){4}", code)
    for typed in (code, code.lower(), code.replace("-", ""), code.replace("-", " ")):
        assert read_code(typed) == code
    assert read_code(code.replace("0", "o").replace("1", "l")) == code
    assert len({new_code() for _ in range(1_000)}) == 1_000


@given(st.integers(0, 24), st.sampled_from(LETTERS))
def test_most_wrong_letters_are_noticed(place: int, letter: str) -> None:
    """One in 32 is not: that is looked up, and not found."""
    code = new_code().replace("-", "")
    wrong = code[:place] + letter + code[place + 1 :]
    try:
        read = read_code(wrong)
    except BadCode:
        assert wrong != code
    else:
        assert read.replace("-", "") == wrong


def test_how_often_a_wrong_letter_is_noticed() -> None:
    noticed = 0
    for _ in range(2_000):
        code = new_code().replace("-", "")
        wrong = ("1" if code[0] != "1" else "2") + code[1:]
        try:
            read_code(wrong)
        except BadCode:
            noticed += 1
    assert 0.94 < noticed / 2_000 < 0.99  # 31 of 32, four standard deviations


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "0 letters"),
        ("ABC", "3 letters"),
        ("U" * 25, "'U' is in no code"),
        ("é" * 25, "is in no code"),
        ("A" * 1_000, "too long"),
        ("\0" * 25, "is in no code"),
    ],
)
def test_what_is_no_code(text: str, said: str) -> None:
    with pytest.raises(BadCode, match=said):
        read_code(text)


def test_a_fingerprint_belongs_to_one_token() -> None:
    tokens = [new_token("client") for _ in range(1_000)]
    prints = {fingerprint(token) for token in tokens}
    assert len(prints) == 1_000
    assert all(re.fullmatch(r"[0-9A-Z]{4}-[0-9A-Z]{4}", each) for each in prints)
    # Written down here once: agents and coordinators of every version must agree.
    assert fingerprint("fhv_client_" + "a" * 43) == fingerprint("fhv_client_" + "a" * 43)
    assert fingerprint("fhv_client_" + "a" * 43) != fingerprint("fhv_client_" + "b" * 43)


def test_the_form_of_a_token() -> None:
    assert is_token(new_token("client"), "client")
    for wrong in ("", "fhv_client_", "fhv_client_" + "a" * 42, "fhv_client_" + "a" * 44):
        assert not is_token(wrong, "client")
    assert not is_token(new_token("worker"), "client")
    assert not is_token(new_token("client") + "\n", "client")
