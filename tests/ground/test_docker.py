"""The container files name only what exists. They are not built or run here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from api.config import Settings
from core import cli
from worker.config import WorkerSettings

DOCKER = Path(__file__).resolve().parents[2] / "docker"


def _services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    return found


def test_every_copied_path_exists() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    sources = [
        name
        for line in re.findall(r"^COPY (.+)$", text, flags=re.MULTILINE)
        for name in line.split()[:-1]
    ]
    assert "requirements.lock" in sources
    assert [name for name in sources if not (DOCKER.parent / name).exists()] == []


def test_every_command_exists() -> None:
    ours = [s["command"] for s in _services().values() if "fedhypevae" in str(s.get("image"))]
    assert len(ours) == 6
    assert {command[0] for command in ours} <= set(cli.commands())


def test_every_setting_is_read_by_a_program() -> None:
    known = {
        f"FHV_{name.upper()}" for name in (*Settings.model_fields, *WorkerSettings.model_fields)
    }
    used = {
        name
        for service in _services().values()
        for name in service.get("environment", {})
        if name.startswith("FHV_")
    }
    assert used
    assert used <= known
