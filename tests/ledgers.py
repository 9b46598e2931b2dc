"""What must hold after a run, however often its processes were killed.

Executed events are what the sites' own ledgers hold as committed: noise was drawn and the bytes
were written down before anything was sent. The coordinator's ledger must have each of them, and
whatever it has beyond them must be listed as lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg.rows import dict_row

from benchmarks.demo import federation
from core.federation.aggregate import aggregate
from core.federation.plan import RunSpec
from core.storage import ObjectStore, sha256_of
from core.wire.messages import AggregateInput, AggregateJob
from worker.client import CoordinatorClient

Attempts = dict[str, set[tuple[int, int]]]


@dataclass(frozen=True)
class Member:
    """A client of a run: its id at the coordinator, and where its site keeps its own ledger."""

    name: str
    client_id: str
    population: str
    state: Path


@dataclass(frozen=True)
class Account:
    """(round, attempt) pairs of one client in one run, at the coordinator and at the site."""

    reserved: set[tuple[int, int]]
    committed: set[tuple[int, int]]
    lost: set[tuple[int, int]]
    executed: set[tuple[int, int]]


def account_of(operator: CoordinatorClient, run_id: str, member: Member) -> Account:
    entries = [
        entry
        for entry in operator.client_ledger(member.client_id)["entries"]
        if entry["run_id"] == run_id and entry["client"] == member.name
    ]
    by_kind: Attempts = {
        kind: {(e["round"], e["attempt"]) for e in entries if e["kind"] == kind}
        for kind in ("reserve", "commit", "lost")
    }
    # A set would hide an entry that is there twice.
    assert sum(len(each) for each in by_kind.values()) == len(entries)
    own = federation.site_entries(member.state, member.population)
    executed = [
        (e.key.round_number, e.key.attempt)
        for e in own
        if e.kind == "commit" and e.key.client == member.name and e.key.run_id == run_id
    ]
    assert len(set(executed)) == len(executed)
    return Account(by_kind["reserve"], by_kind["commit"], by_kind["lost"], set(executed))


def check_account(account: Account) -> None:
    """Every reservation has an outcome; nothing executed is missing; the excess is listed lost."""
    assert account.reserved == account.committed | account.lost
    assert not account.committed & account.lost
    assert account.committed <= account.executed
    assert account.executed <= account.committed | account.lost
    assert account.reserved - account.executed <= account.lost
    # One accepted update a round, never two.
    rounds = [number for number, _ in account.committed]
    assert len(set(rounds)) == len(rounds)


def check_completed(
    operator: CoordinatorClient, run_id: str, members: list[Member], rounds: int
) -> dict[str, Account]:
    """A run that has completed with an update of every member in each of its rounds."""
    run = operator.run(run_id)
    assert run["state"] == "completed", run["why"]
    assert run["rounds_published"] == rounds
    shown = federation.rounds_of(operator, run_id)
    assert [each["number"] for each in shown] == list(range(rounds))
    assert {each["state"] for each in shown} == {"published"}
    accounts = {member.name: account_of(operator, run_id, member) for member in members}
    for account in accounts.values():
        check_account(account)
        assert sorted(number for number, _ in account.committed) == list(range(rounds))
    assert sum(len(each.committed) for each in accounts.values()) == rounds * len(members)
    return accounts


def check_failed(
    operator: CoordinatorClient, run_id: str, members: list[Member]
) -> dict[str, Account]:
    """A run that has ended without a model of its last round: what was spent is in the books."""
    rounds = federation.rounds_of(operator, run_id)
    assert rounds[-1]["state"] in ("failed", "abandoned")
    assert {each["state"] for each in rounds[:-1]} <= {"published"}
    accounts = {member.name: account_of(operator, run_id, member) for member in members}
    for account in accounts.values():
        check_account(account)
    return accounts


def check_sums(
    database_url: str, store_url: str, run_id: str, accounts: Mapping[str, Account]
) -> int:
    """Every published model is the sum of the updates that count, each of them once: made again
    from the stored updates (and, if they are masked, the transcript that opens their sum), it has
    the same bytes. And the updates that count are the commits of the ledger. Returns how many
    rounds were made again.
    """
    store = ObjectStore(store_url)
    with psycopg.connect(database_url, row_factory=dict_row) as connection:
        run = connection.execute("SELECT * FROM runs WHERE id = %s", (run_id,)).fetchone()
        assert run is not None
        spec = RunSpec.model_validate(run["spec"])
        rounds = connection.execute(
            "SELECT * FROM rounds WHERE run_id = %s ORDER BY number", (run_id,)
        ).fetchall()
        sums = connection.execute(
            "SELECT round_number, transcript FROM secure_sums WHERE run_id = %s", (run_id,)
        ).fetchall()
        updates = connection.execute(
            "SELECT u.*, c.name, w.attempt FROM updates u JOIN clients c ON c.id = u.client_id"
            " JOIN run_clients r ON r.run_id = u.run_id AND r.client_id = u.client_id"
            " JOIN work_items w ON w.id = u.work_id WHERE u.run_id = %s ORDER BY r.position",
            (run_id,),
        ).fetchall()
    transcripts = {each["round_number"]: each["transcript"] for each in sums}
    counted = {(u["name"], u["round_number"], u["attempt"]) for u in updates}
    assert counted == {(name, *key) for name, each in accounts.items() for key in each.committed}
    assert len(counted) == len(updates)
    before: Mapping[str, object] = {}
    made = 0
    for round_ in rounds:
        if round_["state"] != "published":
            continue
        job = AggregateJob(
            job_id=run_id,
            lease_token="none",
            lease_s=1.0,
            run_id=run_id,
            round_number=round_["number"],
            kind=spec.kind(round_["number"]),
            spec=spec,
            updates=tuple(
                AggregateInput(client_id=str(u["client_id"]), client=u["name"], digest=u["digest"])
                for u in updates
                if u["round_number"] == round_["number"]
            ),
            frame=before.get("frame_digest"),
            weights=before.get("weights_digest"),
            optimiser=before.get("optimiser_digest"),
            transcript=transcripts.get(round_["number"]),
        )
        model = aggregate(job, store.get)
        assert sha256_of(model.frame) == round_["frame_digest"]
        assert sha256_of(model.weights) == round_["weights_digest"]
        assert sha256_of(model.optimiser) == round_["optimiser_digest"]
        before, made = round_, made + 1
    return made


def lost_of(accounts: Mapping[str, Account]) -> int:
    """Reservations that were spent for nothing."""
    return sum(len(each.lost) for each in accounts.values())
