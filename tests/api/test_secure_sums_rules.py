"""Rules of secure sums: one answer to each step, in time and signed; steps that survive kills."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy.ext.asyncio import AsyncSession

from core.secagg.identity import fingerprint
from core.secagg.messages import Attestation, Session
from core.wire.messages import CONTENT_TYPE_TENSORS
from core.wire.secure import CONTENT_TYPE_MASKED, StepAnswer
from tests.api.sums import SECURE, SITES, Site, a_secure_run
from tests.api.support import Coordinator, a_plan, problem, update_body

# --- answers ---


@pytest.mark.parametrize("point", ["keys", "shares", "confirming", "opening"])
async def test_an_answer_is_given_once(coordinator: Coordinator, point: str) -> None:
    """The same again is the same receipt, also when the step is over; another one is refused."""
    sites = await a_secure_run(coordinator)
    await sites.upto(point)
    site, other = sites["site-a"], Site(coordinator, "site-a")
    step = await site.offered()
    answer = site.answer_of(step)
    first = await site.put(step, answer)
    again = await site.put(step, answer)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert await site.poll() is None
    other.known = site.known
    changed = _another(answer, site, other, step)
    problem(await site.put(step, changed), 409, "step-answered")
    await sites.go(SITES[1:])
    assert (await sites.round())["state"] != point
    assert (await site.put(step, answer)).status_code == 200
    problem(await site.put(step, changed), 409, "step-answered")
    gone = await coordinator.call("GET", f"/v1/secure-steps/{step.step_id}", "site-a")
    problem(gone, 409, "work-gone")
    kept = await coordinator.sql("SELECT body FROM sum_steps WHERE id = :id", id=step.step_id)
    assert kept[0][0] == answer.model_dump(mode="json", exclude_none=True)


def _another(answer: StepAnswer, site: Site, other: Site, step: Any) -> StepAnswer:
    """As well formed, of the same client, and not what it has said."""
    if answer.advert is not None:
        other.identity = site.identity
        return other.answer_of(step)
    body = answer.model_dump(mode="json", exclude_none=True)
    if answer.shares is not None:
        body["shares"][0]["box"] = "00" * (len(body["shares"][0]["box"]) // 2)
    elif answer.confirmation is not None:
        body["confirmation"]["signature"] = "00" * 64
    else:
        body["opening"]["shares"] = body["opening"]["shares"][:-1]
    return StepAnswer.model_validate(body)


async def test_an_answer_that_comes_late_is_refused(coordinator: Coordinator) -> None:
    sites = await a_secure_run(coordinator)
    step = await sites["site-d"].offered()
    await sites.answer("keys", SITES[:3])
    coordinator.pass_time(31)
    await coordinator.sweep()
    assert (await sites.round())["state"] == "shares"
    refused = await sites["site-d"].put(step, sites["site-d"].answer_of(step))
    assert "round 0 is shares" in problem(refused, 409, "step-closed")["detail"]
    problem(await sites["site-d"].decline(step), 409, "step-closed")
    assert await sites["site-d"].poll() is None


async def test_no_answer_slips_in_once_the_step_is_over(coordinator: Coordinator) -> None:
    """A share that comes after the inboxes were fixed would be fatal: who answers waits for the
    driver's step, and sees what it has left. And the other way round.
    """
    sites = await a_secure_run(coordinator)
    await sites.answer("keys")
    step = await sites["site-d"].offered()
    answer = sites["site-d"].answer_of(step)
    database = coordinator.ctx.database
    async with await database.connect_alone() as driver, driver.transaction():
        await driver.execute("SELECT 1 FROM rounds FOR NO KEY UPDATE")
        sending = asyncio.create_task(sites["site-d"].put(step, answer))
        await asyncio.sleep(0.3)
        assert not sending.done()
        # Free: the answer has not got to its row yet.
        await driver.execute(
            "SELECT 1 FROM sum_steps WHERE id = %s FOR NO KEY UPDATE NOWAIT", (step.step_id,)
        )
        await driver.execute("UPDATE rounds SET state = 'open'")
    problem(await sending, 409, "step-closed")
    assert await coordinator.sql("SELECT 1 FROM sum_steps WHERE body ? 'shares'") == []

    await coordinator.sql("UPDATE rounds SET state = 'shares'")
    await sites.answer("shares", SITES[:3])
    coordinator.pass_time(31)
    async with await database.connect_alone() as site, site.transaction():
        # An answer that is not committed yet holds the driver up.
        await site.execute("SELECT 1 FROM rounds FOR SHARE")
        stepping = asyncio.create_task(coordinator.sweep())
        await asyncio.sleep(0.3)
        assert not stepping.done()
        await site.execute(
            "UPDATE sum_steps SET state = 'declined', answered_at = now(), reason = 'x' "
            "WHERE id = %s", (step.step_id,),
        )  # fmt: skip
    await stepping
    assert (await sites.round())["state"] == "open"


async def test_a_broken_site_is_named_early(coordinator: Coordinator) -> None:
    """Signatures of another key, of another's name, boxes for the wrong sites, wrong lists."""
    sites = await a_secure_run(coordinator)
    site = sites["site-a"]

    async def refused(step: Any, answer: StepAnswer, words: str) -> None:
        told = problem(await site.put(step, answer), 422, "step-rejected")
        assert words in told["detail"]

    step = await site.offered()
    stranger = Site(coordinator, "site-a")
    stranger.known = site.known
    await refused(step, stranger.answer_of(step), "not signed with the identity key")
    theirs = await sites["site-b"].offered()
    await refused(step, sites["site-b"].answer_of(theirs), "in the name of 'site-b'")
    answer = site.answer_of(step)
    assert answer.advert is not None
    flat = answer.advert.model_copy(update={"masking_key": "00" * 32})
    signed = site.identity.sign(flat.signed(step.session)).hex()
    unusable = StepAnswer(advert=flat.model_copy(update={"signature": signed}))
    await refused(step, unusable, "keys of 'site-a' are not of the curve")
    # Another round's or session's signature says nothing here.
    other = Session.model_validate({**step.session.model_dump(), "round_number": 7})
    moved = step.model_copy(update={"session": other})
    elsewhere = Site(coordinator, "site-a")
    elsewhere.known, elsewhere.identity = site.known, site.identity
    await refused(step, elsewhere.answer_of(moved), "not signed")
    await sites.answer("keys")

    step = await site.offered()
    answer = site.answer_of(step)
    assert answer.shares is not None
    short = StepAnswer(shares=answer.shares[:-1])
    await refused(step, short, "not for its neighbours")
    keys = StepAnswer(advert=site.participants[0].advert())
    await refused(step, keys, "asks for 'shares'")
    await sites.answer("shares")
    order = await site.order()
    body = site.masked(order)
    fewer_sharers = Attestation.signed(step.session, site.participants[0].state.roster, SITES[:3])
    for signature in (
        stranger.identity.sign(site.participants[0]._attested()),
        site.identity.sign(fewer_sharers),
        bytes(64),
    ):
        problem(await site.send(order, signature + body[64:]), 422, "update-unattested")
    assert (await site.send(order, body)).status_code == 201
    await sites.work(SITES[1:])

    step = await site.offered()
    assert step.survivors == SITES
    assert [each.site for each in step.attestations] == list(SITES)
    fewer = step.model_copy(update={"survivors": SITES[:3], "attestations": step.attestations[:3]})
    liar = sites["site-a"].participants[0].state.model_copy(deep=True)
    answer = site.answer_of(fewer)
    await refused(step, answer, "list of vectors of 'site-a' are not signed")
    site.participants[0].state = liar
    await sites.answer("confirm")

    step = await site.offered()
    answer = site.answer_of(step)
    assert answer.opening is not None
    shares = answer.opening.shares
    swapped = [each.model_copy(update={"kind": "key"}) for each in shares]
    wrong = answer.opening.model_copy(update={"shares": tuple(swapped)})
    await refused(step, StepAnswer(opening=wrong), "something else than it was asked for")
    await sites.answer("open")
    assert (await sites.round())["state"] == "aggregating"


async def test_another_roster_is_not_signed_for(coordinator: Coordinator) -> None:
    """Sites see through a coordinator that tells two stories; here: that the roster is one."""
    sites = await a_secure_run(coordinator)
    await sites.answer("keys")
    rosters = [(await site.offered()).roster for site in sites.all.values()]
    assert all(roster == rosters[0] for roster in rosters)
    assert [advert.site for advert in rosters[0]] == list(SITES)


async def test_callers_of_protocol_2_see_no_steps(coordinator: Coordinator) -> None:
    sites = await a_secure_run(coordinator)
    assert await sites["site-a"].poll(protocol=2) is None
    assert await coordinator.poll("site-a") is None
    other = await sites["site-a"].poll()
    assert other is not None
    path = f"/v1/clients/{coordinator.clients['site-a']}/work"
    elsewhere = await coordinator.call(
        "GET", path, "site-a", params={"run": str(uuid4())},
        headers={"X-FHV-Protocol-Range": "1-3"},
    )  # fmt: skip
    assert elsewhere.status_code == 204


# --- vectors ---


async def test_only_a_masked_vector_of_the_right_length_is_taken(coordinator: Coordinator) -> None:
    sites = await a_secure_run(coordinator)
    await sites.answer("keys")
    await sites.answer("shares")
    site = sites["site-a"]
    order = await site.order()
    again = await site.order()
    assert again == order
    assert order.sum is not None
    assert order.sum.sharers == SITES
    assert {box.sender for box in order.sum.inbox} == set(SITES[1:])
    plain = update_body(order.spec, 0)
    refused = await site.send(order, plain, CONTENT_TYPE_TENSORS)
    problem(refused, 415, "unsupported-media-type", "Content-Type")
    body = site.masked(order)
    assert len(body) == order.max_update_bytes
    problem(await site.send(order, body[:-1]), 422, "update-wrong-shape")
    problem(await site.send(order, body + b"x"), 413, "payload-too-large")
    assert await coordinator.sql("SELECT 1 FROM run_clients WHERE quarantined_at IS NOT NULL") == []
    assert (await site.send(order, body)).status_code == 201
    assert (await site.send(order, body)).status_code == 200
    problem(await site.send(order, bytes(len(body))), 409, "update-conflict")


async def test_a_masked_vector_has_no_place_in_a_plain_round(coordinator: Coordinator) -> None:
    await coordinator.enrol("site-a", "site-b")
    await coordinator.run("site-a", "site-b")
    order = await coordinator.poll("site-a")
    assert order is not None
    refused = await coordinator.send(order, **{"Content-Type": CONTENT_TYPE_MASKED})
    problem(refused, 415, "unsupported-media-type", "Content-Type")


async def test_a_lost_attempt_is_masked_in_no_second_way(coordinator: Coordinator) -> None:
    """Another attempt is another order of the same sum, with the same inbox; a reservation each."""
    sites = await a_secure_run(coordinator)
    await sites.answer("keys")
    await sites.answer("shares")
    first = await sites["site-a"].order()
    coordinator.pass_time(11)
    await coordinator.sweep()
    second = await sites["site-a"].order()
    assert (first.attempt, second.attempt) == (1, 2)
    assert first.sum == second.sum
    assert await coordinator.kinds("site-a") == ["reserve", "lost", "reserve"]
    await sites.upto("aggregating")


# --- a coordinator that dies ---


async def test_a_step_that_dies_is_taken_again(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kill the driver after every statement in turn, on every way of one round."""
    sites = await a_secure_run(coordinator, privacy={"rounds": 0})
    real, deaths = AsyncSession.execute, 0
    for state in ("keys", "shares", "open", "confirming", "opening"):
        for site in sites.all.values():
            if state == "open":
                await site.work()
            else:
                step = await site.offered()
                assert (await site.put(step, site.answer_of(step))).status_code == 201
        died = 0
        while (await sites.round())["state"] == state:
            left = died

            async def dying(session: AsyncSession, *args: Any, **options: Any) -> Any:
                nonlocal left
                result = await real(session, *args, **options)
                if left == 0:
                    raise KeyboardInterrupt
                left -= 1
                return result

            asked = await coordinator.sql("SELECT count(*) FROM sum_steps")
            with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
                patch.setattr(AsyncSession, "execute", dying)
                await coordinator.sweep()
            if (await sites.round())["state"] == state:
                assert await coordinator.sql("SELECT count(*) FROM sum_steps") == asked
            died += 1
        assert died > 8
        deaths += died
    assert deaths > 50
    assert await coordinator.sql(
        "SELECT step, count(*) FROM sum_steps GROUP BY step ORDER BY step"
    ) == [("confirm", 4), ("keys", 4), ("open", 4), ("shares", 4)]
    await coordinator.aggregate()
    assert (await coordinator.round(sites.run, 0))["state"] == "published"


async def test_what_was_said_is_kept(coordinator: Coordinator) -> None:
    """By the schema itself, whoever is at the prompt."""
    sites = await a_secure_run(coordinator)
    await sites.answer("keys")
    of_keys = "WHERE step = 'keys'"
    reset = "state = 'asked', body = NULL, answered_at = NULL"
    for statement, words in (
        (f"UPDATE sum_steps SET body = '{{}}' {of_keys}", "immutable"),
        (f"UPDATE sum_steps SET {reset} {of_keys}", "an answer is final"),
        (f"UPDATE sum_steps SET reason = 'other' {of_keys}", "an answer is final"),
        (f"UPDATE sum_steps SET step = 'open' {of_keys}", "immutable"),
        ("UPDATE secure_sums SET session = '{}'", "immutable"),
        ("DELETE FROM sum_steps", "only ever added"),
        ("DELETE FROM secure_sums", "only ever added"),
        ("TRUNCATE secure_sums CASCADE", "only ever added"),
    ):
        with pytest.raises(Exception, match=words):
            await coordinator.sql(statement)


# --- keys of sites, and plans ---


async def test_an_identity_key_is_set_once_and_removed_by_an_administrator(
    coordinator: Coordinator,
) -> None:
    await coordinator.enrol("site-a")
    site, path = Site(coordinator, "site-a"), f"/v1/clients/{coordinator.clients['site-a']}"
    body = {"key": site.key}
    known = await coordinator.ok("PUT", f"{path}/identity-key", "site-a", json=body)
    assert known == {
        "client": "site-a", "key": site.key, "fingerprint": fingerprint(site.key),
    }  # fmt: skip
    assert await coordinator.ok("PUT", f"{path}/identity-key", "site-a", json=body) == known
    other = {"key": Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex()}
    refused = await coordinator.call("PUT", f"{path}/identity-key", "site-a", json=other)
    assert "--remove" in problem(refused, 409, "identity-key-set", "key")["mend"]
    for _ in range(2):
        await coordinator.ok("DELETE", f"{path}/identity-key")
    await coordinator.ok("PUT", f"{path}/identity-key", "site-a", json=other)
    events = (await coordinator.ok("GET", "/v1/events"))["items"]
    assert [each["kind"] for each in events if "identity" in each["kind"]] == [
        "identity-key-set", "identity-key-removed", "identity-key-set",
    ]  # fmt: skip


async def test_a_key_stays_while_a_run_relies_on_it(coordinator: Coordinator) -> None:
    sites = await a_secure_run(coordinator)
    path = f"/v1/clients/{coordinator.clients['site-a']}/identity-key"
    refused = problem(await coordinator.call("DELETE", path), 409, "conflict", "client_id")
    assert "'run-1'" in refused["detail"]
    await coordinator.ok("POST", f"/v1/runs/{sites.run['id']}/cancel")
    await coordinator.ok("DELETE", path)


async def test_peers_are_shown_to_those_who_sum_with_them(coordinator: Coordinator) -> None:
    sites = await a_secure_run(coordinator)
    await coordinator.enrol("outsider")
    path = f"/v1/runs/{sites.run['id']}/peers"
    wanted = [
        {"client": name, "key": site.key, "fingerprint": fingerprint(site.key)}
        for name, site in sites.all.items()
    ]
    for who in ("site-a", "admin", "auditor"):
        assert await coordinator.ok("GET", path, who) == wanted
    for who in ("outsider", "worker"):  # no client of it is managed
        problem(await coordinator.call("GET", path, who), 404, "not-found")
    problem(await coordinator.call("GET", path, "scientist"), 403, "forbidden")


async def test_another_clients_steps_do_not_exist(coordinator: Coordinator) -> None:
    sites = await a_secure_run(coordinator)
    step = await sites["site-a"].offered()
    answer = sites["site-a"].answer_of(step).model_dump(mode="json", exclude_none=True)
    path = f"/v1/secure-steps/{step.step_id}"
    for who in ("site-b", "worker"):
        problem(await coordinator.call("GET", path, who), 404, "not-found")
        problem(await coordinator.call("PUT", path, who, json=answer), 404, "not-found")
        code = {"code": "site-not-ready"}
        problem(await coordinator.call("POST", f"{path}/decline", who, json=code), 404, "not-found")
    assert await coordinator.sql("SELECT 1 FROM sum_steps WHERE state <> 'asked'") == []
    shown = await coordinator.ok("GET", path, "site-a")
    assert shown == step.model_dump(mode="json")


async def _made(coordinator: Coordinator, names: tuple[str, ...], **changes: Any) -> Any:
    plan = a_plan(**{**SECURE, **changes})
    return await coordinator.call("POST", "/v1/runs", json={"plan": plan, "clients": list(names)})


async def test_a_run_needs_thresholds_and_keys(coordinator: Coordinator) -> None:
    await coordinator.enrol(*SITES)
    for name in SITES[:2]:
        await Site(coordinator, name).register()
    found = problem(await _made(coordinator, SITES), 409, "conflict", "clients.2")
    assert "fedhypevae agent identity register" in found["mend"]
    for name in SITES[2:]:
        await Site(coordinator, name).register()
    few = await _made(coordinator, SITES[:3], secure={"drop": 1, "collude": 1})
    problem(few, 422, "invalid-plan", "plan.secure.drop")
    body = {"plan": a_plan(**SECURE), "participants": 3}
    planned = await coordinator.call("POST", "/v1/planner", json=body)
    problem(planned, 422, "invalid-plan", "plan.secure.drop")
    secure = await coordinator.ok("POST", "/v1/planner", json={**body, "participants": 4})
    assert secure["plan"]["epsilon"] <= 4.0
    made = await _made(coordinator, SITES)
    assert made.status_code == 201, made.text


async def test_no_client_may_bear_the_name_of_all(coordinator: Coordinator) -> None:
    names = (*SITES[:3], "all-sites")
    await coordinator.enrol(*names)
    for name in names:
        await Site(coordinator, name).register()
    problem(await _made(coordinator, names), 422, "invalid-plan", "clients.3")
