"""Finished cells of one configuration in one JSON file, written whole after each job."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.utility.records import Records
from benchmarks.utility.splits import Settings
from core.federation.plan import Plan, PrivacyPlan, digest_of
from core.storage import sha256_of

CODE_VERSION = 5  # raise when a method changes: cells of another version are not taken up

Cells = dict[str, dict[str, Any]]


def configuration(data: Records, settings: Settings) -> dict[str, Any]:
    """All that a cell depends on beside its own name; ours on the plan's defaults, too."""
    always = PrivacyPlan(epsilon=1.0, delta=1e-4, n_max=1)
    defaults = Plan(name="defaults", space="any", privacy=always, purpose="simulation")
    digests = {
        name: sha256_of(column.tobytes())
        for name, column in (
            ("x", data.x), ("y", data.y), ("groups", data.groups), ("domain", data.domain),
        )
        if column is not None
    }  # fmt: skip
    terms = asdict(settings)
    if settings.noise == "local":  # nothing depends on a secure sum's terms then
        del terms["drop"], terms["collude"]
    else:
        terms["sums"] = "of plans that say so"  # the server knows the noise that is in them
    return {
        **terms, **digests, "data": data.name, "unit": data.unit,
        "version": CODE_VERSION, "defaults": digest_of(defaults),
    }  # fmt: skip


class Store:
    """``cells`` by key; a configuration of a benchmark has its own file, named by its digest."""

    def __init__(
        self, folder: Path, configuration: Mapping[str, Any], bench: str = "utility"
    ) -> None:
        text = json.dumps(configuration, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        name = f"{bench}-{configuration['data']}-{configuration['noise']}-{digest}.json"
        self.path = folder / name
        self.configuration = dict(configuration)
        self.cells: Cells = {}
        if self.path.is_file():
            self.cells = json.loads(self.path.read_text())["cells"]

    def add(self, cells: Mapping[str, dict[str, Any]]) -> None:
        """All cells of one job at once: a job is never half there."""
        self.cells.update(cells)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        content = {"NOT PRIVATE": "seeded noise", **self.configuration, "cells": self.cells}
        part.write_text(json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n")
        part.replace(self.path)
