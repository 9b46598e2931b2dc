"""Settings that can be used, and a coordinator that answers, is ready, and has our time."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from urllib.parse import urlsplit

from core.findings import Finding, failed, ok, warn
from worker.checks.common import asked_once, usable_settings
from worker.config import load_settings
from worker.errors import ClientError, ConfigError, NotNow, Unreachable

_SKEW_S, _FAR_SKEW_S = 5.0, 120.0


def settings() -> Iterator[Finding]:
    try:
        found = load_settings()
    except ConfigError as error:
        for problem in error.problems:
            what, _, mend = problem.replace("Value error, ", "").partition(". ")
            yield failed("settings", what, mend or "Correct it, or leave it out.")
        return
    if found.plain_http_to_elsewhere:
        yield warn(
            "settings",
            f"the token goes to {found.coordinator_url} unencrypted",
            "Use https:// in FHV_COORDINATOR_URL.",
        )
    else:
        yield ok("settings", f"usable; the coordinator is {found.coordinator_url}")


def coordinator() -> Iterator[Finding]:
    """Is it there, ready, and does its clock agree with ours?"""
    found = usable_settings()
    if found is None:
        return
    with asked_once(found, None) as client:
        before = datetime.now(UTC)
        try:
            theirs = client.clock()
        except NotNow as error:
            yield failed("coordinator", error.message, "Wait, or ask who runs it (proxy, load).")
            return
        except Unreachable as error:
            yield failed("coordinator", error.message, _unreachable_mend(found.coordinator_url))
            return
        except ClientError as error:
            yield failed("coordinator", error.message, error.mend or "Check FHV_COORDINATOR_URL.")
            return
        after = datetime.now(UTC)
        try:
            client.ready()
            yield ok("coordinator", f"{found.coordinator_url} answers and is ready")
        except ClientError as error:
            said = getattr(error, "detail", "") or error.message
            yield warn(
                "coordinator",
                f"it answers, but is not ready: {said}",
                "Ask who runs it to call 'fedhypevae doctor --coordinator' there.",
            )
    yield from _clock(theirs, before, after)


def _unreachable_mend(url: str) -> str:
    parts = urlsplit(url)
    return (
        f"Check FHV_COORDINATOR_URL, that the coordinator runs, and that this machine may call "
        f"{parts.hostname} (name, firewall, proxy, certificate): curl -v {url}/healthz"
    )


def _clock(theirs: datetime | None, before: datetime, after: datetime) -> Iterator[Finding]:
    """The header ``Date`` is cut to seconds, and the request took a while: both count for us."""
    if theirs is None:
        yield warn("clock", "the coordinator's answer has no Date", "Let the proxy hand it on.")
        return
    early = (before - theirs).total_seconds() - 1.0
    late = (theirs - after).total_seconds()
    skew = max(early, late, 0.0)
    text = f"{skew:.0f} s {'ahead of' if early > late else 'behind'} the coordinator's"
    mend = "Let this machine set its clock by NTP (timedatectl set-ntp true)."
    if skew > _FAR_SKEW_S:
        yield failed("clock", text, mend)
    elif skew > _SKEW_S:
        yield warn("clock", text, mend)
    else:
        yield ok("clock", "agrees with the coordinator's")
