"""Replacing one's own token: no moment in which none works, none that lives longer than granted."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from core.wire.credentials import new_token
from tests.api.support import Coordinator, problem

DAY_S = 86_400


async def _token(coordinator: Coordinator, who: str, **about: Any) -> dict[str, Any]:
    body = {"scope": "scientist", "label": who, **about}
    made = await coordinator.ok("POST", "/v1/tokens", json=body)
    coordinator.tokens[who] = made["token"]
    return dict(made)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


async def test_both_work_for_a_while_and_then_the_new_one(coordinator: Coordinator) -> None:
    made = await _token(coordinator, "old")
    coordinator.tokens["new"] = new_token("scientist")
    body = {"token": coordinator.tokens["new"], "overlap_s": 600}
    rotated = await coordinator.ok("POST", "/v1/tokens/me/rotate", "old", json=body)
    assert (rotated["scope"], rotated["label"], rotated["token"]) == ("scientist", "old", None)
    assert rotated["expires_at"] is None
    for who in ("old", "new"):
        await coordinator.ok("GET", "/v1/runs", who)
    mine = await coordinator.ok("GET", "/v1/tokens/me", "old")
    assert (mine["id"], mine["replaced_by"]) == (made["id"], rotated["id"])
    coordinator.pass_time(601)
    problem(await coordinator.call("GET", "/v1/runs", "old"), 401, "unauthenticated")
    await coordinator.ok("GET", "/v1/runs", "new")


async def test_repeating_it_changes_nothing(coordinator: Coordinator) -> None:
    await _token(coordinator, "old")
    body = {"token": new_token("scientist")}
    first = await coordinator.ok("POST", "/v1/tokens/me/rotate", "old", json=body)
    assert await coordinator.ok("POST", "/v1/tokens/me/rotate", "old", json=body) == first
    rows = await coordinator.sql("SELECT count(*) FROM tokens WHERE label = 'old'")
    assert rows[0][0] == 2
    for other in ({"token": new_token("scientist")}, {}):
        answer = await coordinator.call("POST", "/v1/tokens/me/rotate", "old", json=other)
        assert "tell the administrator" in problem(answer, 409, "token-replaced")["mend"]


async def test_the_coordinator_makes_one_if_asked(coordinator: Coordinator) -> None:
    await _token(coordinator, "old")
    rotated = await coordinator.ok("POST", "/v1/tokens/me/rotate", "old", json={"overlap_s": 0})
    coordinator.tokens["new"] = rotated["token"]
    await coordinator.ok("GET", "/v1/runs", "new")
    problem(await coordinator.call("GET", "/v1/runs", "old"), 401, "unauthenticated")


async def test_rotation_is_no_way_to_stay(coordinator: Coordinator) -> None:
    made = await _token(coordinator, "guest", expires_in_s=10 * DAY_S)
    coordinator.pass_time(9 * DAY_S)
    rotated = await coordinator.ok("POST", "/v1/tokens/me/rotate", "guest", json={})
    assert rotated["expires_at"] == made["expires_at"]


async def test_a_renewable_token_begins_anew(coordinator: Coordinator) -> None:
    made = await _token(coordinator, "site", expires_in_s=10 * DAY_S, renewable=True)
    coordinator.pass_time(9 * DAY_S)
    rotated = await coordinator.ok("POST", "/v1/tokens/me/rotate", "site", json={})
    longer = _time(rotated["expires_at"]) - _time(made["expires_at"])
    assert longer.total_seconds() == pytest.approx(9 * DAY_S, abs=60)
    coordinator.tokens["site"] = rotated["token"]
    coordinator.pass_time(9 * DAY_S)
    again = await coordinator.ok("POST", "/v1/tokens/me/rotate", "site", json={})
    assert again["renewable"] is True


async def test_revoking_a_token_revokes_what_replaced_it(coordinator: Coordinator) -> None:
    """A thief who has rotated a stolen token is out as well."""
    made = await _token(coordinator, "stolen")
    for who, before in (("thief", "stolen"), ("thief again", "thief")):
        rotated = await coordinator.ok("POST", "/v1/tokens/me/rotate", before, json={})
        coordinator.tokens[who] = rotated["token"]
    await coordinator.ok("POST", f"/v1/tokens/{made['id']}/revoke")
    for who in ("stolen", "thief", "thief again"):
        problem(await coordinator.call("GET", "/v1/runs", who), 401, "unauthenticated")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"token": "short"}, "token"),
        ({"token": "fhv_admin_" + "a" * 43}, "token"),
        ({"token": "fhv_scientist_" + "a" * 42 + "!"}, "token"),
        ({"overlap_s": -1}, "overlap_s"),
        ({"overlap_s": 1e9}, "overlap_s"),
        ({"extra": 1}, "extra"),
    ],
)
async def test_bad_rotations(coordinator: Coordinator, body: dict[str, Any], field: str) -> None:
    await _token(coordinator, "old")
    answer = await coordinator.call("POST", "/v1/tokens/me/rotate", "old", json=body)
    found = problem(answer, 422, "invalid-request", field)
    assert str(body.get("token", "none")) not in str(found["detail"])
    mine = await coordinator.ok("GET", "/v1/tokens/me", "old")
    assert (mine["replaced_by"], mine["expires_at"]) == (None, None)


async def test_anothers_token_cannot_be_taken(coordinator: Coordinator) -> None:
    await _token(coordinator, "old")
    await _token(coordinator, "other")
    body = {"token": coordinator.tokens["other"]}
    answer = await coordinator.call("POST", "/v1/tokens/me/rotate", "old", json=body)
    problem(answer, 422, "invalid-request", "token")


async def test_renewal_needs_an_end(coordinator: Coordinator) -> None:
    body = {"scope": "scientist", "label": "x", "renewable": True}
    answer = await coordinator.call("POST", "/v1/tokens", json=body)
    problem(answer, 422, "invalid-request", "renewable")
