"""``fedhypevae admin enrolments`` against a real coordinator over HTTP."""

from __future__ import annotations

import json
import re

import pytest

from core.federation.plan import EmbeddingSpace
from core.wire.credentials import new_token, read_code
from tests.api.support import SPACE
from tests.worker import real
from tests.worker.test_console import Call, call, federation
from worker.client import CoordinatorClient
from worker.console import enrolments
from worker.errors import ApiProblem

__all__ = ["call", "federation"]  # the fixtures


def test_a_site_comes_in_by_a_code_and_its_fingerprint(
    call: Call, federation: real.Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation.operator.create_space(EmbeddingSpace.model_validate(SPACE))
    to_issue = (
        "admin", "enrolments", "issue", "ward-7", "--space", "tiny", "--site", "st-anna",
        "--population", "st-anna/all", "--unit", "patient", "--epsilon", "8", "--delta", "1e-5",
    )  # fmt: skip
    made = call(*to_issue)
    code = made.stdout.strip()
    assert read_code(code) == code, "the code is alone on standard output"
    assert code not in made.stderr
    assert f"FHV_COORDINATOR_URL={federation.url} fedhypevae agent enrol" in made.stderr
    assert "enrolments approve ward-7" in made.stderr
    assert re.search(r"until 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC", made.stderr)
    taken = call(*to_issue, code=1)
    assert "code:  client-name-taken (409)" in taken.stderr
    listed = call("admin", "enrolments", "list", "--json").stdout
    assert code not in listed
    assert [each["state"] for each in json.loads(listed)] == ["open"]
    early = call("admin", "enrolments", "approve", "ward-7", "--yes", code=1)
    assert "A site must redeem the code first" in early.stderr

    token = new_token("client")
    with CoordinatorClient(federation.url, None) as site:
        said = site.redeem_enrolment(code, token, "fedhypevae 1 on ward-7")["fingerprint"]
    row = call("admin", "enrolments", "list", "--state", "waiting").stdout.splitlines()[1]
    for part in ("ward-7", "waiting", said, "127.0.0.1", "fedhypevae 1"):
        assert part in row
    approve = ("admin", "enrolments", "approve", "ward-7")
    nobody = call(*approve, code=2)  # no terminal, no fingerprint
    assert "--fingerprint" in nobody.stderr
    other = call(*approve, "--fingerprint", "AAAA-AAAA", code=1)
    assert "field: fingerprint" in other.stderr
    with monkeypatch.context() as person:
        person.setattr(enrolments, "at_terminal", lambda: True)
        assert call(*approve, code=1, typed="AAAA-AAAA\n").exit_code == 1
        asked = call(*approve, typed=f"{said.lower()}\n")
    assert "Fingerprint that the site's people read out" in asked.stderr
    assert said not in asked.output.replace(said.lower(), ""), "it comes from the site's people"
    assert "ward-7 is in" in asked.stdout
    with CoordinatorClient(federation.url, token) as client:
        assert client.client("me")["unit"] == "patient"
    late = call("admin", "enrolments", "refuse", "ward-7", "--why", "x", "--yes", code=1)
    assert "Revoke the client" in late.stderr

    # A new token for the client that is there; this time nobody is let in.
    again = json.loads(
        call("admin", "enrolments", "issue", "ward-7", "--existing", "--json").stdout
    )
    assert again["client"] is None
    refuse = ("admin", "enrolments", "refuse", "ward-7", "--why", "sent to the wrong people")
    call(*refuse, code=2)  # nobody was asked
    gone = call(*refuse, "--yes")
    assert gone.stdout == "the enrolment of ward-7 is withdrawn\n"
    with CoordinatorClient(federation.url, None) as site, pytest.raises(ApiProblem) as found:
        site.redeem_enrolment(again["code"], new_token("client"), "late")
    assert found.value.problem == "enrolment-closed"
    states = json.loads(call("admin", "enrolments", "list", "--json").stdout)
    assert [(each["state"], each["why"]) for each in states] == [
        ("approved", ""), ("withdrawn", "sent to the wrong people"),
    ]  # fmt: skip
    assert "no enrolments are waiting" in call(
        "admin", "enrolments", "list", "--state", "waiting", scope="auditor"
    ).stdout  # fmt: skip

    for wrong, hint in (
        (("ward-8", "--space", "tiny"), "--site, --population, --epsilon, --delta"),
        (("ward-7", "--existing", "--epsilon", "9"), "leave --epsilon out"),
        (("ward-8", *to_issue[4:], "--days", "1000"), "expires_in_s"),
    ):
        code_of = 1 if hint == "expires_in_s" else 2
        told = call("admin", "enrolments", "issue", *wrong, code=code_of).stderr
        assert hint in " ".join(told.replace("│", " ").split())
    unknown = call("admin", "enrolments", "approve", "ward-9", "--yes", code=1)
    assert "there is no enrolment 'ward-9'; the newest are: ward-7" in unknown.stderr
    scope = call(*to_issue, code=1, scope="auditor")
    assert "code:  forbidden (403)" in scope.stderr
