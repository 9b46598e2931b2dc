"""What all methods of a table share, and the split of one seed: clients' records, test records."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.utility.records import Records
from benchmarks.utility.refused import Refused
from core.data import EmbeddingDataset
from core.federation.rule import NoiseMode


@dataclass(frozen=True)
class Settings:
    """``train`` is the share of units for training, ``rows`` how many synthetic records train the
    classifier. ``n_max`` None: ``declared_bound`` of the split.
    """

    clients: int = 10
    alpha: float = 0.3
    train: float = 7 / 12
    delta: float = 1e-4
    noise: NoiseMode = "local"
    rows: int = 16_000
    n_max: int | None = None
    # Of a secure sum (noise "aggregated"): sites that may be missing, and that may collude.
    drop: int = 0
    collude: int = 0


@dataclass(frozen=True, eq=False)
class Split:
    """Clients' training records, the pooled test records of one seed and whose they would be.

    ``n_max`` is the public bound on a client's units that the operator would declare.
    """

    sites: tuple[EmbeddingDataset, ...]
    test_x: NDArray[np.float32]
    test_y: NDArray[np.int64]
    test_owner: NDArray[np.int64]
    names: tuple[str, ...]
    n_max: int


def declared_bound(largest: int) -> int:
    """The smallest of 1, 2, 5 times a power of ten that is at least ``largest``.

    An operator knows the order of magnitude of the largest client and declares a round number;
    nothing finer than that about a private count enters the run.
    """
    for power in itertools.count():
        for lead in (1, 2, 5):
            if lead * 10**power >= largest:
                return int(lead * 10**power)
    raise AssertionError("powers of ten have no end")


def split(data: Records, settings: Settings, seed: int) -> Split:
    """Test records, and training records dealt to clients: by domain, else Dirichlet by class.

    Whole units are dealt, by the class of a unit's first record. Test records are dealt in the
    same draw as training records, so a client's test records have its class mix. Raises
    ``Refused`` where a declared ``n_max`` is below the units of a client.
    """
    draw = np.random.default_rng(seed)
    _, first = np.unique(data.groups, return_index=True)
    if data.held_out is not None:
        test = data.held_out(seed)
    else:
        order = draw.permutation(len(first))
        test = np.isin(data.groups, order[round(settings.train * len(first)) :])
    owner = data.domain
    if owner is None:
        owner = _dealt(data, settings, first, draw)[data.groups]
    clients = len(data.domains) if data.domain is not None else settings.clients
    sites, largest = [], 1
    for client in range(clients):
        rows = np.flatnonzero((owner == client) & ~test)
        units = tuple(b"%d" % g for g in data.groups[rows]) if data.unit == "patient" else None
        sites.append(EmbeddingDataset.from_arrays(data.x[rows], data.y[rows], units))
        largest = max(largest, len(np.unique(data.groups[rows])))
    bound = settings.n_max or declared_bound(largest)
    if bound < largest:
        raise Refused(
            "--n-max",
            f"{bound} is below the {largest} units of the largest client (seed {seed})",
            "declare a bound that holds",
        )
    names = data.domains or tuple(f"client {client}" for client in range(clients))
    return Split(tuple(sites), data.x[test], data.y[test], owner[test], names, bound)


def _dealt(
    data: Records, settings: Settings, first: NDArray[np.intp], draw: np.random.Generator
) -> NDArray[np.int64]:
    """[units] client of each unit; ``first`` is the row of a unit's first record."""
    owner = np.zeros(len(first), np.int64)
    labels = data.y[first]
    for label in range(len(data.space.classes)):
        mine = draw.permutation(np.flatnonzero(labels == label))
        shares = draw.dirichlet(np.full(settings.clients, settings.alpha))
        cuts = np.round(np.cumsum(shares)[:-1] * len(mine)).astype(np.int64)
        for client, units in enumerate(np.split(mine, cuts)):
            owner[units] = client
    return owner
