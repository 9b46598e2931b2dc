"""The console script: every registered command loads, helps and completes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from core import cli, completion
from tests.commands import ROOT, registered

NAMES = [entry.name for entry in registered(cli.GROUP)]


@pytest.fixture(autouse=True)
def _checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "entry_points", registered)


def fedhypevae(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.commands", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_every_command_is_named_and_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert set(NAMES) <= set(cli.SUMMARIES)
    for name in NAMES:
        assert f"  {name} " in shown
        with pytest.raises(SystemExit) as ended:
            cli.main([name, "--help"])
        assert ended.value.code == 0
        assert "Usage: fedhypevae" in capsys.readouterr().out


def _leaves(command: object, name: str) -> list[tuple[str, object]]:
    below = getattr(command, "commands", None)
    if not below:
        return [(name, command)]
    return [leaf for key, each in below.items() for leaf in _leaves(each, f"{name} {key}")]


NEW = ("up", "down", "status", "doctor", "admin", "run", "synthesize")


def test_commands_for_people_show_an_example_of_each() -> None:
    found = {entry.name: entry for entry in registered(cli.GROUP)}
    for name in NEW:
        for path, command in _leaves(typer.main.get_command(found[name].load()), name):
            text = " ".join(str(getattr(command, "help", "")).split())
            assert f"fedhypevae {path}" in text, f"'fedhypevae {path} --help' has no example"


def test_wrong_names_are_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (["no-such"], ["--show-completion", "tcsh"], ["--show-completion", "bash", "x"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(wrong)
        assert ended.value.code == 2
        assert "fedhypevae: " in capsys.readouterr().err


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_completion_scripts(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--show-completion", shell])
    assert ended.value.code == 0
    script = capsys.readouterr().out
    assert f"{completion.VARIABLE}=complete_{shell}" in script


def test_the_users_own_shell_is_the_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("SHELL", "/usr/bin/fish")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SystemExit):
        cli.main(["--install-completion"])
    written = tmp_path / ".config/fish/completions/fedhypevae.fish"
    assert str(written) in capsys.readouterr().out
    assert completion.VARIABLE in written.read_text()


def completed(words: str, at: int) -> list[str]:
    found = fedhypevae(
        **{completion.VARIABLE: "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(at)}
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.split()


def test_commands_of_all_packages_are_completed() -> None:
    assert completed("fedhypevae ", 1) == [name for name in cli.SUMMARIES if name in NAMES]
    assert completed("fedhypevae admin ", 2)[:3] == ["clients", "tokens", "spaces"]
    assert completed("fedhypevae synthesize --lab", 2) == ["--labels"]


# Never skipped by .ci/run, which is a script of bash itself.
@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
def test_bash_completes_with_the_script(tmp_path: Path) -> None:
    """The script, in the shell that it is for."""
    program = tmp_path / "fedhypevae"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tests.commands "$@"\n')
    program.chmod(0o755)
    asked = (
        'eval "$(fedhypevae --show-completion bash)"; COMP_WORDS=(fedhypevae do); COMP_CWORD=1; '
        '_fedhypevae_completion fedhypevae; echo "${COMPREPLY[*]}"'
    )
    found = subprocess.run(
        ["bash", "-c", asked],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert found.stdout.split() == ["down", "doctor"], found.stderr


def test_completing_a_name_imports_no_package() -> None:
    """A shell asks at every key: only the command that is being typed may cost time."""
    code = (
        "import sys; from tests import commands; from core import cli\n"
        "cli.entry_points = commands.registered\n"
        "try:\n    cli.main([])\nexcept SystemExit: pass\n"
        "print(sorted({n.partition('.')[0] for n in sys.modules} & {'api', 'worker', 'httpx'}))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, completion.VARIABLE: "complete_bash", "COMP_WORDS": "fedhypevae a",
             "COMP_CWORD": "1"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert found.stdout.split("\n")[-2] == "[]", found.stdout + found.stderr
