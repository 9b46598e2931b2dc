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
from core.wire.messages import WorkOrder
from tests.worker.support import Script, make_config, make_order, make_spec, training_inputs
from worker.agent.site import Site
from worker.execution import perform


def _wait_for_death(point: str) -> None:
    sys.stdout.write(f"{point}\n")
    sys.stdout.flush()
    time.sleep(300)


def local_encoder_order(number: int, attempt: int = 1) -> tuple[WorkOrder, dict[str, bytes]]:
    """A training order of a run with local encoders, and the objects that it names."""
    spec = make_spec(model={"encoder": "local"})
    objects, inputs = training_inputs(spec)
    return make_order(spec, round_number=number, attempt=attempt, inputs=inputs), objects


def main(state_dir: str, data: str, point: str, kind: str = "sketch") -> None:
    order, objects = (make_order(), {}) if kind == "sketch" else local_encoder_order(1)
    script = Script(orders=[order], objects=objects)

    def before(request: httpx.Request) -> httpx.Response | None:
        if point == "sending" and request.method == "PUT":
            _wait_for_death(point)
        return None

    script.before = before
    if point == "accepted":  # the coordinator has the update, its answer has not been read
        script.after_put = lambda: _wait_for_death(point)
    real = local.execute

    def execute(*args: Any, **kwargs: Any) -> local.Released:
        released = real(*args, **kwargs)
        if point == "noise drawn":
            _wait_for_death(point)
        return released

    local.execute = execute
    with Site.open(Path(state_dir)) as site, site.lock("site-a"):
        perform(order, make_config(Path(data)), script.place(site))


if __name__ == "__main__":
    main(*sys.argv[1:])
