"""JSON from outside is read strictly: what two readers may take for two things is refused.

UTF-8 without a byte order mark (RFC 8259), every key once, no NaN or Infinity, no number outside
float64, no text that cannot be stored (U+0000) or sent (half of a surrogate pair), no deeper than
``MAX_DEPTH``. Python's own reader lets all of these through.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from json import JSONDecodeError, JSONDecoder
from typing import Any

MAX_DEPTH = 64
# Only these escapes can make such a text: a body without them is not searched.
_SUSPECT = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")
_SHOWN = 60  # characters of what is quoted in an error


class NotStrict(ValueError):
    """Not strict JSON; ``field``: a dotted path, or ``body``."""

    def __init__(self, message: str, field: str = "body") -> None:
        super().__init__(message)
        self.field = field


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for index, key in enumerate(keys) if key in keys[:index])
        raise NotStrict(f"the key {_quoted(twice)} is there twice", _printable(twice))
    return made


def _constant(name: str) -> float:
    raise NotStrict(f"{name} is no number of JSON")


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise NotStrict(f"the number {text[:_SHOWN]} is too large")
    return number


_DECODER = JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)


def _printable(text: str) -> str:
    return text[:_SHOWN].encode("ascii", "backslashreplace").decode()


def _quoted(text: str) -> str:
    return json.dumps(text[:_SHOWN])


def _texts(value: Any) -> Iterator[tuple[str, str]]:
    """Every text of a document, keys too, with its dotted path."""
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        path, item = waiting.pop()
        if isinstance(item, str):
            yield path or "body", item
        elif isinstance(item, list):
            waiting += [(f"{path}.{index}".lstrip("."), each) for index, each in enumerate(item)]
        elif isinstance(item, dict):
            for key, each in item.items():
                yield f"{path}.{_printable(key)}".lstrip("."), key
                waiting.append((f"{path}.{_printable(key)}".lstrip("."), each))


def _sendable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def _depth(value: Any) -> int:
    deepest, level = 0, [value]
    while level:
        deepest += 1
        level = [
            each
            for item in level
            for each in (item.values() if isinstance(item, dict) else item)
            if isinstance(each, (dict, list))
        ]
    return deepest


def read(body: bytes) -> Any:
    """The value of a document. Raises ``NotStrict``."""
    try:
        text = body.decode()
        value = _DECODER.decode(text)
    except UnicodeDecodeError:
        raise NotStrict("the body is not UTF-8") from None
    except JSONDecodeError as error:
        raise NotStrict(f"the body is not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise NotStrict(f"the body is nested deeper than {MAX_DEPTH} levels") from None
    except NotStrict:
        raise
    except ValueError as error:  # a number with more digits than Python reads
        raise NotStrict(f"the body cannot be read: {error}") from None
    if isinstance(value, (dict, list)) and _depth(value) > MAX_DEPTH:
        raise NotStrict(f"the body is nested deeper than {MAX_DEPTH} levels")
    if _SUSPECT.search(text):
        for path, each in _texts(value):
            if not _sendable(each):
                raise NotStrict("holds U+0000 or half of a surrogate pair", path)
    return value
