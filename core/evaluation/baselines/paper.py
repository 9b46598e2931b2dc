"""FedHypeVAE's ``paper`` mode as a baseline: NO RECORD-LEVEL GUARANTEE, epsilon is infinite.

The obvious reading of the abstract, for comparison only (``core.training.paper`` says what is wrong
with it): sketch and noise as for a joint run at the same terms, codes and encoders private and
trained without noise, every decoder weight generated, no classifier. Simulation only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from core.data import EmbeddingDataset
from core.evaluation.baselines.common import EventsBySite, Terms, known
from core.federation.plan import (
    NO_GUARANTEE,
    EmbeddingSpace,
    ModelPlan,
    Plan,
    PrivacyPlan,
)
from core.federation.rule import spec_for
from core.models.architecture import Form
from core.privacy.noise import NoiseSource
from core.synthesis.request import SynthesisRequest

if TYPE_CHECKING:
    from core.paper import PaperRun

_AT_ONCE = 50_000  # rows of one request


@dataclass(frozen=True)
class PaperSettings:
    """Public. Local training is ``local_steps`` steps of Adam in each round, without noise."""

    rounds: int = 20
    form: Form = "full"
    local_steps: int = 5
    local_learning_rate: float = 0.01


@dataclass(frozen=True, eq=False)
class Paper:
    """A finished run. Its events are empty because nothing it made is covered by any."""

    run: PaperRun
    sites: int
    private: bool = False
    caveat: str = NO_GUARANTEE

    @property
    def events(self) -> EventsBySite:
        """None: the sketches' own would suggest an epsilon."""
        return ((),) * self.sites

    def sample(self, n: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """``n`` rows of the clients' private codes in equal shares (to one row)."""
        clients = self.run.generator.clients
        shares = [n // len(clients) + (i < n % len(clients)) for i in range(len(clients))]
        return self._rows([({name: 1.0}, k) for name, k in zip(clients, shares, strict=True)], seed)

    def neutral(self, n: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """``n`` rows of the neutral code. Not private either: private states shaped phi."""
        return self._rows([("neutral", n)], seed)

    def _rows(
        self, wanted: Sequence[tuple[str | dict[str, float], int]], seed: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        generator = self.run.generator
        xs = [np.zeros((0, generator.spec.space.dim), np.float32)]
        ys = [np.zeros(0, np.int64)]
        for mixture, rows in wanted:
            for start in range(0, rows, _AT_ONCE):
                some = min(_AT_ONCE, rows - start)
                request = SynthesisRequest.model_validate(
                    {"run": "paper", "mixture": mixture, "n": some}
                )
                made = generator.sample(request, seed + 1_000_003 * (len(xs) - 1))
                xs.append(made.x)
                ys.append(made.y)
        return np.concatenate(xs), np.concatenate(ys)


def paper_mode(
    sites: Sequence[EmbeddingDataset],
    space: EmbeddingSpace,
    terms: Terms,
    noise: NoiseSource,
    settings: PaperSettings | None = None,
) -> Paper:
    """Train over ``sites`` with the noise that a joint run at ``terms`` would need."""
    from core.paper import simulate_paper
    from core.simulation import SimulatedSite
    from core.training.paper import LocalTraining

    chosen = settings or PaperSettings()
    own = [known(site, len(space.classes)) for site in sites]
    units = [len(site.unit_ids) for site in own]
    privacy = PrivacyPlan(
        epsilon=terms.epsilon, delta=terms.delta, unit=terms.unit, mode="paper",
        n_max=_round(max(units, default=0)), units_expected=_round(sum(units)),
        rounds=chosen.rounds,
    )  # fmt: skip
    model = ModelPlan(form=chosen.form, codes="trained", encoder="local", classifier="none")
    plan = Plan(name="paper", space=space.name, privacy=privacy, model=model, purpose="simulation")
    run = simulate_paper(
        spec_for("paper", plan, space, len(sites), terms.noise_mode),
        [SimulatedSite(f"site-{number}", site) for number, site in enumerate(own)],
        noise=noise,
        secret=terms.secret,
        training=LocalTraining(chosen.local_steps, chosen.local_learning_rate),
        noise_mode=terms.noise_mode,
    )
    return Paper(run, len(sites))


def _round(units: int) -> int:
    """One significant digit, 1 at least: sizes as anybody would say them, for the budget's rule."""
    return max(1, round(units, 1 - len(str(units))))
