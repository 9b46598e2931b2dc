"""Settings of workers and agents (``FHV_*``, or files by ``FHV_*_FILE``) and the site's TOML file.

The environment says where the coordinator is and which token to use; the TOML says where a
site's records are and what may be done with them. The second is the site's own policy: nothing
that a coordinator sends can change it. Errors name the key and how to mend it.
"""

from __future__ import annotations

import os
import tomllib
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import SettingsConfigDict

from core import tracing
from core.federation.plan import Name, Sha256
from core.secret_files import FileSettings, SettingFileError
from core.training.compute import Compute, Engine, Precision
from worker.credentials import TOKEN_FILE, TokenFile, TokenSource
from worker.errors import ConfigError

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

_MEND = {
    "coordinator_url": "Set FHV_COORDINATOR_URL, for example https://coordinator.example:8000.",
    "token": "Set FHV_TOKEN, or FHV_TOKEN_FILE to a file that holds it; a site enrols with a code: "
    "fedhypevae agent enrol CODE.",
    "token_file": "Set FHV_TOKEN_FILE to a file that holds the token.",
    "site_config": "Set FHV_SITE_CONFIG to the path of the site's TOML file.",
    "device": "Set FHV_DEVICE to auto, cpu or cuda:N.",
    "gradients": "Set FHV_GRADIENTS to ghost or opacus.",
    "micro_batch": "Set FHV_MICRO_BATCH to a number of records from 1 to 65536, or leave it out.",
    "precision": "Set FHV_PRECISION to float32 or bfloat16.",
    "log_level": "Set FHV_LOG_LEVEL to debug, info, warning or error.",
    "broker_url": "Set FHV_BROKER_URL, for example redis://127.0.0.1:6379/0.",
    "otlp_endpoint": "Set FHV_OTLP_ENDPOINT (or OTEL_EXPORTER_OTLP_ENDPOINT), for example http://collector:4318.",
    "object_store_url": "Set FHV_OBJECT_STORE_URL to the coordinator's store (file:///... or s3://...).",
}


class WorkerSettings(FileSettings):
    """From the environment. Which of the optional ones are needed depends on the command."""

    model_config = SettingsConfigDict(
        env_prefix="FHV_", env_ignore_empty=True, extra="ignore", frozen=True
    )

    coordinator_url: str = "http://127.0.0.1:8000"
    token: SecretStr | None = None
    token_file: Path | None = None
    site_config: Path | None = None
    broker_url: SecretStr | None = None  # may hold a password
    object_store_url: str | None = None
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda:[0-9]+)$")] = "auto"
    gradients: Engine = "ghost"
    micro_batch: Annotated[int, Field(ge=1, le=65_536)] | None = None
    precision: Precision = "float32"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    otlp_endpoint: str | None = Field(
        default_factory=lambda: os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"), validate_default=True
    )

    @classmethod
    def by_file(cls) -> list[str]:
        """All but the token's: its file is read again and again, since it may be replaced
        (``worker.credentials``).
        """
        return [name for name in super().by_file() if not name.startswith("token")]

    @field_validator("coordinator_url")
    @classmethod
    def _is_http(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be http://host[:port] or https://host[:port]")
        if parts.username is not None or parts.password is not None:
            raise ValueError("must not hold a user name or password (it is logged)")
        return value.rstrip("/")

    @field_validator("otlp_endpoint")
    @classmethod
    def _collector(cls, value: str | None) -> str | None:
        return tracing.usable(value)

    @field_validator("token")
    @classmethod
    def _is_printable(cls, value: SecretStr | None) -> SecretStr | None:
        text = "" if value is None else value.get_secret_value().strip()
        if not text:
            return None
        if not text.isascii() or not text.isprintable() or " " in text:
            raise ValueError("must be one line of printable ASCII without spaces")
        return SecretStr(text)

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @property
    def compute(self) -> Compute:
        """How training rounds are computed here."""
        return Compute(
            device=self.device,
            engine=self.gradients,
            micro_batch=self.micro_batch,
            precision=self.precision,
        )

    @property
    def plain_http_to_elsewhere(self) -> bool:
        """True if the token would cross a network unencrypted."""
        parts = urlsplit(self.coordinator_url)
        return parts.scheme == "http" and parts.hostname not in LOOPBACK

    def token_source(self, state_dir: Path | None = None) -> TokenSource:
        """FHV_TOKEN; else FHV_TOKEN_FILE; else what ``agent enrol`` has kept in the state folder.
        Raises ``ConfigError`` if there is none.
        """
        if self.token is not None:
            text = self.token.get_secret_value()
            return lambda: text
        found = self.token_kept(state_dir)
        if found is None or (self.token_file is None and not found.exists()):
            raise ConfigError("no token is set.", field="token", mend=_MEND["token"])
        found()  # what cannot be read is said now, not at the first request
        return found

    def token_kept(self, state_dir: Path | None = None) -> TokenFile | None:
        """The file that holds the token, or would; None if there is none to be named."""
        if self.token_file is not None:
            return TokenFile(self.token_file.expanduser().absolute())
        return None if state_dir is None else TokenFile(state_dir / TOKEN_FILE)

    def require_token(self) -> str:
        """The token as it is now, for a process that does not live long."""
        return self.token_source()()

    def require_broker_url(self) -> str:
        if self.broker_url is None or not self.broker_url.get_secret_value():
            raise ConfigError("no broker is set.", field="broker_url", mend=_MEND["broker_url"])
        return self.broker_url.get_secret_value()

    def require_object_store_url(self) -> str:
        if not self.object_store_url:
            raise ConfigError(
                "no object store is set.", field="object_store_url", mend=_MEND["object_store_url"]
            )
        return self.object_store_url

    def require_site(self) -> SiteConfig:
        if self.site_config is None:
            raise ConfigError(
                "no site configuration is set.", field="site_config", mend=_MEND["site_config"]
            )
        return load_site(self.site_config)


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SiteSection(_Table):
    """``[site]``."""

    state_dir: Path


class ClientConfig(_Table):
    """``[[client]]``: one client's records and the limits under which they may be used."""

    name: Name
    data: Path
    unit: Literal["record", "patient"]
    population: str = Field(min_length=1, max_length=200)
    max_epsilon: float = Field(gt=0, le=100)
    delta: float = Field(gt=0, lt=1)
    min_noise_multiplier: float = Field(gt=0)
    max_sample_rate: float = Field(default=1.0, gt=0, le=1)
    space_digest: Sha256 | None = None
    # Who says yes to a run's plan: these limits alone, or a person within them.
    consent: Literal["policy", "ask"] = "policy"
    # Keys of the other clients of secure sums, pinned by this site's people (``agent identity``).
    peers: Path | None = None
    # Of runs of secure sums: epsilon against everybody else together, without any premise.
    max_epsilon_everybody: float | None = Field(default=None, gt=0)


class SiteConfig(_Table):
    """One site: its state folder and its clients."""

    site: SiteSection
    client: tuple[ClientConfig, ...] = Field(min_length=1)

    @property
    def state_dir(self) -> Path:
        return self.site.state_dir

    def named(self, name: str) -> ClientConfig | None:
        return next((client for client in self.client if client.name == name), None)

    def require(self, name: str) -> ClientConfig:
        found = self.named(name)
        if found is None:
            names = ", ".join(client.name for client in self.client)
            raise ConfigError(
                f"the site configuration has no client {name!r} (it has: {names}).",
                field="client.name",
                mend="Add a [[client]] with this name or use that client's token.",
            )
        return found


def load_settings() -> WorkerSettings:
    """Settings from the environment; every fault in one ``ConfigError``."""
    try:
        return WorkerSettings()
    except SettingFileError as error:
        raise ConfigError("the environment has unusable settings:", problems=[str(error)]) from None
    except ValidationError as error:
        problems = []
        for fault in error.errors(include_input=False, include_url=False):
            key = str(fault["loc"][0])
            problems.append(f"FHV_{key.upper()}: {fault['msg']}. {_MEND.get(key, '')}".rstrip())
        raise ConfigError("the environment has unusable settings:", problems=problems) from None


def load_site(path: Path) -> SiteConfig:
    """Read and check the site's TOML; relative paths start at the file's folder."""
    path = path.expanduser().absolute()
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"no site configuration at {path}.", field="site_config", mend=_MEND["site_config"]
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(
            f"cannot read {path}: {error}.", field="site_config", mend="Mend the TOML."
        ) from None
    try:
        parsed = SiteConfig.model_validate(raw)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        inner = [fault["loc"] for fault in faults]
        # A list with a faulty item is itself reported as too short: name the item only.
        lines = [
            _line(fault)
            for fault in faults
            if not any(
                len(o) > len(fault["loc"]) and o[: len(fault["loc"])] == fault["loc"] for o in inner
            )
        ]
        raise ConfigError(f"{path}:", problems=lines) from None
    problems = _across(parsed, path.parent)
    if problems:
        raise ConfigError(f"{path}:", problems=problems)
    folder = path.parent
    clients = tuple(
        client.model_copy(
            update={
                "data": _under(folder, client.data),
                "peers": None if client.peers is None else _under(folder, client.peers),
            }
        )
        for client in parsed.client
    )
    site = parsed.site.model_copy(update={"state_dir": _under(folder, parsed.site.state_dir)})
    return SiteConfig(site=site, client=clients)


def _under(folder: Path, path: Path) -> Path:
    return folder / path.expanduser()


def _line(fault: Any) -> str:
    """``client #1 max_epsilon: ...`` with what to do about it."""
    where = " ".join(f"#{p + 1}" if isinstance(p, int) else str(p) for p in fault["loc"])
    kind = fault["type"]
    if kind == "missing":
        return f"{where}: missing. Add this key."
    if kind == "extra_forbidden":
        return f"{where}: no such key. Remove it or check its spelling."
    return f"{where}: {fault['msg']} (found {fault['input']!r})"


def _across(site: SiteConfig, folder: Path) -> list[str]:
    """Rules between clients: one population has one unit, one limit and one delta; one file of
    records is one population.
    """
    problems = [
        f"client.name: {name!r} appears {count} times. Give each client its own name."
        for name, count in Counter(client.name for client in site.client).items()
        if count > 1
    ]
    first: dict[str, ClientConfig] = {}
    files: dict[Path, ClientConfig] = {}
    for client in site.client:
        twin = files.setdefault(_under(folder, client.data).resolve(), client)
        if twin.population != client.population:
            problems.append(
                f"client.population: {twin.name!r} and {client.name!r} use the records of one file "
                "under two populations. They would spend two budgets: use one population."
            )
        other = first.setdefault(client.population, client)
        problems += [
            f"client.{key}: {other.name!r} and {client.name!r} share the population "
            f"{client.population!r} but not {key}. They spend from one account: use one value."
            for key in ("unit", "max_epsilon", "delta")
            if getattr(other, key) != getattr(client, key)
        ]
    return problems
