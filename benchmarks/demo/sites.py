"""What each site keeps to itself: its records, its configuration, its state folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.scanner_digits import Site
from core.federation.plan import EmbeddingSpace, Plan

# What a site allows is its own decision, not the plan's: a little more than the plan asks for, so
# that a lost attempt or two can be paid, and noise well above what would be no protection.
HEADROOM = 1.5
MIN_NOISE_MULTIPLIER = 0.3


@dataclass(frozen=True)
class Client:
    """A site as the coordinator knows it (``name``) and as the demo's data know it (``site``)."""

    name: str
    site: Site
    managed: bool

    @property
    def population(self) -> str:
        return f"{self.name}/images"


@dataclass(frozen=True)
class Party:
    """One machine's worth of clients: a folder with records, configuration and state."""

    folder: Path
    config: Path
    state: Path


def budget(plan: Plan) -> float:
    return round(HEADROOM * plan.privacy.epsilon, 6)


def write_party(folder: Path, clients: list[Client], plan: Plan, space: EmbeddingSpace) -> Party:
    """Write the records (npz, mode 0600) and the TOML of the clients that one process serves."""
    folder.mkdir(parents=True, mode=0o700)
    state = folder / "state"
    lines = ["[site]", f'state_dir = "{state}"', ""]
    for client in clients:
        data = folder / f"{client.name}.npz"
        data.touch(mode=0o600)
        names = np.array(space.classes)[client.site.train_y]
        with data.open("wb") as file:
            np.savez(file, x=client.site.train_x, y=names)
        lines += [
            "[[client]]",
            f'name = "{client.name}"',
            f'data = "{data}"',
            f'unit = "{plan.privacy.unit}"',
            f'population = "{client.population}"',
            f"max_epsilon = {budget(plan)}",
            f"delta = {plan.privacy.delta}",
            f"min_noise_multiplier = {MIN_NOISE_MULTIPLIER}",
            f"max_sample_rate = {plan.privacy.sample_rate}",
            f'peers = "{folder / "peers.json"}"',
            "",
        ]
    config = folder / "site.toml"
    config.write_text("\n".join(lines))
    config.chmod(0o600)
    return Party(folder, config, state)
