"""A site comes in, and its token is replaced: the real coordinator, killed at every moment."""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from core.wire.credentials import fingerprint, new_code, new_token
from tests.api.support import SPACE
from tests.worker import real
from tests.worker.real import Federation
from tests.worker.support import FAST
from worker.agent import enrol, renewal
from worker.agent.renewal import Renewal, rotate
from worker.cli import agent_app
from worker.client import CoordinatorClient
from worker.credentials import TokenFile, checked
from worker.errors import ApiProblem, ConfigError, EnrolmentRefused, NotEnrolledYet

SITE = """
[site]
state_dir = "state"
[[client]]
name = "site-a"
data = "records.npz"
unit = "record"
population = "a/all"
max_epsilon = 8.0
delta = 1e-5
min_noise_multiplier = 0.3
"""


class Killed(BaseException):
    """Stands for kill -9: nothing may catch it."""


@pytest.fixture
def federation(database_url: str, tmp_path: Path) -> Iterator[Federation]:
    folder = tmp_path / "coordinator"
    folder.mkdir()
    with real.federation(database_url, folder) as made:
        yield made


@pytest.fixture
def admin(federation: Federation) -> Iterator[CoordinatorClient]:
    token = real.issue(federation.settings, "admin")
    with CoordinatorClient(federation.url, token, retry=FAST) as client:
        yield client


@pytest.fixture
def nobody(federation: Federation) -> Iterator[CoordinatorClient]:
    with CoordinatorClient(federation.url, None, retry=FAST) as client:
        yield client


def issue(admin: CoordinatorClient, name: str = "site-a", **more: Any) -> dict[str, Any]:
    admin._object("POST", "/v1/spaces", json=SPACE)
    client = {
        "name": name, "space": "tiny", "site": "hospital", "population": "a/all",
        "unit": "record", "managed": False, "budget": {"epsilon": 8.0, "delta": 1e-5},
    }  # fmt: skip
    return admin._object("POST", "/v1/enrolments", json={"client": client, **more})


def decide(admin: CoordinatorClient, made: dict[str, Any], what: str, **body: Any) -> None:
    admin._object("POST", f"/v1/enrolments/{made['id']}/{what}", json=body)


def come_in(
    admin: CoordinatorClient, nobody: CoordinatorClient, keep: TokenFile, **more: Any
) -> dict[str, Any]:
    made = issue(admin, **more)
    with pytest.raises(NotEnrolledYet):
        enrol.enrol(nobody, made["code"], keep, wait_s=0.0, say=lambda _: None)
    decide(admin, made, "approve")
    return enrol.enrol(nobody, made["code"], keep, wait_s=0.0, say=lambda _: None)


def test_a_site_comes_in(
    admin: CoordinatorClient, nobody: CoordinatorClient, federation: Federation, tmp_path: Path
) -> None:
    keep = TokenFile(tmp_path / "state" / "token")
    said: list[str] = []
    made = issue(admin)
    with pytest.raises(NotEnrolledYet, match="not approved yet"):
        enrol.enrol(nobody, made["code"], keep, wait_s=0.0, say=said.append)
    (waiting,) = admin._object("GET", "/v1/enrolments?state=waiting")["items"]
    assert waiting["fingerprint"] in said[0]
    assert waiting["agent"].startswith("fedhypevae ")
    assert not keep.exists(), "a token that nobody accepts is no token"
    decide(admin, made, "approve", fingerprint=waiting["fingerprint"])
    client = enrol.enrol(nobody, made["code"], keep, wait_s=0.0, say=said.append)
    assert client["name"] == "site-a"
    assert fingerprint(keep()) == waiting["fingerprint"]
    assert stat.S_IMODE(keep.path.stat().st_mode) == 0o600
    assert sorted(path.name for path in keep.path.parent.iterdir()) == [".token.lock", "token"]
    with CoordinatorClient(federation.url, keep) as coordinator:
        assert coordinator.client("me")["id"] == client["id"]
    with pytest.raises(ConfigError, match="has a token already"):
        enrol.enrol(nobody, made["code"], keep, wait_s=0.0)


def test_approval_while_it_waits(
    admin: CoordinatorClient, nobody: CoordinatorClient, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(enrol, "_PAUSE_S", 0.05)
    made = issue(admin)
    yes = threading.Timer(0.3, decide, (admin, made, "approve"))
    yes.start()
    keep = TokenFile(tmp_path / "token")
    assert enrol.enrol(nobody, made["code"], keep, wait_s=20.0)["name"] == "site-a"
    yes.join()


def test_a_refusal_is_told(
    admin: CoordinatorClient, nobody: CoordinatorClient, tmp_path: Path
) -> None:
    made, keep = issue(admin), TokenFile(tmp_path / "token")
    with pytest.raises(NotEnrolledYet):
        enrol.enrol(nobody, made["code"], keep, wait_s=0.0)
    decide(admin, made, "refuse", why="nobody knows this site")
    with pytest.raises(EnrolmentRefused, match="nobody knows this site"):
        enrol.enrol(nobody, made["code"], keep, wait_s=0.0)
    assert not keep.exists()
    # With another code the same site comes in: the token of the first one is spent.
    assert come_in(admin, nobody, keep)["name"] == "site-a"


@pytest.mark.parametrize("moment", ["put aside", "sent", "accepted"])
def test_killed_while_it_comes_in(
    admin: CoordinatorClient, nobody: CoordinatorClient, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, moment: str,
) -> None:  # fmt: skip
    keep = TokenFile(tmp_path / "token")
    made = issue(admin)
    if moment == "accepted":
        with pytest.raises(NotEnrolledYet):
            enrol.enrol(nobody, made["code"], keep, wait_s=0.0)
        decide(admin, made, "approve")
    with monkeypatch.context() as patch:
        _kill_at(patch, moment, "redeem_enrolment")
        with pytest.raises(Killed):
            enrol.enrol(nobody, made["code"], TokenFile(keep.path), wait_s=0.0)
    if moment != "accepted":
        with pytest.raises(NotEnrolledYet):
            enrol.enrol(nobody, made["code"], keep, wait_s=0.0)
        decide(admin, made, "approve")
    assert enrol.enrol(nobody, made["code"], keep, wait_s=0.0)["name"] == "site-a"


def _kill_at(patch: pytest.MonkeyPatch, moment: str, operation: str) -> None:
    """Right before the request, right after its answer, or before the file is moved."""

    def killed(*_: Any) -> None:
        raise Killed

    if moment == "put aside":
        patch.setattr(CoordinatorClient, operation, killed)
    elif moment == "sent":
        real_one = getattr(CoordinatorClient, operation)

        def sent(self: CoordinatorClient, *arguments: Any) -> None:
            real_one(self, *arguments)
            raise Killed

        patch.setattr(CoordinatorClient, operation, sent)
    else:
        patch.setattr(TokenFile, "accept", killed)


@pytest.fixture
def enrolled(admin: CoordinatorClient, nobody: CoordinatorClient, tmp_path: Path) -> TokenFile:
    keep = TokenFile(tmp_path / "token")
    come_in(admin, nobody, keep)
    return keep


@pytest.fixture
def with_token(federation: Federation) -> Callable[[Any], CoordinatorClient]:
    return lambda token: CoordinatorClient(federation.url, token, retry=FAST)


def test_a_running_client_goes_on_with_the_new_token(
    enrolled: TokenFile, with_token: Callable[[Any], CoordinatorClient]
) -> None:
    old = enrolled()
    with with_token(TokenFile(enrolled.path)) as running, with_token(old) as stuck:
        running.client("me")
        with with_token(enrolled) as other:
            rotate(other, enrolled, with_token, overlap_s=0.0)
        assert enrolled() != old
        running.client("me")
        with pytest.raises(ApiProblem, match="expired"):
            stuck.client("me")


def test_a_request_that_was_on_its_way_is_sent_again(
    enrolled: TokenFile, with_token: Callable[[Any], CoordinatorClient],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The token changes between the reading of the file and the coordinator's answer."""
    old, asked = enrolled(), []
    with with_token(enrolled) as coordinator:
        rotate(coordinator, enrolled, with_token, overlap_s=0.0)
    new = enrolled()

    def late() -> str:
        asked.append(1)
        return old if len(asked) == 1 else new

    with with_token(late) as coordinator:
        assert coordinator.client("me")["name"] == "site-a"
    assert len(asked) == 2


@pytest.mark.parametrize("overlap_s", [600.0, 0.0])
@pytest.mark.parametrize("moment", ["put aside", "sent", "accepted"])
def test_killed_while_it_is_replaced(
    enrolled: TokenFile, with_token: Callable[[Any], CoordinatorClient],
    monkeypatch: pytest.MonkeyPatch, moment: str, overlap_s: float,
) -> None:  # fmt: skip
    """Also when the old token has ended by the time somebody starts again."""
    with monkeypatch.context() as patch, with_token(enrolled) as coordinator:
        _kill_at(patch, moment, "rotate_own_token")
        with pytest.raises(Killed):
            rotate(coordinator, enrolled, with_token, overlap_s=overlap_s)
    with with_token(enrolled) as coordinator:
        made = rotate(coordinator, enrolled, with_token, overlap_s=overlap_s)
        assert made["scope"] == "client"
        assert coordinator.client("me")["name"] == "site-a"
    assert enrolled.next(renewal.PURPOSE) is None


def test_two_do_not_replace_one_token(
    enrolled: TokenFile, with_token: Callable[[Any], CoordinatorClient]
) -> None:
    other = TokenFile(enrolled.path)
    with (
        enrolled.changing(),
        with_token(enrolled) as coordinator,
        pytest.raises(ConfigError, match="another process"),
    ):
        rotate(coordinator, other, with_token)


def test_a_token_is_renewed_in_time(
    admin: CoordinatorClient, nobody: CoordinatorClient, federation: Federation,
    with_token: Callable[[Any], CoordinatorClient], tmp_path: Path,
) -> None:  # fmt: skip
    keep = TokenFile(tmp_path / "token")
    come_in(admin, nobody, keep, token_days=3 / 86_400)  # lives for three seconds
    first, now = keep(), 0.0
    with with_token(keep) as coordinator:
        renew = Renewal(coordinator, keep, with_token, clock=lambda: now)
        for _ in range(12):  # six seconds, twice its life
            renew()
            assert coordinator.client("me")["name"] == "site-a"
            time.sleep(0.5)
            now += renewal.LOOK_S
    assert keep() != first
    rows = federation.sql("SELECT count(*) FROM tokens WHERE scope = 'client'")
    assert 3 <= rows[0][0] <= 7, "not at every look"


def test_a_renewal_that_fails_is_no_end(
    enrolled: TokenFile, with_token: Callable[[Any], CoordinatorClient],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with with_token(enrolled) as coordinator:
        mine = {**coordinator.own_token(), "expires_in_s": 1.0}
        monkeypatch.setattr(CoordinatorClient, "own_token", lambda _: mine)
        renew, before = Renewal(coordinator, enrolled, with_token), enrolled()
        with enrolled.changing():  # somebody else replaces it just now
            renew()
        assert enrolled() == before


# --- files ---


def test_what_is_no_token_is_never_shown(tmp_path: Path) -> None:
    for content in (b"", b"two words", b"\xff\xfe", b"line\nline"):
        (tmp_path / "token").write_bytes(content)
        with pytest.raises(ConfigError) as failure:
            TokenFile(tmp_path / "token")()
        assert failure.value.field == "token"
        assert "words" not in str(failure.value)
    with pytest.raises(ConfigError, match="agent enrol"):
        TokenFile(tmp_path / "none")()
    assert checked(" fhv_client_x\n") == "fhv_client_x"


def test_a_folder_that_takes_no_files_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot keep a token"):
        TokenFile(tmp_path / "file" / "token").put_aside("x", new_token("client"))


# --- commands ---


@pytest.fixture
def agent(
    federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    monkeypatch.setattr("worker.logs.configure", lambda _: None)
    (tmp_path / "site.toml").write_text(SITE)
    real.write_records(tmp_path / "records.npz", 1)
    monkeypatch.setenv("FHV_SITE_CONFIG", str(tmp_path / "site.toml"))
    monkeypatch.setenv("FHV_COORDINATOR_URL", federation.url)
    return lambda *arguments: CliRunner().invoke(agent_app, list(arguments))


def test_the_commands_of_a_site(
    agent: Callable[..., Result], admin: CoordinatorClient, federation: Federation, tmp_path: Path
) -> None:
    result = agent("check")
    assert (result.exit_code, "agent enrol CODE" in result.stdout) == (1, True), result.output
    made = issue(admin)
    waits = agent("enrol", made["code"].lower(), "--wait", "0")
    assert waits.exit_code == 1
    assert "Tell the coordinator's administrator this fingerprint: " in waits.stdout
    assert "the same command again" in waits.stderr
    decide(admin, made, "approve")
    done = agent("enrol", made["code"], "--wait", "0")
    assert done.exit_code == 0, done.output
    assert "Enrolled as 'site-a'" in done.stdout
    assert "Next: fedhypevae agent check" in done.stdout
    token = (tmp_path / "state" / "token").read_text().strip()
    assert token not in waits.output + done.output
    key = json.loads(agent("identity", "show", "--json").output)["keys"][0]["key"]
    kept = federation.sql("SELECT identity_key FROM clients WHERE name = 'site-a'")
    assert kept == [(key,)], "a site that has a ledger tells the key of its secure sums"
    assert agent("check").exit_code == 0
    rotated = agent("rotate-token", "--overlap", "0")
    assert rotated.exit_code == 0, rotated.output
    assert (tmp_path / "state" / "token").read_text().strip() != token
    assert agent("check").exit_code == 0
    again = agent("enrol", made["code"])
    assert (again.exit_code, "has a token already" in again.stderr) == (1, True)


def test_a_site_file_that_does_not_fit_is_said(
    agent: Callable[..., Result], admin: CoordinatorClient, tmp_path: Path
) -> None:
    made = issue(admin, "site-b")
    agent("enrol", made["code"], "--wait", "0")
    decide(admin, made, "approve")
    done = agent("enrol", made["code"], "--wait", "0")
    assert done.exit_code == 0
    assert "it has no [[client]] named 'site-b'" in done.stdout
    (tmp_path / "site.toml").write_text(
        '[site]\nstate_dir = "state"\n' + done.stdout.partition("It needs:")[2]
    )
    assert agent("check").exit_code == 0, "what it printed is what the file needs"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("enrol", "ABC"), "it has 3 letters"),
        (("enrol", new_code()), "no enrolment has this code"),
        (("rotate-token",), "cannot read the token file"),
    ],
)
def test_what_goes_wrong_is_said(
    agent: Callable[..., Result], arguments: tuple[str, ...], says: str
) -> None:
    result = agent(*arguments)
    assert result.exit_code == 1
    assert says in result.stderr


def test_a_token_in_the_environment_cannot_be_replaced(
    agent: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FHV_TOKEN", new_token("client"))
    result = agent("rotate-token")
    assert (result.exit_code, "FHV_TOKEN_FILE" in result.stderr) == (1, True)


def test_nobody_reads_a_token_while_it_is_written(tmp_path: Path) -> None:
    keep = TokenFile(tmp_path / "token")
    seen: set[int] = set()
    before = os.umask(0)
    try:
        keep.put_aside("x", new_token("client"))
        seen.update(stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir())
    finally:
        os.umask(before)
    assert seen == {0o600}
