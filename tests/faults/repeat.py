"""Runs the federation and fault tests many times over, each time in another order.

Ends at the first repetition that fails and says how to repeat it (pytest-randomly's seed). The
fault matrix alone takes minutes, so its cells are shared out over the repetitions, which play all
other tests every time.
"""

from __future__ import annotations

import argparse
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Sequence

# What a repetition always plays: the protocol over HTTP on real Postgres and Valkey.
ALWAYS = ("tests/api", "tests/worker")
# What it plays a share of: real processes.
SHARED = ("tests/faults", "tests/e2e/test_kill_coordinator.py")
_SUMMARY = re.compile(r"^=* ?(.*\b(?:passed|failed|error)\b.*) in [0-9.]+s.*$", re.MULTILINE)


def share(ids: Sequence[str], number: int, shares: int) -> list[str]:
    """Every ``shares``-th test, beginning with another one in each repetition."""
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
    options.add_argument("--shares", type=int, default=10, help="parts of the process tests")
    options.add_argument("--jobs", default="2")
    chosen = options.parse_args()
    ids = _collected(SHARED)
    began = time.monotonic()
    for number in range(chosen.times):
        seed, started = secrets.randbelow(2**32), time.monotonic()
        command = ["-m", "pytest", "-q", "-x", "-n", chosen.jobs, f"--randomly-seed={seed}"]
        command += [*ALWAYS, *share(ids, number, chosen.shares)]
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
