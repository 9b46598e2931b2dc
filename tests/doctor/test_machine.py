"""What doctor finds on any machine, and that no check can hide another."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from core import doctor as program
from core import machine
from core.findings import Check, Finding, ok
from tests.doctor.conftest import Doctor

NOTHING_SET = "warn settings"


def test_a_machine_as_it_should_be(doctor: Doctor) -> None:
    found = {each["name"]: each for each in doctor.findings()}
    assert found["python"]["level"] == "ok"
    assert found["open files"]["level"] in ("ok", "warn")
    assert found["settings"]["level"] == "warn", "nothing is set here"


def test_another_python(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 12, 1))
    doctor.sees("machine", "Another Python", "fail python", NOTHING_SET)


def test_packages_that_are_not_the_locked_ones(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lock = tmp_path / "requirements.lock"
    monkeypatch.setattr(machine, "LOCK", lock)
    monkeypatch.setattr(machine, "needed", lambda: ["no-such-package", "numpy"])
    lock.write_text("# a comment\nno_such.package==1.0\nnumpy==0.0.1\nanother-one==2.0\n")
    (missing, other) = machine.packages()
    assert (missing.level, other.level) == ("warn", "warn")
    assert "no-such-package" in missing.message
    assert "another-one" not in missing.message + other.message, "an extra that nobody asked for"
    assert "numpy" in other.message
    assert "0.0.1" in other.message
    doctor.names[version("numpy")] = "2.4.0"
    case = "Other packages than the locked ones"
    doctor.sees("machine", case, "warn packages", "warn packages", NOTHING_SET)
    lock.unlink()
    (without,) = machine.packages()
    assert without.level == "warn"


def test_the_lock_pins_all_that_is_needed() -> None:
    pinned = machine.read_lock(machine.LOCK)
    assert len(machine.needed()) > 20
    assert set(machine.needed()) <= set(pinned)


def test_few_open_files(doctor: Doctor) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
        (low,) = machine.open_files()
        doctor.sees("machine", "Few open files", "fail open files", NOTHING_SET)
        resource.setrlimit(resource.RLIMIT_NOFILE, (600, hard))
        (tight,) = machine.open_files()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (low.level, tight.level) == ("fail", "warn")
    assert "ulimit" in low.mend


def broken() -> Iterator[Check]:
    """Registered by the test below: its second check fails in a way that nobody foresaw."""

    def bad() -> Iterator[Finding]:
        yield ok("first", "a word")
        raise RuntimeError("fhv_admin_secret")

    yield Check("second", bad)
    yield Check("third", lambda: iter([ok("third", "is still looked at")]))


def test_a_check_that_fails_itself_hides_nothing_and_tells_no_secret(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = EntryPoint("site", f"{__name__}:broken", program.GROUP)
    monkeypatch.setattr(program, "entry_points", lambda group: [entry])
    found = [each for each in doctor.findings("--site") if each["part"] == "site"]
    assert [(each["name"], each["level"]) for each in found] == [
        ("first", "ok"), ("second", "fail"), ("third", "ok"),
    ]  # fmt: skip
    assert "secret" not in str(found)


def test_checks_that_cannot_be_loaded(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("site", "no.such.module:checks", program.GROUP)
    monkeypatch.setattr(program, "entry_points", lambda group: [entry])
    found = doctor.findings("--site", "--coordinator")
    bad = {each["part"]: each for each in found if each["level"] == "fail"}
    assert "cannot be loaded" in bad["site"]["message"]
    assert "not installed" in bad["coordinator"]["message"]


def test_settings_say_whose_checks_are_wanted(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert program.chosen(coordinator=False, site=False) == []
    monkeypatch.setenv("FHV_DATABASE_URL", "x")
    assert program.chosen(coordinator=False, site=False) == ["coordinator"]
    monkeypatch.setenv("FHV_TOKEN", "x")
    assert program.chosen(coordinator=False, site=False) == ["coordinator", "site"]
    assert program.chosen(coordinator=False, site=True) == ["site"]


def test_what_others_send_steers_no_terminal() -> None:
    line = program.Line("site", Finding("x", "fail", "a\x1b[2Jb", "c\rd"))
    assert "\x1b" not in "".join(program.shown(line))
    assert CliRunner().invoke(program.doctor_app, ["--no-such"]).exit_code == 2
