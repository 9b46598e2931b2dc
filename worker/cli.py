"""Commands ``fedhypevae worker`` and ``fedhypevae agent``. Exit: 0 done, 1 failed, 2 usage."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from core.wire.jobs import QUEUE_COORDINATOR, QUEUE_SYNTHESIS, QUEUE_TRAIN
from worker import logs
from worker.config import SiteConfig, WorkerSettings, load_settings
from worker.errors import WorkerError

if TYPE_CHECKING:  # httpx is imported by the commands that need it
    from worker.client import CoordinatorClient


def _app(text: str) -> typer.Typer:
    """Plain tracebacks: decorated ones print local variables, which may hold records or tokens."""
    return typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        help=text,
        pretty_exceptions_enable=False,
        pretty_exceptions_show_locals=False,
    )


worker_app = _app("Celery workers of the coordinator.")
agent_app = _app("A site's agent: run, check, consent, audit.")

_LONGEST_WHY = 200
ClientOption = Annotated[str | None, typer.Option("--client", help="Only this client.")]


@worker_app.callback()
def _worker() -> None:
    """Celery workers of the coordinator."""


@contextmanager
def _told() -> Iterator[None]:
    """Errors that a person can mend become one message and exit code 1."""
    try:
        yield
    except WorkerError as error:
        _stop(str(error))


def _stop(message: str) -> NoReturn:
    print(f"fedhypevae: {message}", file=sys.stderr)
    raise typer.Exit(1)


def _prepare() -> WorkerSettings:
    settings = load_settings()
    logs.configure(settings.log_level)
    if settings.plain_http_to_elsewhere:
        logs.get("worker").warning(
            "token_over_plain_http",
            coordinator=settings.coordinator_url,
            mend="Use https://, or a network that nobody else can read.",
        )
    return settings


@contextmanager
def _connected() -> Iterator[tuple[WorkerSettings, SiteConfig, CoordinatorClient]]:
    """Settings, this site's configuration, and the coordinator with the site's cache."""
    from worker.cache import ObjectCache
    from worker.client import CoordinatorClient

    settings = _prepare()
    site = settings.require_site()
    cache = ObjectCache(site.state_dir / "objects")
    token = settings.token_source(site.state_dir)
    with CoordinatorClient(settings.coordinator_url, token, cache=cache) as coordinator:
        yield settings, site, coordinator


@worker_app.command("run")
def worker_run(
    queue: Annotated[
        str,
        typer.Option(
            "--queue",
            help="train (managed clients), coordinator (aggregation) or synthesis (large files).",
        ),
    ],
) -> None:
    """Serve one Celery queue in this process until a signal."""
    known = (QUEUE_TRAIN, QUEUE_COORDINATOR, QUEUE_SYNTHESIS)
    if queue not in known:
        raise typer.BadParameter(f"{queue!r}; there are {', '.join(known)}", param_hint="--queue")
    with _told():
        settings = _prepare()
        settings.token_source()
        settings.require_broker_url()
        if queue == QUEUE_TRAIN:
            settings.require_site()
        else:
            settings.require_object_store_url()
        from worker.celery_app import serve

        code = serve(queue, log_level=settings.log_level)
    raise typer.Exit(code)


@agent_app.command("enrol")
def agent_enrol(
    code: Annotated[
        str,
        typer.Argument(help="The one-time code; asked for if it is left out.", show_default=False),
    ] = "",
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", help="Keep the token there, not in the state folder."),
    ] = None,
    wait_s: Annotated[
        float, typer.Option("--wait", min=0.0, help="Seconds to wait for the approval.")
    ] = 900.0,
    replace: Annotated[
        bool, typer.Option("--replace", help="Take the place of a token that is there already.")
    ] = False,
) -> None:
    """Come in with a one-time code of the coordinator's administrator.

    Needs FHV_COORDINATOR_URL and, unless --token-file is given, FHV_SITE_CONFIG. The token is made
    and kept here; the administrator compares a fingerprint and approves. Exit 1 while that has not
    happened: the same command goes on.
    """
    from worker.agent import enrol
    from worker.client import CoordinatorClient
    from worker.credentials import TokenFile

    with _told():
        settings = _prepare()
        site = None if settings.site_config is None else settings.require_site()
        if token_file is not None:
            keep = TokenFile(token_file.expanduser().absolute())
        else:
            found = settings.token_kept(None if site is None else site.state_dir)
            if found is None:
                _stop("say where the token is to be kept: set FHV_SITE_CONFIG or --token-file.")
            keep = found
        code = code or typer.prompt("Code", hide_input=True)
        with CoordinatorClient(settings.coordinator_url, None) as coordinator:
            client = enrol.enrol(
                coordinator,
                code,
                keep,
                wait_s=wait_s,
                replace=replace,
                say=lambda line: print(line, flush=True),
            )
    print(f"Enrolled as {client['name']!r} (id {client['id']}). The token is in {keep.path}.")
    wrong = [f"{settings.site_config} is not there"] if site is None else []
    wrong += [] if site is None else enrol.differences(client, site)
    if wrong:
        print(f"site.toml is not ready yet: {'; '.join(wrong)}. It needs:\n")
        print(enrol.as_table(client))
    else:
        print("Next: fedhypevae agent check, then fedhypevae agent run.")


@agent_app.command("rotate-token")
def agent_rotate_token(
    overlap_s: Annotated[
        float,
        typer.Option("--overlap", min=0.0, help="Seconds during which the old one still works."),
    ] = 3_600.0,
) -> None:
    """Replace this site's token. Agents that run read the new one by themselves.

    An agent does this by itself when a third of the token's life is left.
    """
    from worker.agent.renewal import rotate
    from worker.client import CoordinatorClient

    with _told():
        settings = _prepare()
        site = None if settings.site_config is None else settings.require_site()
        keep = settings.token_kept(None if site is None else site.state_dir)
        if settings.token is not None or keep is None:
            _stop(
                "the token is in FHV_TOKEN, where it cannot be replaced: keep it in a file and set "
                "FHV_TOKEN_FILE."
            )
        with CoordinatorClient(settings.coordinator_url, keep) as coordinator:
            made = rotate(
                coordinator,
                keep,
                lambda token: CoordinatorClient(settings.coordinator_url, token),
                overlap_s=overlap_s,
            )
    ends = made.get("expires_at")
    print(
        f"{keep.path}: the new token is accepted {f'until {ends}' if ends else 'without an end'}."
    )


@agent_app.command("run")
def agent_run(
    poll_s: Annotated[
        float, typer.Option("--poll", min=0.0, max=60.0, help="Seconds of one long poll.")
    ] = 25.0,
) -> None:
    """Ask the coordinator for work and do it, until a signal."""
    from worker.agent.loop import run_agent
    from worker.agent.renewal import Renewal
    from worker.client import CoordinatorClient

    with _told(), _connected() as (settings, site, coordinator):
        kept = None if settings.token is not None else settings.token_kept(site.state_dir)
        renew = None
        if kept is not None:
            renew = Renewal(
                coordinator, kept, lambda token: CoordinatorClient(settings.coordinator_url, token)
            )
        run_agent(coordinator, site, compute=settings.compute, poll_s=poll_s, renew=renew)


@agent_app.command("join")
def agent_join(
    run_id: Annotated[str, typer.Argument(help="The completed run's id.")],
    client: Annotated[str, typer.Option("--client", help="Which client of this site joins.")],
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=1.0, help="Seconds until the join is published.")
    ] = 600.0,
) -> None:
    """Join a completed run by one sketch; exit 1 and say why if that does not succeed."""
    from worker.agent.join import join_run
    from worker.agent.joined import place_of

    with _told(), _connected() as (settings, site, coordinator):
        joined = join_run(
            coordinator,
            site,
            run_id,
            client,
            compute=settings.compute,
            timeout_s=timeout_s,
            say=lambda line: print(line, flush=True),
        )
    for line in place_of(joined, settings.coordinator_url):
        print(line)


RunArgument = Annotated[str, typer.Argument(help="The run's id or name.")]


@agent_app.command("plans")
def agent_plans(
    client: ClientOption = None,
    every: Annotated[
        bool, typer.Option("--all", help="Also what this site has answered already.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Runs that ask for this site's records: what each costs, and what the policy says."""
    from worker.agent import plans
    from worker.agent.site import Site

    with (
        _told(),
        _connected() as (_, site_config, coordinator),
        Site.open(site_config.state_dir) as site,
    ):
        state = None if every else "asked"
        found = plans.shown(coordinator, site_config, site, client, state=state)
    if as_json:
        print(json.dumps({"plans": plans.as_json(found)}, indent=2))
    elif found:
        plans.print_table(found)
    else:
        print("nothing awaits this site's word" if not every else "no run has asked this site")


@agent_app.command("approve")
def agent_approve(run: RunArgument, client: ClientOption = None) -> None:
    """Approve a run's plan, within the limits of the configuration."""
    _decide(run, "approve", client, "")


@agent_app.command("refuse")
def agent_refuse(
    run: RunArgument,
    client: ClientOption = None,
    why: Annotated[
        str, typer.Option("--why", help="For the coordinator's administrator; 200 characters.")
    ] = "",
) -> None:
    """Refuse a run's plan for good; exit 1 if the coordinator has it as approved."""
    if len(why) > _LONGEST_WHY:
        raise typer.BadParameter(f"at most {_LONGEST_WHY} characters", param_hint="--why")
    _decide(run, "refuse", client, why)


def _decide(run: str, verb: Literal["approve", "refuse"], client: str | None, why: str) -> None:
    from worker.agent import plans
    from worker.agent.site import Site

    with (
        _told(),
        _connected() as (_, site_config, coordinator),
        Site.open(site_config.state_dir) as site,
    ):
        lines = plans.decide(coordinator, site_config, site, run, verb, client=client, why=why)
    for line in lines:
        print(line)


@agent_app.command("check")
def agent_check(
    client: ClientOption = None,
    space: Annotated[
        Path | None,
        typer.Option("--space", help="The embedding space as JSON; asked of the coordinator else."),
    ] = None,
) -> None:
    """Load the data as a round would and print every problem; exit 1 if there is one."""
    from worker.agent.check import check_client, read_space

    with _told():
        settings = _prepare()
        site = settings.require_site()
        contract = None if space is None else read_space(space)
        failed = False
        for config in _chosen(site, client):
            report = check_client(config, settings, contract)
            for line in report.facts:
                print(f"{config.name}: {line}")
            for problem in report.problems:
                print(f"{config.name}: PROBLEM: {problem}")
            failed |= bool(report.problems)
    if failed:
        raise typer.Exit(1)


@agent_app.command("ledger")
def agent_ledger(
    client: ClientOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Print what this site has spent, recomputed from its own ledger."""
    from worker.agent.report import accounts, print_tables
    from worker.agent.site import Site

    with _told():
        settings = _prepare()
        site_config = settings.require_site()
        if not site_config.state_dir.exists():
            _stop(f"nothing was spent: {site_config.state_dir} does not exist yet.")
        with Site.open(site_config.state_dir) as site:
            found: list[dict[str, Any]] = accounts(site, _chosen(site_config, client))
    if as_json:
        print(json.dumps({"site": str(site_config.state_dir), "accounts": found}, indent=2))
    else:
        print_tables(found)


@agent_app.command("report")
def agent_report(
    run: Annotated[str, typer.Option("--run", help="The run's id or name.")],
    out: Annotated[Path, typer.Option("--out", help="The HTML file to write.")],
    client: ClientOption = None,
    holdout: Annotated[
        Path | None,
        typer.Option("--holdout", help="A file of records that the run has never seen."),
    ] = None,
) -> None:
    """Measure a run's model on this site's raw records, into a file that must stay here.

    NOT PRIVATE: no noise is added, and nothing is sent.
    """
    from core.report.local import STAMP
    from worker.agent.local_report import write_report

    with _told(), _connected() as (_, site, coordinator):
        local = write_report(coordinator, site, run, out, client=client, unused=holdout)
    print(f"{out}: {local.client}, on {local.tested}. {STAMP}.")


@agent_app.command("verify-ledger")
def agent_verify_ledger(
    client: ClientOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Compare this site's ledger with the coordinator's; exit 1 if they contradict each other."""
    from worker.agent.identity import accounts
    from worker.agent.reconcile import verify
    from worker.agent.report import verdict, verdict_lines
    from worker.agent.site import Site

    with _told(), _connected() as (_, site_config, coordinator):
        chosen = accounts(coordinator, site_config, client)
        with Site.open(site_config.state_dir) as site:
            found = [
                (config.name, verify(site, coordinator, client_id, config, site_config))
                for client_id, config in chosen
            ]
    if as_json:
        print(json.dumps({"accounts": [verdict(*each) for each in found]}, indent=2))
    else:
        print("\n".join(line for each in found for line in verdict_lines(*each)))
    if any(comparison.discrepancies for _, comparison in found):
        raise typer.Exit(1)


@agent_app.command("backup")
def agent_backup(
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="A folder to be made.")],
) -> None:
    """Copy ledger and secret consistently, also while agents work, and read the copy back."""
    from worker.agent import backup

    with _told():
        site = _prepare().require_site()
        if not (site.state_dir / "site.key").exists():
            _stop(f"there is nothing to back up in {site.state_dir} yet.")
        made = backup.make(site.state_dir, destination)
    print(
        f"{destination}: {made.entries} entries of site {made.site_id}, read back. Keep it secret."
    )


@agent_app.command("restore")
def agent_restore(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A folder made by 'backup'.")],
) -> None:
    """Put a backup in place of a lost ledger, and complete it from the coordinator's ledger.

    Stop all agents and workers of the site first. Exit 1 while something is left to complete.
    """
    from worker.agent import backup

    with _told():
        site = _prepare().require_site()
        restored = backup.restore(source, site.state_dir)
    print(
        f"{site.state_dir}: restored {restored.entries} entries of {restored.made_at}. Nothing can "
        "be spent before they were compared with the coordinator's ledger.",
        flush=True,
    )
    agent_reconcile(None)


@agent_app.command("reconcile")
def agent_reconcile(client: ClientOption = None) -> None:
    """Complete a restored ledger from the coordinator's; exit 1 while something is left to do."""
    from worker.agent.identity import accounts
    from worker.agent.reconcile import reconcile
    from worker.agent.site import Site

    with _told(), _connected() as (_, site_config, coordinator):
        chosen = accounts(coordinator, site_config, client)
        with Site.open(site_config.state_dir) as site:
            for client_id, config in chosen:
                booked = reconcile(site, coordinator, client_id, config, site_config)
                done = "nothing to do" if booked is None else f"charged {booked} attempts as lost"
                print(f"population {config.population}: {done}", flush=True)
            populations = dict.fromkeys(each.population for each in site_config.client)
            left = [name for name in populations if site.ledger.unreconciled(name)]
    if left:
        _stop(
            f"not completed yet: {', '.join(left)}. Run 'fedhypevae agent reconcile' with a token "
            "of a client of each, or with an auditor's."
        )


def _chosen(site: SiteConfig, client: str | None) -> list[Any]:
    return list(site.client) if client is None else [site.require(client)]
