"""Run by test_crashes in a process of its own, which is then killed with SIGKILL.

Performs one order and stops for good at the named point, after saying so on standard output.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import httpx

from core.training import local
from tests.worker.support import Script, make_config, make_order
from worker.agent.site import Site
from worker.execution import perform


def _wait_for_death(point: str) -> None:
    sys.stdout.write(f"{point}\n")
    sys.stdout.flush()
    time.sleep(300)


def main(state_dir: str, data: str, point: str) -> None:
    order = make_order()
    script = Script(orders=[order])

    def before(request: httpx.Request) -> httpx.Response | None:
        if point == "sending" and request.method == "PUT":
            _wait_for_death(point)
        return None

    script.before = before
    real = local.execute

    def execute(*args: Any, **kwargs: Any) -> bytes:
        body = real(*args, **kwargs)
        if point == "noise drawn":
            _wait_for_death(point)
        return body

    local.execute = execute
    with Site.open(Path(state_dir)) as site, site.lock("site-a"):
        perform(order, make_config(Path(data)), script.place(site))


if __name__ == "__main__":
    main(*sys.argv[1:])
