"""Texts that let somebody in: bearer tokens, and the one-time codes that become one.

Both sides need them. A site makes its own token, so that an answer that is lost on the way loses
nothing; the coordinator checks its form and keeps an HMAC of it.
"""

from __future__ import annotations

import hashlib
import re
import secrets

_TOKEN_BYTES = 32
TOKEN = re.compile(r"fhv_[a-z]{1,16}_[A-Za-z0-9_-]{43}")

# Crockford's base 32: no letter that is taken for a digit on paper, or for another on the phone.
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_READ_AS = str.maketrans({"O": "0", "I": "1", "L": "1", "-": None, " ": None})
_CODE_LETTERS = 24  # of 5 bits each: 120 random bits
_GROUP = 5
_FINGERPRINT_LETTERS = 8
LONGEST_CODE = 64


class BadCode(ValueError):
    """No code has this form: it was mistyped."""


def new_token(scope: str) -> str:
    """``fhv_<scope>_`` and 256 random bits. Exists nowhere else until somebody keeps it."""
    return f"fhv_{scope}_{secrets.token_urlsafe(_TOKEN_BYTES)}"


def is_token(text: str, scope: str) -> bool:
    """Has ``text`` the form of a token of ``scope``? Says nothing about its being known."""
    return bool(TOKEN.fullmatch(text)) and text.startswith(f"fhv_{scope}_")


def scope_of(token: str) -> str | None:
    """The scope that a token's text names; None for a text of another form."""
    parts = token.split("_", 2)
    return parts[1] if len(parts) == 3 else None


def new_code() -> str:
    """A one-time enrolment code: five groups of five letters, the last of them a check."""
    letters = "".join(secrets.choice(_ALPHABET) for _ in range(_CODE_LETTERS))
    return _grouped(letters + _check(letters))


def read_code(text: str) -> str:
    """The code as it was issued, from what a person typed: case, spaces and hyphens do not count,
    and O, I and L are the digits that they look like. Raises ``BadCode``.
    """
    if len(text) > LONGEST_CODE:
        raise BadCode("it is too long")
    letters = text.upper().translate(_READ_AS)
    if len(letters) != _CODE_LETTERS + 1:
        raise BadCode(f"it has {len(letters)} letters and digits instead of {_CODE_LETTERS + 1}")
    strange = sorted(set(letters) - set(_ALPHABET))
    if strange:
        raise BadCode(f"{strange[0]!r} is in no code")
    if _check(letters[:-1]) != letters[-1]:
        raise BadCode("one of its letters is wrong")
    return _grouped(letters)


def fingerprint(token: str) -> str:
    """Eight letters (40 bits) that two people compare on the phone: does the coordinator hold the
    token that this site made? They say nothing about the token.
    """
    digest = hashlib.sha256(b"fhv-fingerprint\0" + token.encode()).digest()
    number = int.from_bytes(digest[:5], "big")
    letters = "".join(
        _ALPHABET[number >> 5 * place & 31] for place in reversed(range(_FINGERPRINT_LETTERS))
    )
    return f"{letters[:4]}-{letters[4:]}"


def _check(letters: str) -> str:
    """One letter: finds one wrong letter, or two that were swapped, in 31 of 32 cases."""
    return _ALPHABET[hashlib.sha256(b"fhv-code\0" + letters.encode()).digest()[0] & 31]


def _grouped(letters: str) -> str:
    return "-".join(letters[at : at + _GROUP] for at in range(0, len(letters), _GROUP))
