"""Runs the federation and fault tests many times over, each time in another order.

Ends at the first repetition that fails and says how to repeat it (pytest-randomly's seed). The
tests of the protocol and of recovery are played every time. Those that take minutes are shared out
over the repetitions: twenty of them play each cell of the fault matrix, the kills of whole
federations and the short soak once, and the protocol machine four times.
"""

from __future__ import annotations

import argparse
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Sequence

ALWAYS = (
    "tests/api/test_api_flow.py",
    "tests/api/test_consents.py",
    "tests/api/test_jobs_outbox.py",
    "tests/api/test_joins.py",
    "tests/api/test_reservations.py",
    "tests/api/test_run_control.py",
    "tests/api/test_sweeper.py",
    "tests/api/test_updates_http.py",
    "tests/api/test_work_http.py",
    "tests/worker/test_agent_loop.py",
    "tests/worker/test_broker.py",
    "tests/worker/test_celery_worker.py",
    "tests/worker/test_crashes.py",
    "tests/worker/test_execution.py",
    "tests/worker/test_kept_state.py",
    "tests/worker/test_site_ledger.py",
)
# In how many parts these are played, one part a repetition.
SHARED = (
    (20, ("tests/faults", "tests/e2e/test_kill_coordinator.py")),
    (5, ("tests/api/test_protocol_machine.py", "tests/api/test_coordinator_process.py")),
)
_SUMMARY = re.compile(r"^=* ?(.*\b(?:passed|failed|error)\b.*) in [0-9.]+s.*$", re.MULTILINE)


def share(ids: Sequence[str], number: int, shares: int) -> list[str]:
    """Part ``number`` of ``shares``: together they are all of them, each once."""
    return list(ids[number % shares :: shares])


def _collected(paths: Sequence[str]) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:randomly", *paths],
        capture_output=True,
        text=True,
        check=True,
    )
    return [line for line in done.stdout.splitlines() if "::" in line]


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--times", type=int, default=20)
    options.add_argument("--jobs", default="2", help="test processes")
    chosen = options.parse_args()
    shared = [(shares, _collected(paths)) for shares, paths in SHARED]
    began = time.monotonic()
    for number in range(chosen.times):
        seed, started = secrets.randbelow(2**32), time.monotonic()
        command = ["-m", "pytest", "-q", "-x", "-n", chosen.jobs, f"--randomly-seed={seed}"]
        command += ALWAYS
        for shares, ids in shared:
            command += share(ids, number, shares)
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, check=False
        )
        seconds = time.monotonic() - started
        found = _SUMMARY.findall(done.stdout)
        said = found[-1] if found else "no summary"
        _say(f"{number + 1:>3} of {chosen.times}  seed {seed:<11}{seconds:7.1f} s  {said}")
        if done.returncode != 0:
            _say(f"{done.stdout[-20_000:]}\n{done.stderr[-5_000:]}")
            _say(f"repetition {number + 1} failed; again with: python {' '.join(command)}")
            return 1
    minutes = (time.monotonic() - began) / 60
    _say(f"{chosen.times} repetitions without a failure in {minutes:.1f} minutes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
