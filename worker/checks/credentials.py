"""The token: is it taken, does it work for a site, and is it of a client of this one?"""

from __future__ import annotations

from collections.abc import Iterator

from core.findings import Finding, failed, ok, warn
from worker.answers import JsonObject
from worker.checks.common import asked_once, usable_settings, usable_site
from worker.client import CoordinatorClient
from worker.config import SiteConfig
from worker.errors import ApiProblem, ClientError, ConfigError

_SOON_DAYS = 7.0
_SITE_SCOPES = ("client", "worker")


def token() -> Iterator[Finding]:
    """Is it taken, and is it one that works for a site?"""
    found = usable_settings()
    if found is None:
        return
    site = usable_site(found)
    kept = None if found.token else found.token_kept(None if site is None else site.state_dir)
    try:
        text = found.token_source(None if site is None else site.state_dir)()
    except ConfigError as error:
        yield failed("token", error.message, error.mend or "Set FHV_TOKEN or FHV_TOKEN_FILE.")
        return
    if kept is not None and kept.path.stat().st_mode & 0o077:
        yield failed("token", f"others can read {kept.path}", f"chmod 600 {kept.path}")
    kind, _, rest = text.removeprefix("fhv_").partition("_")
    if not text.startswith("fhv_") or not rest:
        yield failed(
            "token",
            "FHV_TOKEN does not look like a token (fhv_<scope>_...)",
            "Copy it as a whole, without quotes or spaces.",
        )
        return
    with asked_once(found, text) as client:
        try:
            own = client.own_token()
        except ApiProblem as problem:
            yield failed("token", _refusal(problem), _token_mend(problem, kind))
            return
        except ClientError:
            return  # ``coordinator`` has said so
        yield _taken(own, renewed=kept is not None)
        if own["scope"] == "client":
            yield from _enrolled(client, site)


def _taken(own: JsonObject, *, renewed: bool) -> Finding:
    """``renewed``: it is in a file, where an agent replaces it in time if it may."""
    scope, left_s = str(own["scope"]), own["expires_in_s"]
    if scope not in _SITE_SCOPES:
        return warn(
            "token",
            f"taken, but its scope is {scope}: no agent or worker runs with it",
            "Agents need the token of their client, workers one of scope worker.",
        )
    if left_s is None:
        return ok("token", f"taken; its scope is {scope}, it has no end")
    left = float(left_s) / 86_400.0
    text = f"taken; its scope is {scope}, it ends in {left:.0f} days"
    if left > _SOON_DAYS or (renewed and own["renewable"]):
        return ok("token", text)
    return warn(
        "token",
        text,
        "Have another one made in time; a token in a file (FHV_TOKEN_FILE) that came by "
        "'fedhypevae agent enrol' is renewed by the agent.",
    )


def _refusal(problem: ApiProblem) -> str:
    return f"the coordinator refuses it: {problem.detail}"


def _token_mend(problem: ApiProblem, kind: str) -> str:
    if problem.status != 401:
        return problem.mend or "Ask the coordinator's administrator."
    return (
        "Ask the coordinator's administrator for another one (fedhypevae admin tokens create "
        f"--scope {kind} ...), and check that FHV_COORDINATOR_URL is the one that made it."
    )


def _enrolled(client: CoordinatorClient, site: SiteConfig | None) -> Iterator[Finding]:
    """The token's client must be one of this site's, with the same unit and population."""
    try:
        me = client.client("me")
    except ClientError as error:
        yield failed("client", error.message, error.mend or "Ask the administrator.")
        return
    if me.get("revoked_at"):
        yield failed("client", f"{me['name']} was revoked", "Ask the administrator why.")
        return
    if site is None:
        return
    own = site.named(str(me["name"]))
    if own is None:
        names = ", ".join(each.name for each in site.client)
        yield failed(
            "client",
            f"the token is of {me['name']!r}; site.toml has: {names}",
            "Add a [[client]] with this name, or use that client's token.",
        )
        return
    differing = [key for key in ("unit", "population") if getattr(own, key) != me[key]]
    if differing:
        said = "; ".join(
            f"{key}: {getattr(own, key)!r} here, {me[key]!r} at the coordinator"
            for key in differing
        )
        yield failed("client", said, "Correct site.toml, or have the client enrolled anew.")
    else:
        yield ok("client", f"{own.name} is enrolled as site.toml says")
