"""What the pages are about: a real coordinator with a completed run, and everybody's tokens.

Run ``first`` is completed, by ``site-a`` and ``site-b``; ``second`` waits for their word;
``site-c`` is enrolled and takes part in nothing. A worker sums rounds and makes files of rows in a
thread.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psycopg
from psycopg import sql

from core.federation.plan import EmbeddingSpace
from core.receipts.opening import made_with
from core.wire.synthesis import Claim
from tests.api.support import a_plan
from tests.worker.real import DELTA, Federation, federation, issue
from worker import files
from worker.aggregation import carry_out
from worker.client import CoordinatorClient
from worker.config import SiteConfig, load_site
from worker.credentials import TOKEN_FILE
from worker.errors import ApiProblem

SPACE = {
    "name": "digits",
    "backbone": "none",
    "weights_digest": "sha256:" + "0" * 64,
    "preprocessing": "none",
    "dim": 6,
    "classes": ["a", "b", "c"],
}
SITES = {"site-a": "hospital-a/inpatients", "site-b": "hospital-b/all", "site-c": "hospital-c/all"}
_CODE = re.compile(r"\b[0-9A-Z]{5}(?:-[0-9A-Z]{5}){4}\b")  # of a page; each is another one here
_WAITING = (
    "SELECT id FROM enrolments "
    "WHERE redeemed_at IS NOT NULL AND decision IS NULL AND wanted IS NULL"
)
_CLIENT = """
[site]
state_dir = "{state}"
[[client]]
name = "{name}"
data = "{data}"
unit = "patient"
population = "{population}"
max_epsilon = 8.0
delta = 1e-5
min_noise_multiplier = 0.1
"""


class World:
    """``folder`` has what pages name by absolute paths: var, data, backup, etc."""

    def __init__(self, fed: Federation, folder: Path) -> None:
        self.fed = fed
        self.folder = folder
        for name in ("data", "backup", "etc"):
            (folder / name).mkdir()
        (folder / "etc" / "pepper").write_text(fed.settings.pepper.decode())
        fed.operator.create_space(EmbeddingSpace.model_validate(SPACE))
        for name, population in SITES.items():
            self._enrol(name, population)
        sites = {name: self._site(name) for name in ("site-a", "site-b")}
        run = fed.start("first", *sites, space="digits", privacy={"unit": "patient"})
        fed.complete(run, sites, rounds=2)
        rules = {"quorum": 2, "deadline_s": 600.0, "lease_s": 300.0, "max_attempts": 5}
        plan = a_plan(
            "second", space="digits", round=rules, privacy={"epsilon": 2.0, "unit": "patient"}
        )
        second = fed.operator.create_run(plan, tuple(sites))
        fed.operator.start_run(str(second["id"]))
        self.tokens = {
            scope: issue(fed.settings, scope) for scope in ("admin", "scientist", "auditor")
        }
        rows = fed.operator.synthesize_table({"run": "first", "n": 400, "format": "parquet"})
        self.rows = rows.body

    def _enrol(self, name: str, population: str) -> None:
        made = self.fed.operator.enrol_client(
            name=name, space="digits", site=name, population=population, unit="patient",
            managed=False, epsilon=8.0, delta=DELTA,
        )  # fmt: skip
        assert made.token is not None
        self.fed.ids[name], self.fed.tokens[name] = str(made.client["id"]), made.token
        draw = np.random.default_rng(len(population))
        y = draw.integers(0, 3, 60)
        x = np.eye(3, 6)[y] + 0.2 * draw.normal(size=(60, 6))
        unit = np.repeat(np.arange(30), 2)
        np.savez(self.folder / "data" / f"{name}.npz", x=x.astype(np.float32), y=y, unit=unit)

    def _site(self, name: str) -> SiteConfig:
        """As its page has it, but that nobody is asked: the state folder is the same."""
        state = self.folder / ("var" if name == "site-a" else f"var-{name}")
        path = self.folder / f"{name}.toml"
        data = self.folder / "data" / f"{name}.npz"
        path.write_text(_CLIENT.format(state=state, name=name, data=data, population=SITES[name]))
        return load_site(path)

    def replaced(self, text: str) -> str:
        """Where the text says where things are: here."""
        here = {
            "postgresql://fhv@db/fhv": self.fed.database_url,
            "file:///var/lib/fedhypevae/objects": self.fed.settings.object_store_url,
            "https://coordinator.example": self.fed.url,
            "http://127.0.0.1:8000": self.fed.url,
            "/var/lib/fedhypevae": str(self.folder / "var"),
            "/etc/fedhypevae": str(self.folder / "etc"),
            "/backup/": f"{self.folder}/backup/",
            "/data/": f"{self.folder}/data/",
        }
        for there, place in here.items():
            text = text.replace(there, place)
        return _CODE.sub(lambda _: self._code(), text)

    def _code(self) -> str:
        """A one-time code for ``site-a``; what is redeemed with it is approved at once."""
        answer = httpx.post(
            f"{self.fed.url}/v1/enrolments",
            json={"existing": "site-a"},
            headers={"Authorization": f"Bearer {self.tokens['admin']}"},
        )
        return str(answer.raise_for_status().json()["code"])

    def furnish(self, sandbox: Path, page: str) -> None:
        """What readers are said to have already."""
        if page == "README.md":
            (sandbox / "space.json").write_text(json.dumps(SPACE))
        if page == "docs/how-to/auditor.md":
            (sandbox / "rows.parquet").write_bytes(self.rows)
        (self.folder / "var" / TOKEN_FILE).unlink(missing_ok=True)  # of an earlier page
        shutil.rmtree(self.folder / "var.lost", ignore_errors=True)
        shutil.rmtree(self.folder / "backup", ignore_errors=True)
        (self.folder / "backup").mkdir()


class Worker:
    """A worker of the queues ``coordinator`` and ``synthesis``, and an administrator who approves
    the enrolments of known clients. Both ask the database.
    """

    def __init__(self, fed: Federation) -> None:
        self._fed = fed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self.failed: BaseException | None = None

    def __enter__(self) -> Worker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)
        assert self.failed is None, self.failed

    def _work(self) -> None:
        try:
            with (
                CoordinatorClient(self._fed.url, issue(self._fed.settings, "worker")) as client,
                psycopg.connect(self._fed.database_url, autocommit=True) as connection,
            ):
                admin = {"Authorization": f"Bearer {issue(self._fed.settings, 'admin')}"}
                while not self._stop.wait(0.1):
                    for (waiting,) in connection.execute(_WAITING).fetchall():
                        url = f"{self._fed.url}/v1/enrolments/{waiting}/approve"
                        httpx.post(url, json={}, headers=admin).raise_for_status()
                    for table in ("jobs", "synthesis_jobs"):
                        ready = sql.SQL("SELECT id FROM {} WHERE state = 'ready'")
                        found = connection.execute(ready.format(sql.Identifier(table)))
                        for (job,) in found.fetchall():
                            self._do(client, table, str(job))
        except BaseException as error:
            self.failed = error

    def _do(self, client: CoordinatorClient, table: str, job: str) -> None:
        store = self._fed.settings.object_store_url
        try:
            if table == "jobs":
                carry_out(client.claim_job(job), client, store, stop=self._stop)
            else:
                claimed: Any = client.claim_file(job, Claim(made_with=made_with()))
                files.make(claimed, client, store, stop=self._stop)
        except ApiProblem as refused:
            if refused.status != 409:  # cancelled meanwhile, or not due
                raise


@contextmanager
def world(database_url: str, folder: Path) -> Iterator[World]:
    with federation(database_url, folder) as fed:
        made = World(fed, folder)
        with Worker(fed):
            yield made
