"""Commands ``fedhypevae worker`` and ``fedhypevae agent``. Exit: 0 done, 1 failed, 2 usage."""

from __future__ import annotations

from worker.commands import consent, enrolment, identity, ledger, records, work
from worker.commands.base import app

worker_app = app("Celery workers of the coordinator.")
agent_app = app("A site's agent: run, check, consent, audit.")


@worker_app.callback()
def _worker() -> None:
    """Celery workers of the coordinator."""


worker_app.command("run")(work.serve)

agent_app.command("enrol")(enrolment.enrol_site)
agent_app.command("rotate-token")(enrolment.rotate_token)
agent_app.command("run")(work.run)
agent_app.command("join")(work.join)
agent_app.command("plans")(consent.show_plans)
agent_app.command("approve")(consent.approve)
agent_app.command("refuse")(consent.refuse)
agent_app.add_typer(identity.identity_app, name="identity")
agent_app.command("check")(records.check)
agent_app.command("ledger")(ledger.show)
agent_app.command("report")(records.report)
agent_app.command("verify-ledger")(ledger.compare)
agent_app.command("backup")(ledger.back_up)
agent_app.command("restore")(ledger.restore)
agent_app.command("reconcile")(ledger.complete)
