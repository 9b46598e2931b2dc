"""Which of this site's clients a token belongs to."""

from __future__ import annotations

from worker.answers import JsonObject
from worker.client import CoordinatorClient
from worker.config import ClientConfig, SiteConfig
from worker.errors import ApiProblem, ConfigError
from worker.paging import every


def configured(me: JsonObject, site: SiteConfig) -> ClientConfig:
    """This site's configuration of the client that the coordinator knows as ``me``.

    Raises ``ConfigError`` if this site does not have that client, or has it differently.
    """
    config = site.require(str(me.get("name")))
    for key in ("unit", "population"):
        if me.get(key) not in (None, getattr(config, key)):
            raise ConfigError(
                f"client {config.name!r} is enrolled with {key} {me[key]!r} but configured with "
                f"{getattr(config, key)!r}.",
                field=f"client.{key}",
                mend="Use the value that was enrolled, or enrol another client.",
            )
    return config


def accounts(
    coordinator: CoordinatorClient, site_config: SiteConfig, wanted: str | None
) -> list[tuple[str, ClientConfig]]:
    """(client id, configuration), one for each population whose ledger this token may read.

    A client's own token reads its population; an auditor's or administrator's those of all clients
    of this site (managed clients have no token). Raises ``ConfigError`` if ``wanted`` is not
    among them.
    """
    try:
        seen = [coordinator.client("me")]
    except ApiProblem as problem:
        if problem.status != 403:
            raise
        clients = every(coordinator.clients, limit=200)
        seen = [item for item in clients if site_config.named(str(item.get("name")))]
    found = [(str(item["id"]), configured(item, site_config)) for item in seen]
    if wanted is not None:
        site_config.require(wanted)
        found = [(client_id, config) for client_id, config in found if config.name == wanted]
    if not found:
        which = "any client of this site" if wanted is None else repr(wanted)
        raise ConfigError(
            f"this token may not read the ledger of {which}.",
            field="token",
            mend="Set FHV_TOKEN to that client's token, or to an auditor's.",
        )
    first: dict[str, tuple[str, ClientConfig]] = {}
    for client_id, config in found:
        first.setdefault(config.population, (client_id, config))
    return list(first.values())
