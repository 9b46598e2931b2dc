"""Alembic's entry: one connection, one transaction, no waiting behind long locks."""

from __future__ import annotations

from alembic import context
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from api.config import database_url
from api.db import (
    enrolment_models,
    models,
    oversight_models,
    run_models,
    secure_models,
    webhook_models,
)

# A migration that cannot get its lock gives up instead of blocking every request behind it.
LOCK_TIMEOUT = "5s"

target_metadata = models.Base.metadata
for _module in (  # all modules must be imported
    run_models.Run,
    oversight_models.Consent,
    enrolment_models.Enrolment,
    webhook_models.Webhook,
    secure_models.SecureSum,
):
    assert _module.metadata is target_metadata  # noqa: S101


def _url() -> str:
    configured = context.config.get_main_option("sqlalchemy.url")
    return database_url(configured or None)


def run_online() -> None:
    engine = create_engine(_url(), poolclass=NullPool)
    with engine.connect() as connection:
        connection.execute(text(f"SET lock_timeout = '{LOCK_TIMEOUT}'"))
        connection.commit()
        context.configure(
            connection=connection,
            target_metadata=target_metadata,
            compare_type=True,
            compare_server_default=True,
            transaction_per_migration=False,  # all of them or none: no database in between
        )
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()


def run_offline() -> None:
    context.configure(
        dialect_name="postgresql", target_metadata=target_metadata, literal_binds=True
    )
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    run_offline()
else:
    run_online()
