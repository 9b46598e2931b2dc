"""Settings of the coordinator from the environment (``FHV_*``) or from files (``FHV_*_FILE``).

Secrets never get a default.
"""

from __future__ import annotations

import ipaddress
import os
import re
from typing import Literal, Self, TypeVar

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from core import tracing
from core.secret_files import FileSettings, SettingFileError, from_file
from core.synthesis.request import MAX_ROWS

# Only with FHV_ENV=dev: a laptop's tokens need no secrecy, but must survive a restart.
_DEV_PEPPER = "development-only-pepper-not-a-secret"
MIN_PEPPER = 16
# As browsers send it: lower case, no path, no user.
_ORIGIN = re.compile(r"https?://(?:[a-z0-9.-]+|\[[0-9a-f:]+\])(?::[0-9]{1,5})?")


def _listed(value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]


def _with_driver(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in ("postgres", "postgresql", "postgresql+psycopg"):
        raise ValueError("must be postgresql://user:password@host/database")
    return f"postgresql+psycopg://{rest}"


class Secrets(FileSettings):
    """Enough for tokens and the database: what `fedhypevae token` needs."""

    model_config = SettingsConfigDict(env_prefix="FHV_", frozen=True, extra="ignore")

    env: Literal["dev", "prod"] = "prod"
    database_url: str = Field(default="", validate_default=True)
    token_pepper: SecretStr = SecretStr("")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @field_validator("database_url")
    @classmethod
    def _driver(cls, value: str) -> str:
        """Any usual spelling of a Postgres URL, with the driver that this program uses."""
        return _with_driver(value)

    @model_validator(mode="after")
    def _pepper(self) -> Self:
        if self.env == "prod" and len(self.token_pepper.get_secret_value()) < MIN_PEPPER:
            raise ValueError(
                f"FHV_TOKEN_PEPPER: set it to at least {MIN_PEPPER} random characters "
                "(there is a default only with FHV_ENV=dev)"
            )
        return self

    @property
    def pepper(self) -> bytes:
        return (self.token_pepper.get_secret_value() or _DEV_PEPPER).encode()


class Settings(Secrets):
    """All settings of the coordinator."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65_535)
    broker_url: str | None = None
    object_store_url: str = Field(default="", validate_default=True)

    trusted_proxies: str = Field(
        default="",
        description="Addresses or networks of the reverse proxies, with commas: only their "
        "X-Forwarded-For and X-Forwarded-Proto are believed. Empty: nobody's.",
    )
    cors_origins: str = Field(
        default="",
        description="Origins whose pages may call this API from a browser, with commas: "
        "https://host[:port]. Empty: none.",
    )
    database_pool: int = Field(default=10, ge=2, description="Connections of one process.")
    sweep_s: float = Field(default=0.25, gt=0, description="Fallback pace of the sweeper.")
    poll_s: float = Field(default=1.0, gt=0, description="Fallback pace of polls and the outbox.")
    grace_s: float = Field(
        default=5.0, ge=0, description="After a start nobody is declared late for so long."
    )
    retry_backoff_s: float = Field(
        default=5.0, ge=0, description="First pause after 'site-not-ready'; doubles each time."
    )
    job_lease_s: float = Field(default=120.0, gt=0)
    job_attempts: int = Field(default=5, ge=1)
    resend_s: float = Field(
        default=10.0, gt=0, description="Unclaimed work is announced again; the pause doubles."
    )
    max_json_bytes: int = Field(default=4 * 2**20, gt=0)
    body_grace_s: float = Field(
        default=20.0,
        gt=0,
        description="A body of n bytes must have come after so many seconds and n / "
        "FHV_BODY_MIN_RATE more; else 408.",
    )
    body_min_rate: float = Field(default=8_192.0, gt=0, description="Bytes a second.")
    head_timeout_s: float = Field(
        default=10.0,
        gt=0,
        description="A request's line and headers must have come after so many seconds; else its "
        "connection is closed.",
    )
    max_head_bytes: int = Field(
        default=32_768, ge=4_096, description="Of a request's line and headers together; else 431."
    )
    max_connections: int = Field(
        default=4_096, ge=1, description="Of one process; a request on any other gets 503."
    )
    max_wait_s: float = Field(default=60.0, gt=0, description="Longest long poll.")
    failures_per_minute: int = Field(
        default=60,
        ge=1,
        description="Invalid tokens and codes of one address; then it waits, but for tokens that "
        "were valid lately.",
    )
    automatic_enrolment: bool = Field(
        default=False,
        description="Administrators may issue codes that enrol without another look.",
    )
    metrics_token: SecretStr | None = Field(
        default=None,
        min_length=MIN_PEPPER,
        description="Bearer token of a Prometheus server; unset: only administrators and auditors "
        "may read metrics.",
    )
    max_streams: int = Field(default=500, ge=1, description="Event streams of one process.")
    heartbeat_s: float = Field(default=15.0, gt=0, description="Pace of a quiet stream's comments.")
    otlp_endpoint: str | None = Field(
        default_factory=lambda: os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"),
        validate_default=True,
        description="Collector of traces (OTLP over HTTP), such as http://collector:4318; unset: "
        "there are none.",
    )
    webhooks_allow_http: bool = Field(
        default=False, description="Webhooks without TLS to other machines."
    )
    webhooks_allow_private: bool = Field(
        default=False, description="Webhooks to loopback and private addresses."
    )
    webhooks_attempts: int = Field(
        default=14, ge=1, le=100, description="Of one delivery; with the pauses, half a day."
    )
    webhooks_backoff_s: float = Field(
        default=10.0, gt=0, description="First pause after a failed attempt; doubles each time."
    )
    webhooks_timeout_s: float = Field(default=10.0, gt=0, le=60, description="Of one attempt.")
    webhooks_overlap_s: float = Field(
        default=86_400.0, ge=0, description="So long a changed secret goes on signing, too."
    )
    webhooks_stuck_s: float = Field(
        default=3_600.0, gt=0, description="A round open or summed for longer is stuck."
    )
    webhooks_retention_days: float = Field(
        default=30.0, gt=0, description="So long it can be seen what became of a delivery."
    )
    update_retention_days: float | None = Field(
        default=None,
        gt=0,
        description="Bytes of updates are erased so long after their round has ended; "
        "unset: they are kept, and every round can be replayed.",
    )
    synthesis_max_rows: int = Field(
        default=MAX_ROWS, ge=1, le=MAX_ROWS, description="Of one request."
    )
    synthesis_job_rows: int = Field(
        default=2_000_000,
        ge=1,
        description="More rows than these are made by a worker, not while the caller waits.",
    )
    synthesis_job_ttl_s: float = Field(
        default=7 * 86_400.0, gt=0, description="So long the file of a job can be downloaded."
    )
    synthesis_jobs_per_token: int = Field(
        default=4, ge=1, description="Jobs of one token that are not ended."
    )
    synthesis_requests_per_minute: int = Field(default=300, ge=1, description="Of one token.")
    synthesis_rows_per_day: int = Field(
        default=100_000_000, ge=1, description="Of one token, from midnight UTC."
    )
    synthesis_at_once_per_token: int = Field(
        default=4, ge=1, description="Answers that a process makes at once for one token."
    )
    synthesis_at_once: int = Field(
        default=16, ge=1, description="Answers that a process makes at once."
    )
    revoked_retention_days: float = Field(
        default=30.0,
        ge=0,
        description="Bytes of a revoked client's updates are erased so long after its revocation, "
        "as soon as no round under way needs them.",
    )
    serve_not_private: bool = Field(
        default=False,
        description="Serve rows of models without a privacy guarantee, stamped NOT PRIVATE.",
    )

    dashboard: bool = Field(default=True, description="Serve the pages under /dashboard.")
    dashboard_session_s: float = Field(
        default=12 * 3600.0,
        ge=60,
        le=7 * 86_400.0,
        description="So long after signing in a browser has to sign in again.",
    )
    dashboard_idle_s: float = Field(
        default=1800.0,
        ge=60,
        le=7 * 86_400.0,
        description="So long a browser stays signed in while nobody does anything; pages that "
        "refresh themselves do not count.",
    )

    model_licence: str = Field(
        default="unspecified: ask the operator",
        min_length=1,
        max_length=200,
        description="Licence of exported generators: an SPDX expression, such as CC-BY-4.0.",
    )

    @field_validator("object_store_url")
    @classmethod
    def _store(cls, value: str) -> str:
        if "://" not in value:
            raise ValueError("must be file:///folder or s3://bucket/prefix")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: str) -> str:
        for origin in _listed(value):
            if not _ORIGIN.fullmatch(origin):  # no '*': a list that names nobody protects nobody
                raise ValueError("must be origins with commas, such as https://host:8443")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _proxies(cls, value: str) -> str:
        for proxy in _listed(value):
            try:
                network = ipaddress.ip_network(proxy)
            except ValueError:
                raise ValueError(
                    "must be addresses or networks with commas, such as 127.0.0.1,172.30.0.0/24"
                ) from None
            if network.prefixlen == 0:
                raise ValueError("must not be everybody: any caller could then choose its address")
        return value

    @property
    def proxies(self) -> list[str]:
        """The addresses and networks of ``trusted_proxies``."""
        return _listed(self.trusted_proxies)

    @property
    def origins(self) -> list[str]:
        """The origins of ``cors_origins``."""
        return _listed(self.cors_origins)

    @field_validator("metrics_token", mode="before")
    @classmethod
    def _no_empty_token(cls, value: object) -> object:
        return value or None

    @field_validator("otlp_endpoint")
    @classmethod
    def _collector(cls, value: str | None) -> str | None:
        return tracing.usable(value)

    @field_validator("broker_url")
    @classmethod
    def _broker(cls, value: str | None) -> str | None:
        return value or None


class SettingsError(Exception):
    """One line a problem, without the values (they may be secrets)."""


S = TypeVar("S", bound=Secrets)


def load(kind: type[S], **overrides: object) -> S:
    """Settings from the environment; ``SettingsError`` names what is wrong."""
    try:
        return kind(**overrides)  # type: ignore[arg-type]
    except SettingFileError as error:
        raise SettingsError(str(error)) from None
    except ValidationError as error:
        lines = []
        for item in error.errors():
            name = "FHV_" + "_".join(str(part) for part in item["loc"]).upper()
            message = item["msg"].removeprefix("Value error, ")
            lines.append(message if name == "FHV_" else f"{name}: {message}")
        raise SettingsError("; ".join(lines)) from None


def database_url(given: str | None = None) -> str:
    """The database's URL alone: migrations need no other setting."""
    try:
        found = given or from_file("database_url", os.environ)
        return _with_driver(found or os.environ.get("FHV_DATABASE_URL", ""))
    except SettingFileError as error:
        raise SettingsError(str(error)) from None
    except ValueError as error:
        raise SettingsError(f"FHV_DATABASE_URL: {error}") from None
