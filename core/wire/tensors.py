"""Tensor files: safetensors with text metadata. The same tensors give the same bytes.

The library does not reject NaN and neither does this codec; ``core.federation.updates`` does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from core.errors import DomainError
from core.wire import strict_json

Array = NDArray[np.float32] | NDArray[np.float64] | NDArray[np.int64]


class TensorFileError(DomainError):
    """Bytes that are not a tensor file of the promised content."""

    code = "tensor-file-unreadable"


def pack(tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file. Metadata keys are sorted, so equal content gives equal bytes."""
    ordered = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
    body = save(ordered, metadata=None)
    return _with_metadata(body, metadata)


def _with_metadata(body: bytes, metadata: Mapping[str, str]) -> bytes:
    """Put sorted metadata into the header (the library's own order of keys is not fixed)."""
    size = int.from_bytes(body[:8], "little")
    header = json.loads(body[8 : 8 + size])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body[8 + size :]


def unpack(body: bytes) -> tuple[dict[str, NDArray[np.generic]], dict[str, str]]:
    """Tensors and metadata of a file. Raises ``TensorFileError`` for anything malformed.

    The header is read strictly first: the library takes the last of two tensors of one name.
    """
    try:
        header = _header(body)
        tensors: dict[str, NDArray[np.generic]] = load(body)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise TensorFileError(f"not a readable safetensors file: {error}") from error
    metadata = header.get("__metadata__") or {}
    return tensors, {str(key): str(value) for key, value in metadata.items()}


def _header(body: bytes) -> dict[str, Any]:
    size = int.from_bytes(body[:8], "little")
    if len(body) < 8 or size > len(body) - 8:
        raise ValueError("it ends before its header does")
    header = strict_json.read(body[8 : 8 + size])
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    return header
