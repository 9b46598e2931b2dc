"""The settings and the site's file as the other checks use them."""

from __future__ import annotations

from worker.answers import ONCE, Timeouts
from worker.client import CoordinatorClient
from worker.config import SiteConfig, WorkerSettings, load_settings
from worker.errors import ConfigError

_QUICK = Timeouts(connect=5.0, read=10.0)


def usable_settings() -> WorkerSettings | None:
    """None where the check ``settings`` has said why."""
    try:
        return load_settings()
    except ConfigError:
        return None


def usable_site(found: WorkerSettings | None) -> SiteConfig | None:
    """None where the check ``site_file`` has said why."""
    try:
        return None if found is None or found.site_config is None else found.require_site()
    except ConfigError:
        return None


def asked_once(found: WorkerSettings, token: str | None) -> CoordinatorClient:
    return CoordinatorClient(found.coordinator_url, token, retry=ONCE, timeouts=_QUICK)
