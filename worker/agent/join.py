"""``fedhypevae agent join``: a client of this site comes to a completed run by one sketch.

It asks for the join (where the plan is open) or finds the invitation, executes exactly that order
under the site's own policy and ledger, and waits until the coordinator has published it. Nothing
is spent before the order: the records are read first, and a site that cannot use them asks for
nothing. Stopped at any point, the same command goes on: what was committed is resent, never made
again.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass

from core import data
from core.errors import DataError, PlanRefused
from core.federation.plan import EmbeddingSpace, digest_of
from core.training.compute import AUTO, Compute
from core.wire.messages import WorkOrder
from worker.agent.identity import configured
from worker.agent.join_word import Say, approve, before_asking, forbidden
from worker.agent.joined import Joined, joined
from worker.agent.policy import judge
from worker.agent.reconcile import reconcile
from worker.agent.site import Site
from worker.answers import JsonObject
from worker.client import CoordinatorClient
from worker.config import ClientConfig, SiteConfig
from worker.delivery import Workplace, give_back
from worker.errors import (
    ApiProblem,
    ClientBusy,
    ClientError,
    ConfigError,
    JoinFailed,
    OrderUnreadable,
)
from worker.execution import Outcome, perform, recover

_POLL_S = 5.0
_PAUSE_S = 0.5
_ENDED = {
    "published": "is published",
    "failed": "has failed",
    "abandoned": "was abandoned",
}


def join_run(
    coordinator: CoordinatorClient,
    site_config: SiteConfig,
    run_id: str,
    client: str,
    *,
    compute: Compute = AUTO,
    timeout_s: float = 600.0,
    say: Say = lambda _: None,
) -> Joined:
    """Join and wait until it is published. Raises a ``WorkerError`` that says what to mend."""
    until = time.monotonic() + timeout_s
    config = site_config.require(client)
    me = coordinator.client("me")
    if configured(me, site_config).name != config.name:
        raise ConfigError(
            f"the token is that of client {me['name']!r}, not of {client!r}.",
            field="token",
            mend=f"Set FHV_TOKEN to the token of {client!r}.",
        )
    join = _newest(coordinator, run_id)
    if join is None or join["state"] != "published":
        _check_records(coordinator, str(me["space"]), config)
    if join is None or join["state"] in ("failed", "abandoned", "dropped"):
        before_asking(coordinator, site_config, config, run_id)
        join = coordinator.join(run_id, [config.name])
        say(f"{client}: asked to join run {run_id}")
    if join["state"] == "queued":
        join = _placed(coordinator, run_id, until, say)
    if join["state"] != "published":
        say(f"{client}: round {join['round']} of run {run_id} is for it")
    with Site.open(site_config.state_dir) as site:
        attempt = _Attempt(coordinator, str(me["id"]), config, run_id, int(join["round"]), say)
        with ExitStack() as held:
            place = None
            if join["state"] != "published":
                place = _workplace(held, site, coordinator, config, compute, until, say)
                if place is not None:
                    reconcile(site, coordinator, str(me["id"]), config, site_config)
                    recover(config, place)
                approve(coordinator, site, config, run_id, attempt.number, say)
            attempt.follow(place, until)
        return joined(coordinator, site, config, run_id, attempt.number)


def _newest(coordinator: CoordinatorClient, run_id: str) -> JsonObject | None:
    """This client's newest join of the run; None if it has none (or may not see the run)."""
    newest: JsonObject | None = None
    query: dict[str, str | int] = {}
    while True:
        try:
            page = coordinator.joins(run_id, **query)
        except ApiProblem as problem:
            if problem.status == 404:
                return None
            raise
        if page["items"]:
            newest = page["items"][-1]
        if page["next"] is None:
            return newest
        query["after"] = int(page["next"])


def _placed(coordinator: CoordinatorClient, run_id: str, until: float, say: Say) -> JsonObject:
    """The join once its round has begun: the run goes on, and joins follow it."""
    told = ""
    while True:
        try:
            join = _newest(coordinator, run_id)
        except ApiProblem:
            raise
        except ClientError as error:
            join = {"state": "queued", "why": f"the coordinator is away ({error.code})"}
        if join is None:
            raise JoinFailed(f"the request to join run {run_id} is gone.", mend="Ask again.")
        if join["state"] == "dropped":
            raise JoinFailed(
                f"the join was dropped: {join['why']}.",
                mend="When the reason is gone, run the same command again, or join another run.",
            )
        if join["state"] != "queued":
            return join
        if join["why"] != told:
            told = str(join["why"])
            say(f"queued: {told}")
        if time.monotonic() >= until:
            raise JoinFailed(
                "the run was not completed within the given time; the request stays queued.",
                mend="Run the same command again later.",
            )
        time.sleep(_PAUSE_S)


def _check_records(coordinator: CoordinatorClient, space: str, config: ClientConfig) -> None:
    """Before anything is asked for, hence before anything is reserved anywhere."""
    raw = coordinator.space(space)
    contract = EmbeddingSpace.model_validate(
        {key: raw[key] for key in EmbeddingSpace.model_fields if key in raw}
    )
    if config.space_digest is not None and digest_of(contract) != config.space_digest:
        raise JoinFailed(
            f"{config.name!r} is enrolled in space {contract.name!r}, which is not the pinned one.",
            field="client.space_digest",
            mend="Pin the digest that the coordinator shows for it, or enrol in another space.",
        )
    try:
        data.load(config.data, contract, unit=config.unit, for_round=True)
    except DataError as error:
        raise JoinFailed(
            f"{error} Nothing was asked for or spent.",
            field=error.field,
            mend="Run 'fedhypevae agent check'.",
        ) from None


def _workplace(
    held: ExitStack,
    site: Site,
    coordinator: CoordinatorClient,
    config: ClientConfig,
    compute: Compute,
    until: float,
    say: Say,
) -> Workplace | None:
    """Where to work while we hold the client's lock; None if a running agent holds it."""
    try:
        held.enter_context(site.lock(config.name))
    except ClientBusy:
        say(f"{config.name}: an agent of this site is running and does the work")
        return None
    patience = max(0.0, until - time.monotonic())
    return Workplace(site, coordinator, compute=compute, patience_s=patience)


@dataclass
class _Attempt:
    """One join, followed to its end."""

    coordinator: CoordinatorClient
    client_id: str
    config: ClientConfig
    run_id: str
    number: int
    say: Say
    told: str = ""
    sent: bool = False

    def follow(self, place: Workplace | None, until: float) -> None:
        """Until the round is published. Raises ``JoinFailed`` if it ends otherwise or too late."""
        while True:
            try:
                join = self._look()
                if join["state"] in _ENDED:
                    return self._ended(join)
                left = until - time.monotonic()
                if left <= 0:
                    raise self._too_late(str(join["state"]))
                order = None
                if place is not None and not self.sent:
                    order = self.coordinator.next_work(
                        self.client_id, wait_s=min(_POLL_S, left), run_id=self.run_id
                    )
                if isinstance(order, WorkOrder) and place is not None:
                    self._execute(order, place)
                    continue
            except OrderUnreadable as error:
                if error.work_id and error.lease_token:
                    give_back(error.work_id, error.lease_token, "plan-refused", self.coordinator)
                raise
            except ApiProblem:
                raise
            except ClientError as error:
                self._tell(f"the coordinator is away ({error.code}); trying again")
                if time.monotonic() >= until:
                    raise self._too_late("not known: the coordinator is away") from error
            time.sleep(_PAUSE_S)

    def _look(self) -> JsonObject:
        page = self.coordinator.joins(self.run_id, after=self.number - 1, limit=1)
        if not page["items"]:
            raise JoinFailed(f"round {self.number} of run {self.run_id} is gone.")
        join: JsonObject = page["items"][0]
        self._tell(f"round {self.number} is {join['state']}" + _because(join))
        return join

    def _tell(self, line: str) -> None:
        if line != self.told:
            self.told = line
            self.say(f"{self.config.name}: {line}")

    def _execute(self, order: WorkOrder, place: Workplace) -> None:
        if (order.kind, order.round_number) != ("join", self.number):
            give_back(order.work_id, order.lease_token, "plan-refused", self.coordinator)
            raise JoinFailed(
                f"the coordinator sent a {order.kind} order of round {order.round_number} instead "
                f"of the join of round {self.number}; it was given back, nothing was spent.",
                mend="Tell the coordinator's administrator.",
            )
        outcome = perform(order, self.config, place)
        if outcome is Outcome.PLAN_REFUSED:
            raise self._refusal(order, place)
        if outcome is Outcome.GIVEN_BACK:
            raise JoinFailed(
                "the attempt ended without an update and stays charged in the ledger.",
                mend="The log above says why. Run 'fedhypevae agent check', then join again.",
            )
        if outcome is Outcome.REFUSED:
            raise JoinFailed(
                "the coordinator refused the update; the attempt stays charged.",
                mend="The log above says why.",
            )
        self.sent = outcome is Outcome.ACCEPTED
        self._tell("the sketch is sent" if self.sent else "the sketch is stored, not yet sent")

    def _refusal(self, order: WorkOrder, place: Workplace) -> JoinFailed:
        """The policy's own words: a refused order has changed nothing, so it says them again."""
        ledger = place.site.ledger
        said = ledger.word(order.run_id, self.config.name, consent=self.config.consent)
        try:
            judge(order, self.config, ledger.entries(self.config.population), said)
        except PlanRefused as refusal:
            return forbidden(refusal)
        return JoinFailed(
            "this site refused the order; nothing was spent.",
            mend="Run the same version at the site and at the coordinator.",
        )

    def _ended(self, join: JsonObject) -> None:
        if join["state"] != "published":
            raise JoinFailed(
                f"the join {_ENDED[join['state']]}{_because(join)}.",
                mend="When the reason is gone, run the same command again; where the sketch was "
                "sent, join another run: this one is joined once.",
            )

    def _too_late(self, state: str) -> JoinFailed:
        return JoinFailed(
            f"the join is not published within the given time; round {self.number} is {state}.",
            mend="Run the same command again: it goes on where it stood, and spends nothing twice.",
        )


def _because(join: JsonObject) -> str:
    own = next((member["why"] for member in join["members"] if member["why"]), "")
    why = join["why"] or own
    return f": {why}" if why else ""
