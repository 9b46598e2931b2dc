"""Tensor files that are not what they say, for the tests of everything that reads one."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator

_GIB = 2**30


def parts(file: bytes) -> tuple[dict, bytes]:
    """The header and the tensors' bytes of a good file."""
    size = int.from_bytes(file[:8], "little")
    return json.loads(file[8 : 8 + size]), file[8 + size :]


def _joined(header: object, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def _changed(file: bytes, **change: object) -> bytes:
    header, data = parts(file)
    (name,) = set(header) - {"__metadata__"}
    header[name] = {**header[name], **change}
    return _joined(header, data)


def _named_twice(file: bytes) -> bytes:
    header, data = parts(file)
    text = json.dumps(header)
    (name,) = set(header) - {"__metadata__"}
    again = json.dumps({name: header[name]})[1:-1]
    return _joined((text[:-1] + "," + again + "}").encode(), data)


def _overlapping(file: bytes) -> bytes:
    header, data = parts(file)
    (name,) = set(header) - {"__metadata__"}
    header["other"] = dict(header[name])
    return _joined(header, data)


def _with_gap(file: bytes) -> bytes:
    header, data = parts(file)
    (name,) = set(header) - {"__metadata__"}
    start, end = header[name]["data_offsets"]
    header[name]["data_offsets"] = [start + 8, end + 8]
    return _joined(header, bytes(8) + data)


def _deep(file: bytes) -> bytes:
    _, data = parts(file)
    return _joined(b'{"a":' * 5_000 + b"1" + b"}" * 5_000, data)


def _deep_metadata(file: bytes) -> bytes:
    header, data = parts(file)
    text = json.dumps(header).replace('"__metadata__": {', '"__metadata__": {"a": ' + "[" * 90, 1)
    return _joined(text.replace("[" * 90, "[" * 90 + "]" * 90 + ",", 1).encode(), data)


# Each takes a good file of one float32 vector and spoils it.
MALFORMED: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda _: b"",
    "seven bytes": lambda file: file[:7],
    "no header": lambda file: file[:8],
    "half a header": lambda file: file[:40],
    "no data": lambda file: file[: 8 + int.from_bytes(file[:8], "little")],
    "one byte short": lambda file: file[:-1],
    "one byte long": lambda file: file + b"\0",
    "a header of 2^62 bytes": lambda file: (2**62).to_bytes(8, "little") + file[8:],
    "a header of 2^64-1 bytes": lambda file: b"\xff" * 8 + file[8:],
    "a header longer than the file": lambda file: len(file).to_bytes(8, "little") + file[8:],
    "no header length": lambda file: bytes(8) + file[8:],
    "a header that is a list": lambda file: _joined([1, 2], parts(file)[1]),
    "a header that is no JSON": lambda file: _joined(b"{'a': 1}", parts(file)[1]),
    "a header that is no UTF-8": lambda file: _joined(b'{"\xff": 1}', parts(file)[1]),
    "a header in UTF-16": lambda file: _joined("{}".encode("utf-16"), b""),
    "a deep header": _deep,
    "deep metadata": _deep_metadata,
    "metadata of numbers": lambda file: _joined(
        {**parts(file)[0], "__metadata__": {"layout": 1}}, parts(file)[1]
    ),
    "metadata that is a list": lambda file: _joined(
        {**parts(file)[0], "__metadata__": ["layout"]}, parts(file)[1]
    ),
    "a name twice": _named_twice,
    "tensors that overlap": _overlapping,
    "a gap between tensors": _with_gap,
    "an unknown dtype": lambda file: _changed(file, dtype="F99"),
    "no dtype": lambda file: _changed(file, dtype=None),
    "half floats": lambda file: _changed(file, dtype="BF16"),
    "doubles": lambda file: _changed(file, dtype="F64"),
    "a negative length": lambda file: _changed(file, shape=[-1]),
    "a length of NaN": lambda file: _changed(file, shape=[float("nan")]),
    "a length of 1e400": lambda file: _joined(
        json.dumps(parts(file)[0]).replace('"shape": [', '"shape": [1e400, ').encode(),
        parts(file)[1],
    ),
    "a shape that overflows": lambda file: _changed(file, shape=[2**40, 2**40]),
    "a shape of nothing": lambda file: _changed(file, shape=[0, 2**62]),
    "10 GiB declared": lambda file: _changed(
        file, shape=[10 * _GIB // 4], data_offsets=[0, 10 * _GIB]
    ),
    "offsets backwards": lambda file: _changed(file, data_offsets=[8, 0]),
    "offsets beyond the end": lambda file: _changed(file, data_offsets=[2**63, 2**63 + 4]),
    "no offsets": lambda file: _changed(file, data_offsets=[]),
    "a hundred tensors without a form": lambda file: _joined(
        b"{" + b",".join(b'"%d":{}' % number for number in range(100)) + b"}", parts(file)[1]
    ),
}


def mutants(file: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Files near a good one: bytes flipped, cut, doubled, swapped, most of them in the header."""
    chance = random.Random(seed)
    head = 8 + int.from_bytes(file[:8], "little")
    for _ in range(count):
        made = bytearray(file)
        for _ in range(chance.randint(1, 4)):
            if not made:
                break
            end = min(head, len(made)) if chance.random() < 0.8 else len(made)
            at = chance.randrange(end)
            move = chance.randrange(5)
            if move == 0:
                made[at] ^= 1 << chance.randrange(8)
            elif move == 1:
                made[at] = chance.choice(b'\0\xff"{}[],:0129-.eE ')
            elif move == 2:
                del made[at : at + chance.randint(1, 16)]
            elif move == 3:
                made[at:at] = made[at : at + chance.randint(1, 16)]
            else:
                del made[chance.randrange(len(made)) :]
        yield bytes(made)
