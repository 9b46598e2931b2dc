"""The hypernetwork CVAE in torch: one record's loss, written so that nothing else enters it.

Codes are expanded to the batch: record i goes through the hypernetwork with ITS code (v_m, or 0
under code dropout), so hooks that compute per-sample gradients see one example a record and not
one example a batch. Every reduction is a sum over a record's own coordinates; the loss is a
vector [B] and depends neither on the batch size nor on other records. (Traps 2 and 6 of
docs/privacy.md.)
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from core.federation.plan import RunSpec
from core.models.film import LOG_STD_BOUND
from core.models.layout import residual_rank, train_layout


def _soft_bound(raw: Tensor) -> Tensor:
    return LOG_STD_BOUND * torch.tanh(raw / LOG_STD_BOUND)


class FilmHyperCVAE(nn.Module):
    """phi as a module; parameter names and shapes are those of ``train_layout``."""

    def __init__(self, spec: RunSpec) -> None:
        super().__init__()
        model, classes, rank = spec.plan.model, len(spec.space.classes), residual_rank(spec)
        latent, hidden = model.latent_dim, model.hidden
        self.latent_dim, self.classes, self.beta = latent, classes, model.beta
        self.trunk = nn.Linear(model.code_dim, model.trunk_width)
        self.film = nn.Linear(model.trunk_width, 2 * hidden)
        self.prior_shift = nn.Linear(model.trunk_width, classes * latent, bias=False)
        self.prior = nn.Linear(classes, 2 * latent, bias=False)
        self.decoder_hidden = nn.Linear(latent + classes, hidden)
        self.decoder_out = nn.Linear(hidden, rank)
        self.encoder_hidden = nn.Linear(rank + classes, model.encoder_hidden)
        self.encoder_out = nn.Linear(model.encoder_hidden, 2 * latent)
        expected = dict(train_layout(spec).blocks)
        actual = {name: tuple(p.shape) for name, p in self.named_parameters()}
        if actual != expected:
            raise AssertionError("the module and train_layout disagree")

    def load(self, spec: RunSpec, weights: NDArray[np.floating]) -> None:
        """Copy a flat phi [P] into the parameters."""
        parts = train_layout(spec).split(weights)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(torch.from_numpy(np.array(parts[name])))

    def forward(self, residual: Tensor, labels: Tensor, codes: Tensor, draws: Tensor) -> Tensor:
        """Loss of each record [B]: 0.5 |rho - decoded|^2 + beta KL(q || prior of its class).

        ``residual`` rho [B, r] in units of the residual scale, ``labels`` [B, C] one-hot,
        ``codes`` [B, c], ``draws`` [B, z] standard normal.
        """
        trunk = torch.tanh(self.trunk(codes))
        scale, shift = self.film(trunk).chunk(2, dim=1)
        prior = self.prior(labels)
        shifts = self.prior_shift(trunk).view(-1, self.classes, self.latent_dim)
        prior_mean = prior[:, : self.latent_dim] + (shifts * labels[:, :, None]).sum(1)
        prior_log_std = _soft_bound(prior[:, self.latent_dim :])

        seen = torch.tanh(self.encoder_hidden(torch.cat([residual, labels], dim=1)))
        mean, raw = self.encoder_out(seen).chunk(2, dim=1)
        log_std = _soft_bound(raw)
        latent = mean + log_std.exp() * draws

        hidden = torch.tanh(self.decoder_hidden(torch.cat([latent, labels], dim=1)))
        decoded = self.decoder_out(hidden * (1.0 + scale) + shift)
        reconstruction = 0.5 * (residual - decoded).square().sum(1)
        ratio = (2.0 * (log_std - prior_log_std)).exp()
        distance = ((mean - prior_mean) * (-prior_log_std).exp()).square()
        divergence = 0.5 * (ratio + distance - 1.0) + prior_log_std - log_std
        loss: Tensor = reconstruction + self.beta * divergence.sum(1)
        return loss
