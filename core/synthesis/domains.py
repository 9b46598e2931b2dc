"""Labels that mixtures may name in place of their clients, and clients that they must not name."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from core.errors import ClientWithdrawn
from core.synthesis.request import Mixture, SynthesisRequest


def resolved(
    request: SynthesisRequest, domains: Mapping[str, Sequence[str]], withdrawn: Collection[str]
) -> SynthesisRequest:
    """With clients in place of domains (label -> clients); those that have withdrawn are in none.
    Raises ``ClientWithdrawn``.
    """
    left = {
        label: [name for name in names if name not in withdrawn] for label, names in domains.items()
    }
    for label in () if isinstance(request.mixture, str) else request.mixture:
        if left.get(label) == []:
            raise ClientWithdrawn(
                f"all clients of the domain {label!r} have withdrawn", field=f"mixture.{label}"
            )
    found = request.with_clients(left)
    must_allow(found.mixture, withdrawn)
    return found


def must_allow(mixture: Mixture, withdrawn: Collection[str]) -> None:
    """Raises ``ClientWithdrawn`` for a mixture that names such a client, even with 0."""
    if isinstance(mixture, str):
        return
    for name in mixture:
        if name in withdrawn:
            raise ClientWithdrawn(
                f"client {name!r} has withdrawn: there are no more rows under its code.",
                field=f"mixture.{name}",
                mend="Leave it out of the mixture, or ask for 'neutral'.",
            )
