"""Programs of Debian that check or run the deployment's files. Without one, a test is skipped,
unless ``FHV_REQUIRE_DEPLOY_TOOLS`` is set, as in the gate of this repository.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
_PACKAGES = {"nginx": "nginx", "caddy": "caddy", "promtool": "prometheus"}


def tool(name: str) -> str:
    """The program's path."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is not None:
        return found
    if os.environ.get("FHV_REQUIRE_DEPLOY_TOOLS"):
        pytest.fail(f"{name} is not installed, and FHV_REQUIRE_DEPLOY_TOOLS is set")
    pytest.skip(f"{name} is not installed: apt-get install {_PACKAGES[name]}")


def checked(*command: str | Path, **options: object) -> str:
    """Run a checker; its words, or a failure with them."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout + done.stderr)
