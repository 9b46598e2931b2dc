"""What ``fedhypevae doctor --site`` checks: coordinator, clock, token, site.toml, state, GPU."""

from __future__ import annotations

from collections.abc import Iterator

from core.findings import Check
from worker.checks.connection import coordinator, settings
from worker.checks.credentials import token
from worker.checks.machine import broker, device
from worker.checks.site import site_file, state_folder


def checks() -> Iterator[Check]:
    yield Check("settings", settings)
    yield Check("coordinator", coordinator)
    yield Check("token", token)
    yield Check("site.toml", site_file)
    yield Check("state folder", state_folder)
    yield Check("broker", broker)
    yield Check("device", device)
