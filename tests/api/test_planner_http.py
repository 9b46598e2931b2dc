"""The planner over HTTP: agrees with the ledger, books nothing, and shows no ledger around."""

from __future__ import annotations

from typing import Any

import pytest

from core.federation.plan import Noise
from core.privacy.accounting import epsilon
from core.privacy.events import PrivacyEvent, release
from tests.api.support import Coordinator, a_plan, problem

DELTA = 1e-5


async def asked(coordinator: Coordinator, who: str = "admin", **body: Any) -> Any:
    return await coordinator.call("POST", "/v1/planner", who, json={"plan": a_plan(), **body})


async def planned(coordinator: Coordinator, who: str = "admin", **body: Any) -> dict[str, Any]:
    response = await asked(coordinator, who, **body)
    assert response.is_success, response.text
    return dict(response.json())


async def rows(coordinator: Coordinator) -> list[int]:
    counts = []
    for table in ("runs", "ledger_entries", "rounds", "work_items", "idempotency_keys", "outbox"):
        ((count,),) = await coordinator.sql(f"SELECT count(*) FROM {table}")
        counts.append(count)
    return counts


async def charged(coordinator: Coordinator, name: str) -> list[PrivacyEvent]:
    entries = (await coordinator.ledger(name))["entries"]
    return [PrivacyEvent.model_validate(e["event"]) for e in entries if e["kind"] == "reserve"]


async def test_the_forecast_is_what_the_ledger_gives_and_books_nothing(
    coordinator: Coordinator,
) -> None:
    await coordinator.enrol("site-a", "site-b", epsilon=8.0)
    await coordinator.finish(await coordinator.run("site-a", "site-b"), "site-a", "site-b")
    before = await rows(coordinator)
    found = await planned(
        coordinator, plan=a_plan("run-2"), clients=["site-a", "site-b"], rounds=[1, 6]
    )
    assert await rows(coordinator) == before
    noise = Noise.model_validate(found["plan"]["noise"])
    assert noise.train_multiplier is not None
    sketch, train = (
        release(noise_multiplier=sigma, sample_rate=1.0, unit="record")
        for sigma in (noise.sketch_multiplier, noise.train_multiplier)
    )
    spent = await charged(coordinator, "site-a")
    for client in found["clients"]:
        assert client["epsilon_spent"] == epsilon(spent, DELTA)
        assert client["epsilon_after"] == epsilon([*spent, sketch, train], DELTA)
        assert client["fits"] == (client["epsilon_after"] <= 8.0)
        left = client["rounds_left"]
        assert epsilon([*spent, sketch, *[train] * left], DELTA) <= 8.0
        assert epsilon([*spent, sketch, *[train] * (left + 1)], DELTA) > 8.0
        lost = client["lost_attempts"]["train"]
        assert epsilon([*spent, sketch, *[train] * (1 + lost)], DELTA) <= 8.0
        one, six = client["noise"]
        assert (one["rounds"], six["rounds"]) == (1, 6)
        assert one["train_multiplier"] < six["train_multiplier"]
    # What it calls fitting can be created, and the accounts are then where it said.
    assert found["fits"]
    assert found["plan"]["epsilon"] == epsilon([sketch, train], DELTA)
    run = await coordinator.run("site-a", "site-b", name="run-2")
    await coordinator.finish(run, "site-a", "site-b")
    after = (await coordinator.ledger("site-a"))["epsilon_total"]
    assert after == pytest.approx(found["clients"][0]["epsilon_after"], rel=1e-6)


async def test_what_does_not_fit_is_refused_when_created_and_the_tightest_client_decides(
    coordinator: Coordinator,
) -> None:
    await coordinator.enrol("rich", epsilon=8.0)
    await coordinator.enrol("poor", epsilon=3.0)
    found = await planned(coordinator, clients=["rich", "poor"], rounds=[0, 1, 5])
    assert [client["fits"] for client in found["clients"]] == [True, False]
    assert not found["fits"]
    nothing, one, five = found["noise"]
    assert (nothing["train_multiplier"], nothing["limited_by"]) == (None, None)
    for each, place in ((one, 1), (five, 2)):
        needs = [client["noise"][place] for client in found["clients"]]
        assert each["limited_by"] == "poor"
        assert each["train_multiplier"] == needs[1]["train_multiplier"]
        assert needs[1]["train_multiplier"] > needs[0]["train_multiplier"]
    body = {"plan": a_plan(), "clients": ["rich", "poor"]}
    problem(await coordinator.call("POST", "/v1/runs", json=body), 409, "budget-exceeded")

    await coordinator.enrol("broke", epsilon=0.5)
    found = await planned(coordinator, clients=["rich", "broke"], rounds=[0, 1])
    broke = found["clients"][1]
    assert (broke["rounds_left"], broke["fits"]) == (None, False)
    assert set(broke["lost_attempts"].values()) == {0}
    for each in found["noise"]:
        assert (each["possible"], each["limited_by"]) == (False, "broke")
        assert "sketch" in each["why"]


async def test_two_clients_of_one_account_pay_together(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a", "twin", population="shared", site="hospital")
    alone = (await planned(coordinator, clients=["site-a"], participants=2))["clients"][0]
    both = (await planned(coordinator, clients=["site-a", "twin"]))["clients"]
    assert both[0]["epsilon_after"] == both[1]["epsilon_after"] > alone["epsilon_after"]
    assert both[0]["rounds_left"] < alone["rounds_left"]


async def test_who_may_ask_about_whom(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a", "site-b")
    own = await planned(coordinator, "site-a", clients=["site-a"], participants=2)
    assert [client["client"] for client in own["clients"]] == ["site-a"]
    await planned(coordinator, "auditor", clients=["site-a", "site-b"])
    for who, names in (
        ("site-a", ["site-b"]),
        ("site-a", ["site-a", "site-b"]),
        ("site-a", ["nobody"]),
        ("scientist", ["site-a"]),
    ):
        refused = await asked(coordinator, who, clients=names, participants=2)
        assert problem(refused, 403, "forbidden", "clients")["mend"]
    price = await planned(coordinator, "scientist")
    assert (price["clients"], price["fits"], price["noise"]) == ([], None, [])
    assert 3.9 < price["plan"]["epsilon"] <= 4.0
    assert price["plan"]["participants"] == 2  # the quorum
    problem(await asked(coordinator, "worker"), 403, "forbidden")


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        ({"rounds": [5, 10_001]}, "invalid-request", "rounds.1"),
        ({"rounds": [-1]}, "invalid-request", "rounds.0"),
        ({"rounds": []}, "invalid-request", "rounds"),
        ({"rounds": [1, 2, 3, 4, 5]}, "invalid-request", "rounds"),
        (
            {"rounds": [9000], "plan": a_plan(privacy={"local_steps": 30})},
            "invalid-request",
            "rounds.0",
        ),
        ({"participants": 0}, "invalid-request", "participants"),
        ({"participants": 1}, "invalid-plan", "plan.round.quorum"),
        ({"clients": ["site-a", "site-b", "site-c"], "participants": 2}, "invalid-request",
         "participants"),
        ({"clients": ["site-a", "nobody"]}, "invalid-request", "clients.1"),
        ({"clients": ["site-a", "site-a"]}, "invalid-request", "clients"),
        ({"clients": [f"c-{n}" for n in range(17)]}, "invalid-request", "clients"),
        ({"plan": a_plan(space="nowhere")}, "invalid-request", "plan.space"),
        ({"plan": a_plan(purpose="simulation")}, "invalid-plan", "plan.purpose"),
        ({"plan": a_plan(privacy={"epsilon": 1e-9})}, "invalid-plan", "plan.privacy"),
    ],
)  # fmt: skip
async def test_absurd_questions_name_the_field(
    coordinator: Coordinator, body: dict[str, Any], code: str, field: str
) -> None:
    await coordinator.enrol("site-a")
    refused = await asked(coordinator, **body)
    problem(refused, 422, code, field)


async def test_of_secure_sums_it_says_against_whom_each_number_holds(
    coordinator: Coordinator,
) -> None:
    """Before anybody is asked: without keys, without a run, and the same that a run then says."""
    await coordinator.enrol("site-a")
    plan = a_plan(aggregation="secure", secure={"drop": 0, "collude": 1, "step_s": 60.0})
    price = (await planned(coordinator, plan=plan, participants=4))["plan"]
    seen = {view["who"]: view for view in price["views"]}
    assert seen["booked"]["epsilon"] == price["epsilon"]
    assert seen["coordinator"]["epsilon"] < price["epsilon"] < seen["everybody"]["epsilon"]
    assert seen["everybody"]["premise"] == "none"
    assert seen["booked"]["premise"] != "none"
    assert (await planned(coordinator))["plan"]["views"] == []
