"""Coming in with a one-time code: this site makes its token, keeps it, and asks to be let in.

The token is on this site's disk before the coordinator hears of it, so that nothing is lost with an
answer: call it again with the same code, and it goes on where it was.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from importlib.metadata import version

from core.wire.credentials import fingerprint, new_token
from worker.answers import JsonObject
from worker.client import CoordinatorClient
from worker.config import SiteConfig
from worker.credentials import TokenFile
from worker.errors import ApiProblem, ConfigError, EnrolmentRefused, NotEnrolledYet, Unreachable

PURPOSE = "enrolling"
_PAUSE_S = 3.0
_AGENT_LETTERS = 200


def enrol(
    coordinator: CoordinatorClient,
    code: str,
    keep: TokenFile,
    *,
    wait_s: float,
    replace: bool = False,
    say: Callable[[str], None] = print,
) -> JsonObject:
    """The client that this site is from now on; its token is in ``keep``.

    ``coordinator`` needs no token. Raises ``NotEnrolledYet`` if nobody has decided within
    ``wait_s``, ``EnrolmentRefused`` if somebody has refused, ``ConfigError``, ``ClientError``.
    """
    with keep.changing():
        if keep.exists() and not replace:
            raise ConfigError(
                f"this site has a token already, in {keep.path}.",
                field="token_file",
                mend="To renew it: fedhypevae agent rotate-token. To come in anew with this code: "
                "--replace. For another client of this site: --token-file.",
            )
        token = keep.next(PURPOSE) or keep.put_aside(PURPOSE, new_token("client"))
        try:
            state = coordinator.redeem_enrolment(code, token, _agent())
        except ApiProblem as problem:
            if problem.field != "token":
                raise
            # It was put aside for an earlier code, which it still belongs to.
            token = keep.put_aside(PURPOSE, new_token("client"))
            state = coordinator.redeem_enrolment(code, token, _agent())
        if state["state"] == "waiting":
            say(
                f"The code is redeemed. Tell the coordinator's administrator this fingerprint: "
                f"{fingerprint(token)}"
            )
        until = time.monotonic() + wait_s
        while state["state"] == "waiting":
            if time.monotonic() >= until:
                raise NotEnrolledYet(fingerprint(token))
            time.sleep(min(_PAUSE_S, max(until - time.monotonic(), 0.0)))
            try:
                state = coordinator.redeem_enrolment(code, token, _agent())
            except Unreachable as error:
                say(f"{error.message} Trying again.")
        if state["state"] != "approved" or not isinstance(state["client"], dict):
            raise EnrolmentRefused(str(state["why"]))
        keep.accept(PURPOSE)
    return dict(state["client"])


def _agent() -> str:
    """What the administrator sees beside the fingerprint."""
    text = f"fedhypevae {version('fedhypevae')} on {platform.node() or 'a machine without a name'}"
    return text.encode("ascii", "replace").decode()[:_AGENT_LETTERS]


def differences(client: JsonObject, site: SiteConfig) -> list[str]:
    """What site.toml says otherwise than the coordinator does; empty if the agent can run."""
    name = str(client["name"])
    config = site.named(name)
    if config is None:
        return [f"it has no [[client]] named {name!r}"]
    return [
        f"its {key} is {getattr(config, key)!r}, enrolled is {client[key]!r}"
        for key in ("unit", "population")
        if getattr(config, key) != client[key]
    ]


def as_table(client: JsonObject) -> str:
    """The client's part of site.toml, with what only the site can know left to be filled in."""
    budget = client["budget"]
    return "\n".join(
        (
            "[[client]]",
            f'name = "{client["name"]}"',
            'data = "records.npz"            # this site\'s embeddings and labels',
            f'unit = "{client["unit"]}"',
            f'population = "{client["population"]}"',
            f"max_epsilon = {budget['epsilon']}              # more is never spent here",
            f"delta = {budget['delta']}",
            "min_noise_multiplier = 0.3",
        )
    )
