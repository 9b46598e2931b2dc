"""``fedhypevae agent check``: everything that would stop a round at this site, found beforehand."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from core.errors import DataError
from core.federation.plan import EmbeddingSpace, digest_of
from core.privacy.premise import resting
from worker.agent.identity import configured
from worker.agent.site import Site
from worker.client import CoordinatorClient
from worker.config import ClientConfig, SiteConfig, SiteSection, WorkerSettings
from worker.errors import ConfigError, WorkerError

_SHOWN_ROWS = 200


@dataclass
class Report:
    """Lines for a person. ``problems`` is empty if the client is ready."""

    facts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def check_client(
    config: ClientConfig,
    settings: WorkerSettings,
    contract: EmbeddingSpace | None,
) -> Report:
    """Check state folder, space and records of one client. Nothing is spent or sent."""
    report = Report()
    try:
        with Site.open(settings.require_site().state_dir) as site:
            spent = site.ledger.epsilon(config.population, config.delta)
            rests = resting(e.event.collude for e in site.ledger.entries(config.population))
            report.facts.append(
                f"spent epsilon {spent:.4g} of {config.max_epsilon:g} at delta {config.delta:g} "
                f"(population {config.population}, unit {config.unit}){rests}"
            )
    except WorkerError as error:
        report.problems.append(str(error))
    space = contract
    if space is None:
        try:
            space = _space_of(config, settings)
        except WorkerError as error:
            report.problems.append(
                f"the embedding space is unknown: {error} Or give it with --space FILE."
            )
            return report
    if config.space_digest is not None and digest_of(space) != config.space_digest:
        report.problems.append(
            f"space {space.name!r} has digest {digest_of(space)}, "
            f"pinned is {config.space_digest}. Check space_digest."
        )
    _records(config, space, report)
    return report


def _records(config: ClientConfig, space: EmbeddingSpace, report: Report) -> None:
    from core import data

    try:
        dataset = data.load(config.data, space, unit=config.unit)
        report.facts.append(
            f"{len(dataset)} records of {len(dataset.unit_ids)} units ({config.unit}), "
            f"{space.dim} wide, in {config.data}"
        )
    except DataError as error:
        report.problems.append(str(error))
        return
    bad = dataset.invalid_rows
    if bad:
        listed = ", ".join(str(row) for row in bad[:_SHOWN_ROWS])
        more = f" and {len(bad) - _SHOWN_ROWS} more" if len(bad) > _SHOWN_ROWS else ""
        report.problems.append(
            f"{len(bad)} records hold NaN, infinity or only zeros and would contribute nothing: "
            f"rows {listed}{more} (the first row is 0). Recompute or remove them."
        )


def _space_of(config: ClientConfig, settings: WorkerSettings) -> EmbeddingSpace:
    """The space in which the coordinator has enrolled the client."""
    token = settings.token_source(settings.require_site().state_dir)
    with CoordinatorClient(settings.coordinator_url, token) as coordinator:
        me = coordinator.client("me")
        only = SiteConfig(site=SiteSection(state_dir=Path()), client=(config,))
        configured(me, only)
        return _as_space(coordinator.space(str(me["space"])), str(me["space"]))


def read_space(path: Path) -> EmbeddingSpace:
    """An embedding space from a JSON file. Raises ``ConfigError``."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the space from {path}: {error}.", field="space") from None
    return _as_space(raw, str(path))


def _as_space(raw: Any, where: str) -> EmbeddingSpace:
    known = raw if isinstance(raw, dict) else {}
    wanted = {key: value for key, value in known.items() if key in EmbeddingSpace.model_fields}
    try:
        return EmbeddingSpace.model_validate(wanted)
    except ValidationError as error:
        raise ConfigError(
            f"{where} is no embedding space:",
            problems=[
                f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
                for fault in error.errors(include_url=False)
            ],
        ) from None
