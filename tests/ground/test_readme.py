"""What the README tells people to type fits the programs as they are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import typer
import yaml

from api.config import Settings
from core import cli
from core.federation.plan import Plan
from core.synthesis.request import SynthesisRequest
from worker.config import WorkerSettings, load_site

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()


def _blocks(language: str) -> str:
    return "\n".join(re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL))


def test_it_opens_with_the_two_commands() -> None:
    first = re.search(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    assert first is not None
    assert [line.split("#")[0].split() for line in first.group(1).splitlines()] == [
        ["make", "demo"],
        ["make", "test"],
    ]
    assert README.index("make demo") < 100


def test_every_body_is_one_that_the_coordinator_takes() -> None:
    calls = re.findall(
        r"(/v1/\w+|/synthesize)(?: -o \S+)? -d '(\{.*?\})'", _blocks("sh"), re.DOTALL
    )
    assert [path for path, _ in calls] == ["/synthesize"]
    for _, body in calls:
        SynthesisRequest.model_validate(json.loads(body))


def test_the_plan_is_one_that_the_coordinator_takes() -> None:
    plan = Plan.model_validate(yaml.safe_load(_blocks("yaml")))
    assert f"run pause {plan.name} " in README


def test_the_sites_file_is_one_that_the_agent_reads(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text(_blocks("toml"))
    assert load_site(path).client[0].name == "site-a"


def test_every_command_exists() -> None:
    used = set(re.findall(r"fedhypevae ([a-z]+)(?: ([a-z]+(?:-[a-z]+)*))?", README))
    assert {name for name, _ in used} == set(cli.commands()) - {"demo"}
    for name, sub in used:
        app = cli.commands()[name].load()
        known = {command.name or command.callback.__name__ for command in app.registered_commands}
        known |= {group.name for group in app.registered_groups}
        assert isinstance(app, typer.Typer)
        takes_arguments = known == {name}  # one command, no subcommands
        assert not sub or takes_arguments or sub in known, f"fedhypevae {name} {sub}"


def test_every_setting_is_read_by_a_program() -> None:
    fields = (*Settings.model_fields, *WorkerSettings.model_fields)
    known = {f"FHV_{name.upper()}" for name in fields}
    assert set(re.findall(r"FHV_[A-Z_]+[A-Z]", README)) <= known


def test_the_python_example_is_python() -> None:
    compile(_blocks("python"), "README.md", "exec")


def test_every_linked_file_exists() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    root = Path(__file__).resolve().parents[2]
    assert [link for link in links if not (root / link).exists()] == []


def test_every_test_and_file_that_the_privacy_page_names_exists() -> None:
    """A trap is only as good as the test that guards it: none may be named that is gone."""
    root = Path(__file__).resolve().parents[2]
    page = (root / "docs" / "privacy.md").read_text()
    files = "\n".join(path.read_text() for path in root.glob("tests/**/*.py"))
    tests = set(re.findall(r"`(test_\w+)`", page))
    assert len(tests) > 15
    assert [name for name in tests if f"def {name}(" not in files] == []
    paths = set(re.findall(r"`((?:api|core|tests|worker)/[\w/.]+)`", page))
    assert [path for path in paths if not (root / path).exists()] == []
