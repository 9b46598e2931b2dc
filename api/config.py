"""Settings of the coordinator from the environment (``FHV_*``). Secrets never get a default."""

from __future__ import annotations

import os
import re
from typing import Literal, Self, TypeVar

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

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


class Secrets(BaseSettings):
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

    @property
    def origins(self) -> list[str]:
        """The origins of ``cors_origins``."""
        return _listed(self.cors_origins)

    @field_validator("metrics_token", mode="before")
    @classmethod
    def _no_empty_token(cls, value: object) -> object:
        return value or None

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
        return _with_driver(given or os.environ.get("FHV_DATABASE_URL", ""))
    except ValueError as error:
        raise SettingsError(f"FHV_DATABASE_URL: {error}") from None
