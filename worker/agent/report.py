"""The site's ledger for a person or a program: epsilon from the events, then the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from core.privacy import accounting
from core.privacy.premise import resting
from worker.agent.records import Entry
from worker.agent.site import Site
from worker.agent.verify import Comparison, Finding
from worker.config import ClientConfig


def accounts(site: Site, clients: Sequence[ClientConfig]) -> list[dict[str, Any]]:
    """One account for each population of these clients; plain values only."""
    found: dict[str, dict[str, Any]] = {}
    for client in clients:
        if client.population in found:
            found[client.population]["clients"].append(client.name)
            continue
        entries = site.ledger.entries(client.population)
        outcome = {entry.key: entry.kind for entry in entries if entry.kind != "reserve"}
        reserved = [entry for entry in entries if entry.kind == "reserve"]
        by_state = {
            state: [e for e in reserved if outcome.get(e.key, "open") == state]
            for state in ("commit", "lost", "open")
        }

        def epsilon(rows: Sequence[Entry], delta: float = client.delta) -> float:
            return accounting.epsilon([row.event for row in rows], delta)

        found[client.population] = {
            "population": client.population,
            "unit": client.unit,
            "clients": [client.name],
            "delta": client.delta,
            "max_epsilon": client.max_epsilon,
            "epsilon_committed": epsilon(by_state["commit"]),
            "epsilon_total": epsilon(reserved),
            "attempts": {state: len(rows) for state, rows in by_state.items()},
            "entries": [_plain(entry) for entry in entries],
        }
    return list(found.values())


def _plain(entry: Entry) -> dict[str, Any]:
    return {
        "seq": entry.seq,
        "kind": entry.kind,
        "at": entry.at,
        "run_id": entry.key.run_id,
        "round": entry.key.round_number,
        "attempt": entry.key.attempt,
        "client": entry.key.client,
        "unit": entry.unit,
        "event": entry.event.model_dump(mode="json"),
        "spec_digest": entry.spec_digest,
    }


def print_tables(found: Sequence[dict[str, Any]]) -> None:
    """A table for each account, its summary first."""
    console = Console(soft_wrap=True)
    for account in found:
        states = account["attempts"]
        console.print(
            f"account {account['population']} (unit {account['unit']}), "
            f"clients {', '.join(account['clients'])}: "
            f"epsilon {account['epsilon_total']:.4f} of {account['max_epsilon']:g} "
            f"at delta {account['delta']:g} (executed {account['epsilon_committed']:.4f}); "
            f"{states['commit']} committed, {states['lost']} lost, {states['open']} open"
            + resting(entry["event"].get("collude") for entry in account["entries"]),
            markup=False,
            highlight=False,
        )
        sums = any("collude" in entry["event"] for entry in account["entries"])
        heads = ("at", "kind", "run", "round", "attempt", "client", "noise", "rate", "steps")
        table = Table(*heads, *(("collude",) if sums else ()))
        for entry in account["entries"]:
            event = entry["event"]
            table.add_row(
                entry["at"],
                entry["kind"],
                entry["run_id"],
                str(entry["round"]),
                str(entry["attempt"]),
                entry["client"],
                f"{event['noise_multiplier']:.4g}",
                f"{event['sample_rate']:g}",
                str(event["steps"]),
                *((str(event.get("collude", "")),) if sums else ()),
            )
        console.print(table)


def verdict(client: str, found: Comparison) -> dict[str, Any]:
    """A comparison of two ledgers as plain values."""
    return {
        "client": client,
        "population": found.population,
        "clean": not found.discrepancies,
        "delta": found.delta,
        "epsilon": {"here": found.epsilon_here, "there": found.epsilon_there},
        "attempts": {
            "executed_here": found.executed,
            "charged_here": found.charged_here,
            "charged_there": found.charged_there,
        },
        "findings": [
            {
                "kind": finding.kind,
                "harmful": finding.harmful,
                "says": finding.says,
                "mend": finding.mend or None,
                **({} if finding.key is None else finding.key._asdict()),
            }
            for finding in found.findings
        ],
    }


def verdict_lines(client: str, found: Comparison) -> list[str]:
    """The same for a person: discrepancies first, each with what to do."""
    bad = found.discrepancies
    result = f"{len(bad)} DISCREPANCIES" if bad else "the two ledgers agree"
    counts = (
        f"executed here {found.executed}; charged here {found.charged_here}, there "
        f"{found.charged_there}; epsilon at delta {found.delta:g}: here {found.epsilon_here:.4f}, "
        f"there {found.epsilon_there:.4f}{resting(found.collude)}"
    )
    lines = [f"{client}: population {found.population}: {result}", f"  {counts}"]
    for finding in bad:
        lines += [
            f"  PROBLEM {finding.kind}{_where(finding)}: {finding.says}",
            f"    {finding.mend}",
        ]
    lines += [
        f"  note {finding.kind}{_where(finding)}: {finding.says}"
        for finding in found.findings
        if not finding.harmful
    ]
    return lines


def _where(finding: Finding) -> str:
    if finding.key is None:
        return ""
    run_id, number, attempt, client = finding.key
    return f" [run {run_id} round {number} attempt {attempt} {client}]"
