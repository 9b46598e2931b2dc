"""Who is whose neighbour in a roster, and where whose shares lie: the same on all sides."""

from __future__ import annotations

from collections.abc import Sequence

from core.secagg.graph import neighbours_of, ring
from core.secagg.messages import Advert, Session


class Neighbourhood:
    """Of one roster, worked out once. Raises ``NoThresholds`` where so few sites allow no sum."""

    def __init__(self, session: Session, roster: Sequence[Advert]) -> None:
        self.roster = roster
        self.adverts = {advert.site: advert for advert in roster}
        self._names = sorted(advert.site for advert in roster)
        self._order = ring([bytes.fromhex(advert.masking_key) for advert in roster])
        self.thresholds = session.thresholds(len(self._names))

    def of(self, site: str) -> list[str]:
        """With whom ``site`` shares secrets and masks."""
        at = self._names.index(site)
        found = neighbours_of(at, self._order, self.thresholds.neighbours)
        return [self._names[place] for place in found]

    @property
    def points(self) -> dict[str, int]:
        """Where each site's share of a secret lies; the secret lies at 0."""
        return {name: at for at, name in enumerate(self._names, start=1)}
