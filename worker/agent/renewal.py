"""Replacing this site's token in time, while the agent works."""

from __future__ import annotations

import time
from collections.abc import Callable

from core.wire.credentials import is_token, new_token, scope_of
from worker import logs
from worker.answers import JsonObject
from worker.client import CoordinatorClient
from worker.credentials import TokenFile
from worker.errors import ApiProblem, ClientError, ConfigError

_log = logs.get("worker.agent.renewal")

PURPOSE = "rotating"
OVERLAP_S = 3_600.0
LOOK_S = 3_600.0
_LEFT = 1 / 3  # of a token's life: a site that is away for long comes back in time
_REFUSED = 401


def rotate(
    coordinator: CoordinatorClient,
    keep: TokenFile,
    with_token: Callable[[str], CoordinatorClient],
    *,
    overlap_s: float = OVERLAP_S,
) -> JsonObject:
    """Replace the token in ``keep``; ``with_token`` gives the coordinator by another token.

    Killed at any moment, it goes on when it is called again: the new token is kept before it is
    sent, and the old one is overwritten once the new one is accepted. Raises ``ClientError``,
    ``ConfigError``.
    """
    with keep.changing():
        scope = scope_of(keep()) or "client"
        token = keep.next(PURPOSE)
        if token is None or not is_token(token, scope):
            token = keep.put_aside(PURPOSE, new_token(scope))
        try:
            found = coordinator.rotate_own_token(token, overlap_s)
        except ApiProblem as problem:
            if problem.status != _REFUSED:
                raise
            # An earlier call was killed before it could note that the new one was accepted, and
            # the old one has ended since.
            try:
                with with_token(token) as other:
                    found = other.own_token()
            except ApiProblem:
                raise problem from None
        keep.accept(PURPOSE)
    return found


class Renewal:
    """Looks now and then how long the token lives, and replaces it in time."""

    def __init__(
        self,
        coordinator: CoordinatorClient,
        keep: TokenFile,
        with_token: Callable[[str], CoordinatorClient],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._coordinator, self._keep, self._with_token = coordinator, keep, with_token
        self._clock = clock
        self._look_at = clock()

    def __call__(self) -> None:
        """What fails is tried again an hour later: two thirds of a life are left for that."""
        if self._clock() < self._look_at:
            return
        self._look_at = self._clock() + LOOK_S
        try:
            mine = self._coordinator.own_token()
            left, life = mine.get("expires_in_s"), mine.get("lifetime_s")
            if not mine.get("renewable") or left is None or life is None or left > life * _LEFT:
                return
            new = rotate(self._coordinator, self._keep, self._with_token)
        except (ClientError, ConfigError) as error:
            _log.warning("token_not_renewed", code=error.code, reason=error.message)
        else:
            _log.info("token_renewed", expires_at=new.get("expires_at"))
