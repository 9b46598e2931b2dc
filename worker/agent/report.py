"""The site's ledger for a person or a program: epsilon from the events, then the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from core.privacy import accounting
from worker.agent.records import Entry
from worker.agent.site import Site
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
            f"{states['commit']} committed, {states['lost']} lost, {states['open']} open",
            markup=False,
            highlight=False,
        )
        table = Table("at", "kind", "run", "round", "attempt", "client", "noise", "rate", "steps")
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
            )
        console.print(table)
