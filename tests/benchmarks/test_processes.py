"""The demo's children are stopped on every way out, by force if need be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.demo.memory import PeakMemory
from core.processes import Processes, ServiceError, Stopped, stop_on_signals, wait_for

ROOT = Path(__file__).resolve().parents[2]
SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
STUBBORN = [
    sys.executable,
    "-c",
    (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "print('up', flush=True); time.sleep(600)"
    ),
]
PARENT = [
    sys.executable,
    "-c",
    (
        "import subprocess, sys; "
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
        "print('grandchild', p.pid, flush=True); p.wait()"
    ),
]


def _environment() -> dict[str, str]:
    return dict(os.environ)


def _up(log: Path) -> None:
    wait_for(
        f"a line in {log}",
        lambda: True if log.exists() and log.read_text() else None,
        seconds=20,
        check=lambda: None,
    )


def test_leaving_the_block_stops_children_and_grandchildren(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        child = processes.start("parent", PARENT, _environment())
        _up(child.log)
        grandchild = psutil.Process(int(child.log.read_text().split()[1]))
        assert grandchild.is_running()
    assert child.process.poll() == -signal.SIGTERM
    grandchild.wait(10)
    assert not grandchild.is_running()
    assert processes.running == []


def test_a_child_that_ignores_sigterm_is_killed_after_the_wait(tmp_path: Path) -> None:
    with Processes(tmp_path, patience_s=0.5) as processes:
        child = processes.start("stubborn", STUBBORN, _environment())
        _up(child.log)
        started = time.monotonic()
    assert child.process.poll() == -signal.SIGKILL
    assert time.monotonic() - started < 10


def test_an_exception_stops_the_children_too(tmp_path: Path) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        Processes(tmp_path) as processes,
    ):
        child = processes.start("sleeper", SLEEP, _environment())
        raise ZeroDivisionError
    assert child.process.poll() is not None


def test_a_child_that_dies_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    code = "import sys; print('cannot open the store'); sys.exit(3)"
    with Processes(tmp_path) as processes:
        child = processes.start("coordinator", [sys.executable, "-c", code], _environment())
        child.process.wait(20)
        with pytest.raises(
            ServiceError, match=r"(?s)'coordinator'.*status 3.*cannot open the store"
        ):
            processes.check()


def test_kill_is_a_crash_and_frees_the_name(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        processes.start("one", SLEEP, _environment())
        with pytest.raises(ServiceError, match="already"):
            processes.start("one", SLEEP, _environment())
        assert processes.kill("one") == -signal.SIGKILL
        processes.start("one", SLEEP, _environment())
        processes.check()


def test_waiting_says_for_what_and_what_was_seen() -> None:
    with pytest.raises(ServiceError, match=r"for the moon, in vain\. Last seen: clouds"):
        wait_for("the moon", lambda: None, seconds=0.2, check=lambda: None, state=lambda: "clouds")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything_and_a_second_one_does_not_cut_the_stop(
    tmp_path: Path, number: signal.Signals
) -> None:
    """A real program that holds a stubborn child gets the signal twice."""
    program = f"""
import sys
from pathlib import Path
from core.processes import Processes, Stopped, stop_on_signals
import os, time
try:
    with stop_on_signals(), Processes(Path({str(tmp_path)!r}), patience_s=1.0) as processes:
        child = processes.start("stubborn", {STUBBORN!r}, dict(os.environ))
        print(child.pid, flush=True)
        time.sleep(600)
except Stopped as stopped:
    sys.exit(128 + stopped.number)
"""
    holder = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    child = psutil.Process(int(holder.stdout.readline()))
    _up(tmp_path / "stubborn.log")
    holder.send_signal(number)
    time.sleep(0.3)
    holder.send_signal(number)
    assert holder.wait(20) == 128 + number
    assert not child.is_running()
    holder.stdout.close()


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped), stop_on_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert signal.getsignal(signal.SIGTERM) is before


def test_peak_memory_counts_children(tmp_path: Path) -> None:
    hungry = (
        "import time; b = bytearray(60_000_000); b[::4096] = b'1' * len(b[::4096]); "
        "print('up', flush=True); time.sleep(600)"
    )
    with PeakMemory(every_s=0.05) as memory, Processes(tmp_path) as processes:
        child = processes.start("hungry", [sys.executable, "-c", hungry], _environment())
        _up(child.log)
        before = memory.peak
        time.sleep(0.5)
    assert memory.peak >= max(before, 60_000_000)
