"""``fedhypevae agent report``: a run's published model against this site's own records.

The model is downloaded, the file is written here, and nothing is sent. It is made of raw records
without noise: NOT PRIVATE, and stamped so.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from core import data
from core.errors import DataError, DomainError
from core.federation.plan import RunSpec
from core.report.local import Local, measure
from core.report.local_page import html
from core.synthesis.sampler import Generator
from core.training.holdout import held_out
from worker.agent.identity import accounts
from worker.answers import JsonObject
from worker.client import CoordinatorClient
from worker.config import ClientConfig, SiteConfig
from worker.errors import ConfigError, UnexpectedAnswer


def write_report(
    coordinator: CoordinatorClient,
    site_config: SiteConfig,
    run: str,
    out: Path,
    *,
    client: str | None = None,
    unused: Path | None = None,
) -> Local:
    """Measure and write ``out``, for its owner only. ``run``: id or name; ``unused``: a file of
    records that the run has never seen. Raises a ``WorkerError`` that says what to mend.
    """
    client_id, config = _one(coordinator, site_config, client)
    found = _run(coordinator, run)
    spec = _spec(found)
    model = coordinator.model(str(found["id"]))
    files = [
        coordinator.download(str(model[role]["digest"]), size=int(model[role]["size"]))
        for role in ("frame", "weights")
    ]
    try:
        generator = Generator.load(files[0], files[1], spec)
    except DomainError as error:
        raise UnexpectedAnswer(f"the model of {run!r} cannot be read: {error}") from None
    records = _records(config, config.data, spec)
    others = None if unused is None else _records(config, unused, spec)
    try:
        local = measure(generator, config.name, records, held_out(spec, client_id, records), others)
    except ValueError as error:
        raise ConfigError(f"{config.name}: {error}.", field="data") from None
    _write(out, html(local, spec, str(found["name"]), int(model["round"])))
    return local


def _one(
    coordinator: CoordinatorClient, site_config: SiteConfig, client: str | None
) -> tuple[str, ClientConfig]:
    found = accounts(coordinator, site_config, client)
    if len(found) > 1:
        names = ", ".join(config.name for _, config in found)
        raise ConfigError(
            f"a report is of one client; this token speaks for {names}.",
            field="client",
            mend="Choose one with --client.",
        )
    return found[0]


def _run(coordinator: CoordinatorClient, id_or_name: str) -> JsonObject:
    query: dict[str, str | int] = {"limit": 200}
    while True:
        page = coordinator.runs(**query)
        for item in page["items"]:
            if id_or_name in (item["id"], item["name"]):
                found: JsonObject = item
                return found
        if page["next"] is None:
            raise ConfigError(
                f"there is no run {id_or_name!r} in which this client takes part.", field="run"
            )
        query["after"] = str(page["next"])


def _spec(run: JsonObject) -> RunSpec:
    try:
        spec = RunSpec.model_validate(run["spec"])
    except ValidationError as error:
        raise UnexpectedAnswer(
            f"the specification of run {run['name']!r} is not understood here: "
            f"{error.error_count()} faults.",
            mend="Install the release that the coordinator runs.",
        ) from None
    if spec.digest != run["spec_digest"]:
        raise UnexpectedAnswer(f"the specification of run {run['name']!r} is not its digest's.")
    return spec


def _records(config: ClientConfig, path: Path, spec: RunSpec) -> data.EmbeddingDataset:
    try:
        return data.load(path, spec.space, unit=config.unit)
    except DataError as error:
        raise ConfigError(f"{path}: {error}", field="data") from None


def _write(path: Path, page: str) -> None:
    """In one piece, readable by its owner only."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".report-")  # mode 0600
    except OSError as error:
        raise ConfigError(f"cannot write to {path.parent}: {error}.", field="out") from None
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(page)
        Path(name).replace(path)
    except OSError as error:
        with suppress(FileNotFoundError):
            Path(name).unlink()
        raise ConfigError(f"cannot write {path}: {error}.", field="out") from None
