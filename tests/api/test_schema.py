"""The schema: migrations both ways, no drift from the models, rules that hold against anybody."""

from __future__ import annotations

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, inspect
from sqlalchemy.pool import NullPool

from api import migration
from api.config import database_url as with_driver
from api.db import models, oversight_models, run_models
from tests.api.support import Coordinator


def _tables(url: str) -> set[str]:
    engine = create_engine(with_driver(url), poolclass=NullPool)
    with engine.connect() as connection:
        found = set(inspect(connection).get_table_names())
    engine.dispose()
    return found


def test_migrations_go_up_down_and_up_again(bare_database_url: str) -> None:
    url = with_driver(bare_database_url)
    assert migration.state(url).found is None
    migration.upgrade(url)
    state = migration.state(url)
    assert state.current
    assert _tables(url) == set(models.Base.metadata.tables) | {"alembic_version"}
    migration.downgrade(url, "base")
    assert _tables(url) == {"alembic_version"}
    with psycopg.connect(bare_database_url) as connection:
        left = connection.execute(
            "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
        ).fetchall()
    assert left == []
    migration.upgrade(url)
    assert migration.state(url).current


def test_models_and_migrations_agree(database_url: str) -> None:
    for table in (run_models.Run, oversight_models.Consent):
        assert table.metadata is models.Base.metadata
    engine = create_engine(with_driver(database_url), poolclass=NullPool)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, models.Base.metadata) == []
        # Alembic does not compare CHECKs: their names and number are compared here.
        inspector = inspect(connection)
        for table in models.Base.metadata.sorted_tables:
            found = {check["name"] for check in inspector.get_check_constraints(table.name)}
            wanted = {
                str(constraint.name)
                for constraint in table.constraints
                if type(constraint).__name__ == "CheckConstraint"
            }
            assert found == wanted, table.name
    engine.dispose()


async def _refused(coordinator: Coordinator, statement: str, words: str) -> None:
    with pytest.raises(Exception, match=words):
        await coordinator.sql(statement)


@pytest.mark.parametrize(
    "table", ["ledger_entries", "updates", "spaces", "accounts", "objects", "join_members"]
)
async def test_rows_of_some_tables_are_only_ever_added(
    coordinator: Coordinator, table: str
) -> None:
    await coordinator.enrol("site-a")
    run = await coordinator.run("site-a", round={"quorum": 1}, privacy={"rounds": 0})
    await coordinator.finish(run, "site-a")
    await coordinator.enrol("site-b")
    await coordinator.join(run, "site-b")
    assert await coordinator.sql(f"SELECT 1 FROM {table}") != []
    (column,) = await coordinator.sql(
        "SELECT column_name FROM information_schema.columns WHERE table_name = :name "
        "ORDER BY ordinal_position LIMIT 1",
        name=table,
    )
    await _refused(coordinator, f"UPDATE {table} SET {column[0]} = {column[0]}", "only ever added")
    await _refused(coordinator, f"DELETE FROM {table}", "only ever added")
    await _refused(coordinator, f"TRUNCATE {table} CASCADE", "only ever added")


@pytest.mark.parametrize(
    "change",
    [
        "runs SET spec = '{}'",
        "runs SET spec_digest = 'x'",
        "runs SET name = 'other'",
        "runs SET epsilon_planned = 0.1",
        "clients SET managed = NOT managed",
        "clients SET account_id = gen_random_uuid()",
        "tokens SET scope = 'admin', client_id = NULL",
        "run_clients SET position = 7",
        "run_clients SET founding = false",
        "work_items SET attempt = 9",
        "work_items SET reservation_id = NULL, state = 'excluded'",
        "rounds SET weights_digest = NULL, state = 'failed'",
        "jobs SET result = '{}'",
        "consents SET epsilon = 0.1",
        "consents SET decided_by = 'person'",
    ],
)
async def test_some_columns_keep_their_first_value(coordinator: Coordinator, change: str) -> None:
    await coordinator.enrol("site-a")
    run = await coordinator.run("site-a", round={"quorum": 1}, privacy={"rounds": 0})
    await coordinator.finish(run, "site-a")
    await _refused(coordinator, f"UPDATE {change}", "immutable")


async def test_a_consent_is_decided_once(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a")
    await coordinator.run("site-a", round={"quorum": 1}, privacy={"rounds": 0})
    await _refused(coordinator, "UPDATE consents SET state = 'refused'", "a decision is final")
    await _refused(coordinator, "DELETE FROM consents", "only ever added")


async def test_a_reservation_has_one_outcome_of_its_own(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a", "site-b")
    await coordinator.run("site-a", "site-b")
    await coordinator.work("site-a")
    columns = "id, account_id, client_id, run_id, round_number, attempt, kind, reserve_id, event"
    outcome = (
        f"INSERT INTO ledger_entries ({columns}) SELECT gen_random_uuid(), account_id, client_id, "
        "run_id, round_number, attempt, '{kind}', {named}, NULL FROM ledger_entries r "
    )
    committed = (
        "WHERE kind = 'reserve' AND EXISTS (SELECT FROM ledger_entries c WHERE c.reserve_id = r.id)"
    )
    second = outcome.format(kind="lost", named="id") + committed
    await _refused(coordinator, second, "uq_ledger_entries_one_outcome")
    of_outcome = outcome.format(kind="lost", named="id") + "WHERE kind = 'commit'"
    await _refused(coordinator, of_outcome, "names no reservation")
    nothing = outcome.format(kind="commit", named="NULL") + "WHERE kind = 'reserve'"
    await _refused(coordinator, nothing, "ck_ledger_entries_outcome|names no reservation")
    other = (
        outcome.format(
            kind="lost",
            named="(SELECT o.id FROM ledger_entries o WHERE o.client_id <> r.client_id "
            "AND o.kind = 'reserve' LIMIT 1)",
        )
        + "WHERE kind = 'reserve'"
    )
    await _refused(coordinator, other, "names no reservation")
    twice = (
        f"INSERT INTO ledger_entries ({columns}) SELECT gen_random_uuid(), account_id, client_id, "
        "run_id, round_number, attempt, kind, reserve_id, event FROM ledger_entries r "
        "WHERE kind = 'reserve'"
    )
    await _refused(coordinator, twice, "uq_ledger_entries_one_reservation")


async def test_a_second_update_of_a_client_cannot_enter_a_round(
    coordinator: Coordinator,
) -> None:
    await coordinator.enrol("site-a", "site-b")
    await coordinator.run("site-a", "site-b")
    await coordinator.work("site-a")
    again = (
        "INSERT INTO updates (id, update_id, run_id, round_number, client_id, work_id, digest, "
        "size) SELECT gen_random_uuid(), gen_random_uuid(), run_id, round_number, client_id, "
        "(SELECT id FROM work_items w WHERE w.client_id <> u.client_id), digest, size "
        "FROM updates u"
    )
    await _refused(coordinator, again, "uq_updates_run_id_round_number_client_id")


@pytest.mark.parametrize(
    ("statement", "name"),
    [
        ("UPDATE runs SET state = 'asleep'", "ck_runs_state"),
        ("UPDATE rounds SET state = 'published'", "ck_rounds_published"),
        ("UPDATE rounds SET deadline = NULL", "ck_rounds_deadline"),
        ("UPDATE work_items SET state = 'leased', lease_expires = NULL", "ck_work_items_lease"),
        ("UPDATE clients SET budget_epsilon = 0", "ck_clients_budget_epsilon"),
        ("UPDATE clients SET budget_delta = 1", "ck_clients_budget_delta"),
        (
            """INSERT INTO rounds (run_id, number, state, why, extended)
               SELECT id, 1, 'draft', '', false FROM runs""",
            "uq_rounds_live",
        ),
    ],
)
async def test_impossible_rows_are_refused(
    coordinator: Coordinator, statement: str, name: str
) -> None:
    await coordinator.enrol("site-a")
    await coordinator.run("site-a", round={"quorum": 1})
    await _refused(coordinator, statement, name)
