"""The agent's loop: ask for work, do it, ask again; outbound HTTP only.

It serves the one client whose token it holds, and holds that client's lock while it lives. When
the coordinator is away it reconnects for ever. The first SIGTERM or SIGINT lets the work in hand
finish (an idle agent stops at once); a second one gives the work back and stops.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from core.training.compute import AUTO, Compute
from core.wire.messages import PlanOffer
from core.wire.secure import SumStep
from worker import logs
from worker.agent import sums
from worker.agent.consent import consider
from worker.agent.identity import configured
from worker.agent.reconcile import reconcile
from worker.agent.site import Site
from worker.agent.sum_identity import register_softly
from worker.client import CoordinatorClient
from worker.config import ClientConfig, SiteConfig
from worker.delivery import Workplace, give_back
from worker.errors import (
    ApiProblem,
    ClientError,
    OrderUnreadable,
    SiteStateError,
    Unreachable,
)
from worker.execution import Outcome, make_ready, perform, recover

_log = logs.get("worker.agent")

POLL_S = 25.0
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_DATA_PAUSE_S = 15.0
_MOST_SEEN = 50


class AgentStopped(KeyboardInterrupt):
    """Raised in the main thread by a signal: where there is nothing to finish, or the second."""


class Stopper:
    """Turns signals into a clean end."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self._idle = False

    @contextmanager
    def idle(self) -> Iterator[None]:
        """While idle, a signal interrupts at once instead of waiting for work to finish."""
        if self.event.is_set():
            raise AgentStopped
        self._idle = True
        try:
            yield
        finally:
            self._idle = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle SIGTERM and SIGINT; only the main thread may do that, others just run."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        again = self.event.is_set()
        self.event.set()
        if self._idle or again:
            self._idle = False  # raise once: what follows is the way out
            raise AgentStopped(signal.Signals(number).name)


_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def run_agent(
    coordinator: CoordinatorClient,
    site_config: SiteConfig,
    *,
    compute: Compute = AUTO,
    poll_s: float = POLL_S,
    stopper: Stopper | None = None,
    renew: Callable[[], None] | None = None,
) -> None:
    """Serve until a signal. Raises ``ConfigError``, ``SiteStateError``, or ``ApiProblem`` when
    the coordinator refuses the token (401, 403) or speaks no version that is spoken here.
    ``renew`` is called between orders; it replaces the token in time."""
    stopper = stopper or Stopper()
    with stopper.listening(), Site.open(site_config.state_dir) as site:
        try:
            make_ready(compute)
            client_id, config = _identified(coordinator, site_config, site, stopper)
            with site.lock(config.name):
                _log.info("agent_started", client=config.name, coordinator=coordinator.base_url)
                place = Workplace(site, coordinator, compute=compute, stop=stopper.event)
                _completed(client_id, config, place, site_config, stopper)
                recover(config, place)
                _serve(client_id, config, place, stopper, poll_s, renew)
        except AgentStopped:
            pass
        _log.info("agent_stopped")


def _identified(
    coordinator: CoordinatorClient, site_config: SiteConfig, site: Site, stopper: Stopper
) -> tuple[str, ClientConfig]:
    pauses = _pauses()
    while True:
        try:
            with stopper.idle():
                me = coordinator.client("me")
                config = configured(me, site_config)
                register_softly(coordinator, me, site)
            return str(me["id"]), config
        except ClientError as error:
            _after(error, next(pauses), stopper)


def _completed(
    client_id: str,
    config: ClientConfig,
    place: Workplace,
    site_config: SiteConfig,
    stopper: Stopper,
) -> None:
    """A restored ledger is completed before anything else; until it can be, nothing is done.
    Raises ``NotReconciled`` if the coordinator's ledger cannot complete it."""
    pauses = _pauses()
    while True:
        try:
            with stopper.idle():
                reconcile(place.site, place.coordinator, client_id, config, site_config)
        except ClientError as error:
            _after(error, next(pauses), stopper)
        else:
            return


def _serve(
    client_id: str,
    config: ClientConfig,
    place: Workplace,
    stopper: Stopper,
    poll_s: float,
    renew: Callable[[], None] | None,
) -> None:
    pauses = _pauses()
    seen: list[str] = []  # plans that were put before us in this life; the newest ones
    while not stopper.event.is_set():
        if renew is not None:
            renew()
        try:
            place.site.ledger.sums.wipe_daily()
            if not os.access(config.data, os.R_OK):
                # Asking for work would cost epsilon for nothing: a reservation is never refunded.
                _log.error("data_not_there", client=config.name, path=str(config.data))
                _pause(_DATA_PAUSE_S, stopper)
                continue
            with stopper.idle():
                order = place.coordinator.next_work(client_id, wait_s=poll_s, seen=seen)
            if isinstance(order, PlanOffer):
                if order.plan_id in seen:  # it should have been kept from us: no hurry
                    _pause(next(pauses), stopper)
                _consider(order, config, place)
                seen = [*seen, order.plan_id][-_MOST_SEEN:]
                continue
        except SiteStateError as error:  # a plan could not be looked at, or a decision not kept
            _mended(config, place, error, pauses, stopper)
            continue
        except OrderUnreadable as error:
            _log.error("plan_refused", client=config.name, problems=error.problems)
            if error.work_id and error.lease_token:
                give_back(error.work_id, error.lease_token, "plan-refused", place.coordinator)
            _pause(next(pauses), stopper)
            continue
        except ClientError as error:
            _after(error, next(pauses), stopper)
            continue
        if order is None:
            pauses = _pauses()
            continue
        if isinstance(order, SumStep):
            pauses = _stepped(order, config, place, pauses, stopper)
            continue
        _log.info(
            "work_received", client=config.name, run_id=order.run_id,
            round_number=order.round_number, attempt=order.attempt, kind=order.kind,
        )  # fmt: skip
        try:
            outcome = perform(order, config, place)
        except SiteStateError as error:
            _mended(config, place, error, pauses, stopper)
            continue
        _log.info("work_ended", client=config.name, work_id=order.work_id, outcome=str(outcome))
        if outcome in (Outcome.ACCEPTED, Outcome.PENDING):
            pauses = _pauses()
        else:
            _pause(next(pauses), stopper)


def _stepped(
    step: SumStep,
    config: ClientConfig,
    place: Workplace,
    pauses: Iterator[float],
    stopper: Stopper,
) -> Iterator[float]:
    """Answer a step of a secure sum; the pauses from now on. What went wrong is offered again."""
    try:
        if sums.answer(step, config, place):
            return _pauses()
    except SiteStateError as error:
        _mended(config, place, error, pauses, stopper)
    except ClientError as error:
        _after(error, next(pauses), stopper)
    else:
        _pause(next(pauses), stopper)
    return pauses


def _mended(
    config: ClientConfig,
    place: Workplace,
    error: SiteStateError,
    pauses: Iterator[float],
    stopper: Stopper,
) -> None:
    """Wait until the site's ledger can be written again, then settle what was left half-way.

    A full disk is freed some day, and nobody may be there to start the agent again then. Until
    it is, no work is asked for: a reservation at the coordinator is never refunded.
    """
    while True:
        _log.error(
            "site_not_usable", client=config.name, code=error.code, reason=error.message,
            mend=error.mend,
        )  # fmt: skip
        _pause(min(next(pauses), _DATA_PAUSE_S), stopper)
        try:
            place.site.ledger.probe()
            recover(config, place)
        except SiteStateError as again:
            error = again
        else:
            return


def _consider(plan: PlanOffer, config: ClientConfig, place: Workplace) -> None:
    if plan.client != config.name:
        _log.error("plan_of_another_client", client=config.name, named=plan.client)
        return
    consider(plan, config, place.site.ledger, place.coordinator)


def _after(error: ClientError, pause: float, stopper: Stopper) -> None:
    """Wait after a failed call. What a person must mend ends the agent (a refused token, versions
    that do not meet), nothing else does.
    """
    if isinstance(error, ApiProblem) and error.needs_person:
        raise error
    asked = error.retry_after_s if isinstance(error, Unreachable) else None
    seconds = pause if asked is None else max(asked, pause)
    _log.warning(
        "coordinator_away", code=error.code, reason=error.message, retry_in_s=round(seconds, 1)
    )
    _pause(seconds, stopper)


def _pause(seconds: float, stopper: Stopper) -> None:
    with stopper.idle():
        stopper.event.wait(seconds)


def _pauses() -> Iterator[float]:
    """Exponential back-off with jitter, for ever."""
    pause = _FIRST_PAUSE_S
    while True:
        yield pause * random.uniform(0.75, 1.25)  # noqa: S311 (spreads reconnects)
        pause = min(2 * pause, _LONGEST_PAUSE_S)
