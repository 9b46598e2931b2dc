"""What a form says before something is done, and what the page says afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    title: str
    about: str
    button: str
    done: str


ACTIONS: Mapping[str, Words] = {
    "start": Words(
        "Start this run?",
        "Orders of the first round go out to all sites that have approved the plan. Each of them "
        "reserves privacy budget, which nothing gives back.",
        "Start",
        "The run was started.",
    ),
    "pause": Words(
        "Pause this run?",
        "No order is handed out and no deadline passes until it is resumed. What sites have in "
        "hand may be finished: it is spent already. A pause that nobody ends cancels the run.",
        "Pause",
        "The run is paused.",
    ),
    "resume": Words(
        "Resume this run?",
        "Orders are handed out again. The open round gets back the time that the pause has taken.",
        "Resume",
        "The run goes on.",
    ),
    "cancel": Words(
        "Cancel this run for good?",
        "The open round is abandoned and its orders are withdrawn. What was reserved stays spent; "
        "models that were published stay. This cannot be taken back.",
        "Cancel the run",
        "The run was cancelled.",
    ),
    "release": Words(
        "End this quarantine?",
        "The site gets work of this run again. Do so after its software was mended: another "
        "implausible update would cost it privacy budget again.",
        "Release",
        "The client was released.",
    ),
    "revoke": Words(
        "Revoke this client for good?",
        "Its tokens are refused from now on, its orders are withdrawn, and it gets no work of any "
        "run. What was accepted of it stays in the models that hold it, and what was reserved "
        "stays spent. This cannot be taken back.",
        "Revoke the client",
        "The client was revoked.",
    ),
    "approve": Words(
        "Let this site in?",
        "Ask its people, by a way that you know, which fingerprint their agent shows. If another "
        "one was redeemed, somebody else has their code, and nothing is approved.",
        "Let it in",
        "The site is in.",
    ),
    "refuse": Words(
        "Refuse this site?",
        "Nobody comes in by this code any more. The site is told the reason.",
        "Refuse",
        "The site was refused.",
    ),
    "withdraw": Words(
        "Withdraw this code?",
        "Nobody comes in by it any more. Whoever tries is told the reason.",
        "Withdraw",
        "The code was withdrawn.",
    ),
}


def done(action: str | None) -> str:
    """Only sentences of ours are shown, whatever the address says."""
    return ACTIONS[action].done if action is not None and action in ACTIONS else ""
