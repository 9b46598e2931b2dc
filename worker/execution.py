"""One work order from judgement to receipt: the same code in the site agent and in Celery.

The order of steps is the privacy argument (each is durable before the next begins):

1. ``judge``: the site's policy and, where it asks a person, that person's word, both from its own
   ledger. Refused orders touch no data.
2. ``reserve``: the attempt is charged. From here on it counts, whatever happens.
3. load the records, check that they are the run's, compute, draw noise (once).
4. ``commit``: the event, the noised bytes and what the client keeps are written together.
5. ``PUT`` of the stored bytes, repeated as they are until the coordinator has answered. Once it has
   accepted them, and not before, what was kept is where the client's next training round begins.

A process that dies between 2 and 4 leaves a reservation, which becomes ``lost`` at the next
start: it is never executed again, because it is unknown whether noise was drawn. One that dies
between 4 and the answer resends the same bytes. The coordinator learns two codes and nothing
else; why a site is not ready stays in the site's own log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING

from core.errors import DataError, DomainError, PlanRefused
from core.training.compute import Compute, resolve_device
from core.wire.messages import WorkOrder
from worker import logs
from worker.agent.policy import judge
from worker.agent.records import Attempt, AttemptKey, Entry, StoredUpdate
from worker.agent.sums import ready_to_mask
from worker.config import ClientConfig
from worker.delivery import Workplace, deliver, give_back
from worker.errors import AttemptKnown, ClientError, SiteStateError, WorkerError
from worker.lease import Renewed

if TYPE_CHECKING:
    from core.data import EmbeddingDataset
    from core.secagg.messages import Session
    from core.secagg.participant import State
    from core.training.local import Released

_log = logs.get("worker.execution")


class Outcome(StrEnum):
    """How an order ended here."""

    ACCEPTED = "accepted"
    REFUSED = "refused"  # the coordinator will never take this update
    PENDING = "pending"  # committed and stored, not yet delivered
    PLAN_REFUSED = "plan-refused"
    GIVEN_BACK = "given-back"


class _LeaseGone(WorkerError):
    """The lease ended before noise was drawn: stop without a release."""

    code = "lease-gone"


def make_ready(compute: Compute) -> None:
    """Import what rounds need before asking for work: torch takes seconds, and on a machine with
    several sites many of them, in which a lease would run and the other sites wait.
    """
    from core.privacy import noise  # noqa: F401
    from core.training import local  # noqa: F401

    if compute.engine == "opacus":
        from core.training import reference  # noqa: F401
    else:
        from core.training import fast  # noqa: F401


def perform(order: WorkOrder, config: ClientConfig, place: Workplace) -> Outcome:
    """Execute an order for ``config``, or resume it. The caller holds ``site.lock(client)``.

    Raises ``ApiProblem`` if the token was refused while an update was delivered, and
    ``SiteStateError`` if the ledger cannot be written.
    """
    key = AttemptKey.of(order)
    log = _log.bind(**key._asdict(), work_id=order.work_id)
    known = place.site.ledger.attempt(key) if order.client == config.name else None
    if known is not None:
        return _resume(order, known, place)
    try:
        _judge(order, config, place, place.site.ledger.entries(config.population))
        _same_layout(order)
        if order.sum is not None:
            ready_to_mask(order, config, place.site)
    except PlanRefused as refusal:
        return _refuse(order, refusal, place)
    log.info("order_judged", verdict="allowed")
    renew = partial(place.coordinator.renew_work, order.work_id, order.lease_token)
    with Renewed(renew, order.lease_s) as lease:
        try:
            inputs: dict[str, bytes] = {
                ref.role: place.coordinator.download(ref.digest, size=ref.size)
                for ref in order.inputs
            }
        except ClientError as error:
            log.warning("inputs_unavailable", code=error.code)
            return _give_back(order, place)
        try:
            place.site.ledger.reserve(order, config, partial(_judge, order, config, place))
        except PlanRefused as refusal:
            return _refuse(order, refusal, place)
        except AttemptKnown:
            return _give_back(order, place)
        except SiteStateError:
            _give_back(order, place)
            raise
        log.info("attempt_reserved")
        update = _execute(order, config, inputs, place, lease)
        if update is None:
            return _give_back(order, place)
        return Outcome(deliver(update, order.lease_token, place))


def _judge(
    order: WorkOrder, config: ClientConfig, place: Workplace, entries: Sequence[Entry]
) -> None:
    """By the limits, the account, and what this site has said here to this run."""
    word = place.site.ledger.word(order.run_id, config.name, consent=config.consent)
    judge(order, config, entries, word)


def recover(config: ClientConfig, place: Workplace) -> None:
    """After a start: give back what died half-way, resend what was never answered.

    The caller holds ``site.lock(client)``, so nobody can still be working on these. Raises
    ``NotReconciled`` for a restored ledger that was not completed: it does not know what is over.
    """
    place.site.ledger.require_reconciled(config.population)
    place.site.ledger.sums.wipe_old()
    for attempt in place.site.ledger.unfinished(config.name):
        place.site.ledger.lose(attempt.key)
        _log.warning("attempt_lost", **attempt.key._asdict(), reason="the process had died")
        give_back(attempt.work_id, attempt.lease_token, "site-not-ready", place.coordinator)
    for update in place.site.ledger.undelivered(config.name):
        _log.info("update_resent", **update.key._asdict(), update_id=update.update_id)
        deliver(update, update.lease_token, place)


def _resume(order: WorkOrder, known: Attempt, place: Workplace) -> Outcome:
    """An attempt that is in the ledger is never executed again."""
    update = place.site.ledger.update_of(known.key)
    if update is not None and update.body is not None:
        renew = partial(place.coordinator.renew_work, order.work_id, order.lease_token)
        with Renewed(renew, order.lease_s):
            return Outcome(deliver(update, order.lease_token, place))
    if known.state == "reserved":
        place.site.ledger.lose(known.key)
        _log.warning("attempt_lost", **known.key._asdict(), reason="it had begun before")
    return _give_back(order, place)


def _execute(
    order: WorkOrder,
    config: ClientConfig,
    inputs: dict[str, bytes],
    place: Workplace,
    lease: Renewed,
) -> StoredUpdate | None:
    """Compute and commit; None if the attempt was lost instead."""
    key = AttemptKey.of(order)
    try:
        if order.sum is None:
            released = _noised(order, config, inputs, place, lease)
            update = place.site.ledger.commit(key, released.update, released.kept)
        else:
            body, masked = _masked(order, config, inputs, place, lease)
            update = place.site.ledger.commit(key, body, masked=masked)
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        known = place.site.ledger.attempt(key)
        if known is not None and known.state == "committed":
            raise  # interrupted between the commit and its answer: resent at the next start
        try:
            place.site.ledger.lose(key)
        except SiteStateError:  # booked as lost once the ledger can be written again
            _give_back(order, place)
            raise
        _explain(key, error)
        if not isinstance(error, Exception):
            give_back(order.work_id, order.lease_token, "site-not-ready", place.coordinator)
            raise
        return None
    _log.info("attempt_committed", **key._asdict(), update_id=update.update_id, bytes=update.size)
    return update


def _noised(
    order: WorkOrder,
    config: ClientConfig,
    inputs: dict[str, bytes],
    place: Workplace,
    lease: Renewed,
) -> Released:
    """Open the records, check them against the run, train, add noise."""
    from core.privacy.noise import csprng
    from core.training.local import execute

    dataset = _records(order, config, place, lease)
    return execute(
        order,
        dataset,
        inputs,
        secret=place.site.key(f"coins/{config.name}"),
        noise=csprng(),
        compute=_compute(order, place),
        kept=place.site.ledger.kept(AttemptKey.of(order)),
    )


def _masked(
    order: WorkOrder,
    config: ClientConfig,
    inputs: dict[str, bytes],
    place: Workplace,
    lease: Renewed,
) -> tuple[bytes, tuple[Session, State]]:
    """The same for a secure sum: the vector under its masks, and the state that says so."""
    from core.privacy.discrete.gaussian import csprng
    from core.training.secure import contribution

    if order.sum is None:
        raise RuntimeError("the order has no secure sum")
    me = ready_to_mask(order, config, place.site)
    vector = contribution(
        order,
        _records(order, config, place, lease),
        inputs,
        secret=place.site.key(f"coins/{config.name}"),
        bits=csprng(),
        compute=_compute(order, place),
    )
    body = me.mask(order.sum.inbox, order.sum.sharers, vector)
    return body, (order.sum.session, me.state)


def _compute(order: WorkOrder, place: Workplace) -> Compute:
    if order.kind != "train":
        return place.compute
    return replace(place.compute, device=resolve_device(place.compute.device))


def _records(
    order: WorkOrder, config: ClientConfig, place: Workplace, lease: Renewed
) -> EmbeddingDataset:
    """The client's records, if they are those with which it joined the run."""
    from core import data

    key = AttemptKey.of(order)
    dataset = data.load(config.data, order.spec.space, unit=config.unit, for_round=True)
    if ignored := len(dataset.invalid_rows):
        # Counted here and nowhere else: the update says nothing about them.
        _log.warning(
            "records_ignored", **key._asdict(), records=ignored,
            mend="Run 'fedhypevae agent check' at the site: it names them.",
        )  # fmt: skip
    fingerprint = dataset.fingerprint(place.site.key(f"records/{config.population}"))
    place.site.ledger.bind(order.run_id, config.name, fingerprint)
    if lease.lost:
        raise _LeaseGone("the lease ended before the work began")
    return dataset


def _same_layout(order: WorkOrder) -> None:
    """Refuse before spending if site and coordinator would lay out the update differently."""
    from core.federation.updates import expectation

    expected = expectation(order.spec, order.round_number)
    if order.update_layout != expected.layout:
        raise PlanRefused(
            "this software lays the update out differently from the coordinator's",
            field="update_layout",
            mend="Run the same version at the site and at the coordinator.",
        )


def _explain(key: AttemptKey, error: BaseException) -> None:
    """To the site's own log; an unforeseen error without its text, which may quote a record."""
    facts = key._asdict()
    if isinstance(error, DataError):
        _log.error(
            "data_unusable", **facts, code=error.code, field=error.field,
            mend="Run 'fedhypevae agent check' at the site: it prints every problem.",
        )  # fmt: skip
    elif isinstance(error, SiteStateError | _LeaseGone):
        _log.error("attempt_lost", **facts, code=error.code, reason=error.message, mend=error.mend)
    elif isinstance(error, DomainError):
        _log.error("attempt_lost", **facts, code=error.code, field=error.field)
    else:
        _log.error("attempt_lost", **facts, **logs.place_of(error))


def _refuse(order: WorkOrder, refusal: PlanRefused, place: Workplace) -> Outcome:
    _log.error(
        "plan_refused", **AttemptKey.of(order)._asdict(), work_id=order.work_id,
        field=refusal.field, reason=refusal.message, mend=refusal.mend,
    )  # fmt: skip
    give_back(order.work_id, order.lease_token, "plan-refused", place.coordinator)
    return Outcome.PLAN_REFUSED


def _give_back(order: WorkOrder, place: Workplace) -> Outcome:
    give_back(order.work_id, order.lease_token, "site-not-ready", place.coordinator)
    return Outcome.GIVEN_BACK
