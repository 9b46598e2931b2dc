"""The console script: fast, lazy, and clear when a command cannot be loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from core import cli

ROOT = Path(__file__).resolve().parents[2]


def _run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=60
    )


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from core import cli\n"
        "try:\n cli.main(['--help'])\n"
        "except SystemExit as end:\n assert end.code == 0\n"
        "heavy = {'torch', 'opacus', 'fastapi', 'sqlalchemy', 'celery', 'numpy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = _run("-c", code)
    assert done.returncode == 0, done.stderr
    for name in ("serve", "token", "db", "worker", "agent", "demo"):
        assert f"  {name} " in done.stdout


def test_no_command_shows_the_help_and_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([])
    assert end.value.code == 2
    assert "Commands:" in capsys.readouterr().out


def test_an_unknown_command_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["sreve"])
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert "'sreve'" in message
    assert "serve" in message


def test_a_command_whose_package_is_broken_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    entry = EntryPoint("ghost", "no_such_package.cli:app", cli.GROUP)
    with pytest.raises(SystemExit) as end:
        cli.load(entry)
    assert end.value.code == 1
    message = capsys.readouterr().err
    assert "'ghost'" in message
    assert "no_such_package" in message


def test_every_registered_command_loads() -> None:
    for name, entry in cli.commands().items():
        assert callable(cli.load(entry)), name


def test_our_benchmarks_package_wins_over_the_one_that_a_dependency_installs(
    tmp_path: Path,
) -> None:
    code = (
        "from core import cli; cli.prefer_checkout()\nimport benchmarks; print(benchmarks.__file__)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(ROOT / "benchmarks" / "__init__.py")
