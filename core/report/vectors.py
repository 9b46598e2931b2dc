"""Where the report round's released vectors are kept: in the weights file, a row for each client.

So the report outlives the updates, whose bytes may be erased. A client that is revoked later has no
row in the models that are published from then on; the file of before stays what it was.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from core.report.reference import PREFIX, without_classifiers
from core.wire import tensors

VECTORS = PREFIX + "vectors"
_CLIENTS, _MISSING = "report_clients", "report_missing"


def with_vectors(
    weights: bytes,
    round_number: int,
    released: Mapping[str, NDArray[np.float32]],
    clients: Mapping[str, str],
) -> bytes:
    """The weights file with the vectors [R] that clients (ids) ``released``, in their order.

    ``clients``: id -> name of all that have a code; who released nothing is named as missing.
    """
    content, metadata = tensors.unpack(weights)
    own = without_classifiers({name: np.asarray(value) for name, value in content.items()})
    named = [[client, clients.get(client, client)] for client in released]
    missing = [name for client, name in clients.items() if client not in released]
    return tensors.pack(
        own | {VECTORS: np.stack(list(released.values()))},
        metadata
        | {
            "round": str(round_number),
            _CLIENTS: json.dumps(named),
            _MISSING: json.dumps(missing),
        },
    )


def without_vectors(weights: bytes, withdrawn: Collection[str]) -> bytes:
    """The weights file without the rows of these clients (ids)."""
    content, metadata = tensors.unpack(weights)
    if VECTORS not in content:
        return weights
    clients = json.loads(metadata[_CLIENTS])
    kept = [place for place, (client, _) in enumerate(clients) if client not in withdrawn]
    own = {name: np.asarray(value) for name, value in content.items()}
    own[VECTORS] = own[VECTORS][kept]
    names = json.dumps([clients[place] for place in kept])
    return tensors.pack(own, metadata | {_CLIENTS: names})


def read_vectors(
    weights: bytes, size: int
) -> tuple[NDArray[np.float64], tuple[str, ...], tuple[str, ...]] | None:
    """(vectors [M, R], names of their clients [M], names of clients without one); None where no
    report round was published. Raises ``TensorFileError`` for a damaged file.
    """
    content, metadata = tensors.unpack(weights)
    if VECTORS not in content:
        return None
    try:
        clients = tuple(str(name) for _, name in json.loads(metadata[_CLIENTS]))
        missing = tuple(str(name) for name in json.loads(metadata[_MISSING]))
    except (KeyError, ValueError, TypeError) as error:
        raise tensors.TensorFileError("these weights do not say whose report is whose") from error
    vectors = np.asarray(content[VECTORS], np.float64)
    if vectors.shape != (len(clients), size) or not np.isfinite(vectors).all():
        raise tensors.TensorFileError(f"{VECTORS} is not finite or not [{len(clients)}, {size}]")
    return vectors, clients, missing
