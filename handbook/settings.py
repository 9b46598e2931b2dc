"""The reference of settings: environment, a site's file, a run's plan. Made of the models."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic_settings import BaseSettings

from api.config import Settings
from core.federation.plan import EmbeddingSpace, Plan
from handbook import schema
from handbook.text import cell, code, table
from worker.config import SiteConfig, WorkerSettings

# What the models do not say themselves.
_WORDS = {
    "env": "`dev` allows what only a laptop may have: a built-in pepper, a store that forgets.",
    "database_url": "`postgresql://user:password@host/database`. A secret.",
    "token_pepper": "16 or more random characters: tokens are kept as an HMAC under it, signing "
    "keys sealed. A secret; whoever changes it makes all tokens void.",
    "log_level": "Least level of log lines.",
    "host": "Address to listen at.",
    "port": "Port to listen at.",
    "broker_url": "`redis://…` of Valkey or Redis. May hold a password. The coordinator does "
    "without: then only agents and pollers get work.",
    "object_store_url": "`file:///folder` or `s3://bucket/prefix`: updates and models.",
    "job_lease_s": "A worker that is silent for so long has lost its job.",
    "job_attempts": "After so many a job has failed.",
    "max_json_bytes": "Largest JSON body that is read.",
    "coordinator_url": "Where the coordinator is: `https://…`.",
    "token": "Bearer token. A secret.",
    "token_file": "A file that holds the token, read before each request. Unset: what `agent "
    "enrol` has kept in the state folder.",
    "site_config": "Path of the site's TOML file.",
    "device": "`auto`, `cpu` or `cuda:N`; `auto` takes the first GPU if there is one.",
    "gradients": "How clipped sums are made; `opacus` writes out each gradient: slow, for "
    "cross-checks.",
    "micro_batch": "Records worked on at once, which bounds memory. Unset: chosen.",
    "precision": "Of products in the network's layers; norms and sums stay float64.",
    "otlp_endpoint": "Where spans go: OTLP over HTTP, `http://collector:4318`. Unset: nowhere.",
    "state_dir": "The site's secret, its ledger, and updates until they are delivered. Mode 0700.",
    "name": "The client's name at the coordinator.",
    "data": "File of records: npz, npy or Parquet with `x`, `y` and, for patients, `unit`.",
    "unit": "What privacy is for: one record, or all records of one patient.",
    "population": "Whose records these are; all clients of one population share one account.",
    "max_epsilon": "Over everything ever spent on this population. Orders beyond are refused.",
    "delta": "At which ε is meant.",
    "min_noise_multiplier": "Orders with less noise are refused.",
    "max_sample_rate": "Orders that use more of the records at once are refused.",
    "space_digest": "Accept one embedding space only (`GET /v1/spaces` says its digest).",
    "consent": "`policy`: these limits are the answer. `ask`: a person approves each run.",
    "peers": "File of keys of the other clients in secure sums, pinned by your people: "
    "`fedhypevae agent identity peers`. Without it, plans with secure sums are refused for good.",
    "max_epsilon_everybody": "Refuse runs of secure sums whose ε against everybody else together "
    "is larger.",
    "site": "Table `[site]`.",
    "client": "Tables `[[client]]`, one or more.",
}


class NoWords(LookupError):
    """A setting of which nobody has said what it is for."""


def environment() -> str:
    """All variables ``FHV_*``."""
    head = (
        "# Settings\n\nAll are environment variables; a file of mode 0600 is a good place for "
        "them. A value out of bounds stops the program with a line that names the variable.\n"
    )
    return "\n".join(
        [
            head,
            "## The coordinator\n",
            "Read by `fedhypevae serve`; `db`, `token` and `keys` need the first four.\n",
            _variables(Settings),
            "## Workers, agents, data scientists\n",
            "Read by `fedhypevae worker`, `agent` and `worker.scientist`; the site sets them.\n",
            _variables(WorkerSettings),
        ]
    )


def _variables(model: type[BaseSettings]) -> str:
    rows = [
        (code(f"FHV_{name.upper()}"), kind, default, words)
        for name, kind, default, words in _fields(model.model_json_schema())
    ]
    return table(("variable", "type", "default", ""), rows)


def _fields(part: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    needed = set(part.get("required", []))
    rows = []
    for name, field in part["properties"].items():
        words = field.get("description") or _WORDS.get(name)
        if words is None:
            raise NoWords(f"{name}: give its Field a description, or handbook/settings.py a line")
        shown = schema.default(field, required=name in needed)
        rows.append((name, schema.described(field), shown, cell(words)))
    return rows


def site_file() -> str:
    """The site's TOML."""
    whole = SiteConfig.model_json_schema()
    about = (
        "# The site's file\n\n`FHV_SITE_CONFIG` names it. It is the site's own policy: nothing "
        "that a coordinator sends can change it. [Run a site](../how-to/site.md) has an example; "
        "`fedhypevae agent check` names what is wrong with one.\n"
    )
    parts = [about]
    for title, name in (("`[site]`", "SiteSection"), ("`[[client]]`", "ClientConfig")):
        rows = [(code(n), k, d, w) for n, k, d, w in _fields(whole["$defs"][name])]
        parts += [f"## {title}\n", table(("key", "type", "default", ""), rows)]
    return "\n".join(parts)


def plan() -> str:
    """The embedding space and the plan of a run, section by section."""
    about = (
        "# Spaces and plans\n\nBoth are public, and immutable once a run is made of them. "
        "[How to run a federation](../how-to/administrator.md) shows small ones.\n"
    )
    parts = [
        about,
        "## Embedding space\n",
        _model(EmbeddingSpace),
        "## Plan\n",
        _model(Plan),
    ]
    whole = Plan.model_json_schema()
    for name, field in Plan.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            part = whole["$defs"][inner.__name__]
            parts += [f"## plan.{name}\n", f"{cell(part.get('description', ''))}\n", _table(part)]
    return "\n".join(parts)


def _model(model: type[BaseModel]) -> str:
    return _table(model.model_json_schema())


def _table(part: dict[str, Any]) -> str:
    return table(("field", "type", "default", ""), schema.fields(part))
