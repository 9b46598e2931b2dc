"""Serving until a signal: a Celery queue, a site's agent; and joining a run."""

from __future__ import annotations

from typing import Annotated

import typer

from core.wire.jobs import QUEUE_COORDINATOR, QUEUE_SYNTHESIS, QUEUE_TRAIN
from worker.commands.base import connected, prepare, told


def serve(
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
    with told():
        settings = prepare()
        settings.token_source()
        settings.require_broker_url()
        if queue == QUEUE_TRAIN:
            settings.require_site()
        else:
            settings.require_object_store_url()
        from worker.celery_app import serve

        code = serve(queue, log_level=settings.log_level)
    raise typer.Exit(code)


def run(
    poll_s: Annotated[
        float, typer.Option("--poll", min=0.0, max=60.0, help="Seconds of one long poll.")
    ] = 25.0,
) -> None:
    """Ask the coordinator for work and do it, until a signal."""
    from worker.agent.loop import run_agent
    from worker.agent.renewal import Renewal
    from worker.client import CoordinatorClient

    with told(), connected() as (settings, site, coordinator):
        kept = None if settings.token is not None else settings.token_kept(site.state_dir)
        renew = None
        if kept is not None:
            renew = Renewal(
                coordinator, kept, lambda token: CoordinatorClient(settings.coordinator_url, token)
            )
        run_agent(coordinator, site, compute=settings.compute, poll_s=poll_s, renew=renew)


def join(
    run_id: Annotated[str, typer.Argument(help="The completed run's id.")],
    client: Annotated[str, typer.Option("--client", help="Which client of this site joins.")],
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=1.0, help="Seconds until the join is published.")
    ] = 600.0,
) -> None:
    """Join a completed run by one sketch; exit 1 and say why if that does not succeed."""
    from worker.agent.join import join_run
    from worker.agent.joined import place_of

    with told(), connected() as (settings, site, coordinator):
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
