"""What ``demo --secure`` has more: people who have compared keys, and a plan of secure sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from benchmarks.demo.sites import Client, Party
from benchmarks.demo.stack import Stack
from core.federation.plan import Plan
from core.secagg.identity import fingerprint
from worker.agent import peers
from worker.agent.site import Site
from worker.agent.sum_identity import key_of
from worker.client import CoordinatorClient
from worker.config import load_site

DROP, COLLUDE = 0, 1  # of three clients: whoever looks at the sum knows its own noise


def of(plan: Plan) -> Plan:
    """The same plan with secure sums, without the round that asks single sites for a report."""
    values = plan.model_dump()
    values["privacy"].pop("report_precision", None)
    values["privacy"].pop("report_holdout", None)
    values |= {"aggregation": "secure", "secure": {"drop": DROP, "collude": COLLUDE}}
    return Plan.model_validate(values)


def introduce(
    operator: CoordinatorClient,
    stack: Stack,
    clients: list[Client],
    ids: Mapping[str, str],
    tokens: Mapping[str, str],
    party_of: Callable[[Client], Party],
) -> Iterator[str]:
    """Each site's key is told to the coordinator and pinned at the others: what their people do by
    telephone. Yields a line for each.
    """
    keys: dict[str, str] = {}
    for client in clients:
        with Site.open(party_of(client).state) as site:
            keys[client.name] = key_of(site, client.name)
        if client.managed:
            operator.put_identity_key(ids[client.name], keys[client.name])
        else:
            with stack.client(tokens[client.name]) as own:
                own.put_identity_key(ids[client.name], keys[client.name])
    for client in clients:
        config = load_site(party_of(client).config).require(client.name)
        peers.pin(config, {name: key for name, key in keys.items() if name != client.name})
        yield f"{client.site.name}: {fingerprint(keys[client.name])}"
