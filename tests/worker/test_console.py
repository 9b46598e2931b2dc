"""``fedhypevae admin``, ``run`` and ``synthesize`` against a real coordinator over HTTP."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import Result
from rich.console import Console
from typer.testing import CliRunner

from core.receipts.checking import signed_of
from core.receipts.opening import made_with
from core.receipts.reading import read_rows
from core.secagg.identity import fingerprint
from core.synthesis.formats import FORMATS
from core.terminal import printable
from core.wire.messages import ConsentDecision
from core.wire.synthesis import Claim
from tests.api.support import SPACE, a_plan
from tests.worker import real
from worker import files
from worker.answers import ONCE
from worker.client import CoordinatorClient
from worker.console import watch
from worker.console.admin import admin_app
from worker.console.runs import run_app
from worker.console.synthesize import synthesize_app
from worker.errors import Unreachable

Call = Callable[..., Result]
APPS = {"admin": admin_app, "run": run_app, "synthesize": synthesize_app}


@pytest.fixture
def federation(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[real.Federation]:
    """More than 1,000 rows are a worker's job."""
    monkeypatch.setenv("FHV_SYNTHESIS_JOB_ROWS", "1000")
    with real.federation(database_url, tmp_path) as fed:
        yield fed


@pytest.fixture
def call(federation: real.Federation, monkeypatch: pytest.MonkeyPatch) -> Call:
    """``fedhypevae ...`` with an administrator's token, or with a token of ``scope``."""
    tokens = {"admin": real.issue(federation.settings, "admin")}

    def run(
        *arguments: str, code: int = 0, scope: str = "admin", url: str = "", typed: str = ""
    ) -> Result:
        if scope not in tokens:
            tokens[scope] = real.issue(federation.settings, scope)
        monkeypatch.setenv("FHV_COORDINATOR_URL", url or federation.url)
        monkeypatch.setenv("FHV_TOKEN", tokens[scope])
        done = CliRunner().invoke(APPS[arguments[0]], list(arguments[1:]), typed)
        assert done.exit_code == code, done.output
        return done

    return run


def written(path: Path, value: dict[str, Any]) -> str:
    path.write_text(json.dumps(value) if path.suffix == ".json" else yaml.safe_dump(value))
    return str(path)


def test_an_administrator_sets_up_a_federation(
    call: Call, federation: real.Federation, tmp_path: Path
) -> None:
    space = written(tmp_path / "space.yaml", SPACE)
    assert "space tiny is registered" in call("admin", "spaces", "register", space).stdout
    call("admin", "spaces", "register", space)
    (listed,) = json.loads(call("admin", "spaces", "list", "--json").stdout)
    assert (listed["name"], listed["dim"]) == ("tiny", 6)

    asked = (
        "admin", "clients", "create", "ward-7", "--space", "tiny", "--site", "st-anna",
        "--population", "st-anna/all", "--unit", "patient", "--epsilon", "8", "--delta", "1e-5",
    )  # fmt: skip
    made = call(*asked)
    token = made.stdout.strip()
    assert token.startswith("fhv_client_"), "the token is alone on standard output"
    with CoordinatorClient(federation.url, token) as client:
        assert client.client("me")["name"] == "ward-7"
    taken = call(*asked, code=1)
    assert "code:  client-name-taken (409)" in taken.stderr
    assert "field: name" in taken.stderr
    assert "ward-7  tiny   st-anna  patient  8" in call("admin", "clients", "list").stdout

    scientist = json.loads(
        call("admin", "tokens", "create", "--scope", "scientist", "--label", "ada", "--days", "1",
             "--json").stdout
    )  # fmt: skip
    assert scientist["expires_at"] is not None
    call("admin", "tokens", "revoke", scientist["id"], code=2)  # nobody was asked
    assert "revoked" in call("admin", "tokens", "revoke", scientist["id"], "--yes").stdout
    (line,) = [
        each
        for each in call("admin", "tokens", "list").stdout.splitlines()
        if each.startswith(scientist["id"])
    ]
    assert line.split()[1:3] == ["scientist", "revoked"]
    assert scientist["token"] not in call("admin", "tokens", "list", "--json").stdout

    call("admin", "clients", "revoke", "ward-8", "--why", "x", "--yes", code=1)
    gone = call("admin", "clients", "revoke", "ward-7", "--why", "key stolen", "--yes")
    assert gone.stdout == "client ward-7 is revoked\n"

    kinds = [
        each["kind"]
        for each in json.loads(call("admin", "audit", "list", "--last", "50", "--json").stdout)
    ]
    assert [kind for kind in kinds if kind.startswith("token-")] == [
        "token-created",
        "token-revoked",
    ]
    only = call("admin", "audit", "list", "--kind", "client-revoked", "--client", "ward-7").stdout
    assert len(only.splitlines()) == 1
    assert "key stolen" in only
    wrong = call("admin", "audit", "list", "--kind", "no-such-kind", code=1)
    assert "field: kind" in wrong.stderr


def test_who_follows_the_trail_sees_what_happens(
    call: Call, federation: real.Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came before is shown once, what comes later too, and Ctrl-C ends it well."""
    federation.enrol("site-a", "site-a/all")
    pauses = iter(range(100))

    def pause(_: float) -> None:
        match next(pauses):
            case 0:
                federation.operator.create_token(scope="auditor", label="new")
            case 1:
                federation.enrol("site-b", "site-b/all")
            case 3:
                raise KeyboardInterrupt

    monkeypatch.setattr("worker.console.audit.time.sleep", pause)
    lines = call("admin", "audit", "follow", "--json", "--last", "1").stdout.splitlines()
    kinds = [json.loads(line)["kind"] for line in lines]
    assert kinds == ["client-created", "token-created", "client-created"]


PLAN = a_plan("wards", privacy={**a_plan()["privacy"], "rounds": 2})


def test_a_run_from_its_plan_to_its_report(
    call: Call, federation: real.Federation, tmp_path: Path
) -> None:
    sites = {}
    for name in ("site-a", "site-b"):
        federation.enrol(name, f"{name}/all", site=name)
        sites[name] = federation.config(f"state-{name}", f"{name}/all", name)
    plan = written(
        tmp_path / "plan.yaml",
        {**PLAN, "round": {"quorum": 2, "deadline_s": 600.0, "lease_s": 300.0}},
    )
    members = ("--clients", "site-a,site-b")

    price = call("run", "create", plan, *members, "--dry-run").stdout
    assert price.count("fits") == 2
    assert "no runs" in call("run", "list").stdout, "a dry run creates nothing"
    made = json.loads(call("run", "create", plan, *members, "--json").stdout)
    assert (made["name"], made["state"]) == ("wards", "draft")
    assert "field: plan.name" in call("run", "create", plan, *members, code=1).stderr
    call("run", "create", plan, *members, "--name", "other")
    unknown = call("run", "create", plan, "--clients", "site-a,site-z", "--name", "x", code=1)
    assert "field: clients.1" in unknown.stderr
    assert call("run", "start", "wards").stdout == "run wards is running\n"

    assert "is paused" in call("run", "pause", "wards", "--for", "12h").stdout
    call("run", "pause", "wards", "--for", "soon", code=2)
    assert call("run", "resume", made["id"]).stdout == "run wards is running\n"
    until = time.monotonic() + 20
    while "consent awaited: site-a, site-b" not in (shown := call("run", "show", "wards").stdout):
        assert time.monotonic() < until, shown
    assert "missing    site-a, site-b" in shown

    call("run", "cancel", "other", code=2)
    assert "is cancelled" in call("run", "cancel", "other", "--yes").stdout
    call("run", "watch", "other", code=1)

    worked = threading.Thread(target=_work, args=(federation, made, sites))
    worked.start()
    followed = call("run", "watch", "wards", "--every", "0.1")
    worked.join(60)
    assert not worked.is_alive()
    lines = followed.stdout.splitlines()
    assert lines[0].startswith("wards running  0/3")
    assert lines[-1].startswith("wards completed  3/3")
    assert len(set(lines)) == len(lines), "a line only where something has changed"
    last = json.loads(call("run", "watch", "wards", "--json").stdout.splitlines()[-1])
    assert last["state"] == "completed"
    assert last["epsilon"]["site-a"] == pytest.approx(last["epsilon_planned"])

    call("run", "report", "wards", "--out", str(tmp_path / "r.html"))
    assert "<html" in (tmp_path / "r.html").read_text()
    call("run", "report", "wards", "--out", str(tmp_path / "r.json"))
    assert json.loads((tmp_path / "r.json").read_text())
    nowhere = call("run", "report", "wards", "--out", str(tmp_path / "no" / "r.html"), code=1)
    assert "field: out" in nowhere.stderr

    states = {
        each["name"]: each["state"] for each in json.loads(call("run", "list", "--json").stdout)
    }
    assert states == {"wards": "completed", "other": "cancelled"}
    _rows(call, federation, tmp_path)


def _work(federation: real.Federation, made: dict[str, Any], sites: dict[str, Any]) -> None:
    for name in sites:
        word = ConsentDecision(
            client=name, spec_digest=made["spec_digest"], decision="approve", by="policy"
        )
        with federation.client(name) as client:
            client.decide(made["id"], word)
    federation.complete(made["id"], sites, rounds=3)


def _rows(call: Call, federation: real.Federation, tmp_path: Path) -> None:
    """All formats, with receipts that hold, and clear words about what cannot be."""
    for kind in FORMATS:
        out = tmp_path / f"rows.{kind}"
        done = call(
            "synthesize", "--run", "wards", "--n", "60", "--labels", "uniform", "--seed", "7",
            "--domain", "site-a=0.7", "--domain", "site-b=0.3", "--out", str(out),
            "--receipt", str(tmp_path / "receipt.json"), scope="scientist",
        )  # fmt: skip
        assert f"60 rows in {out}, seed 7" in done.stderr
        assert "ok        signature" in done.stderr
        compared = kind not in ("csv", "ndjson", "npy")
        assert ("ok        rows" in done.stderr) == compared, done.stderr
        receipt = signed_of(json.loads((tmp_path / "receipt.json").read_text())).receipt
        assert receipt["asked"]["mixture"] == {"site-a": 0.7, "site-b": 0.3}
        if compared:
            assert sum(len(labels) for _, labels in read_rows(out).parts) == 60
    table = pq.read_table(tmp_path / "rows.parquet")
    assert table["label"].to_pylist().count("a") == 20

    piped = call(
        "synthesize", "--run", "wards", "--n", "3", "--format", "csv", "--out", "-",
        scope="scientist",
    )  # fmt: skip
    assert len(piped.stdout.splitlines()) == 4
    told = call(
        "synthesize", "--run", "wards", "--counts", "a=2,b=1", "--mixture", "site-a", "--json",
        "--out", str(tmp_path / "few.npz"), scope="scientist",
    )  # fmt: skip
    document = json.loads(told.stdout)
    assert all(each["holds"] for each in document["checks"].values())
    with np.load(tmp_path / "few.npz") as arrays:
        assert arrays["label_ids"].tolist().count(0) == 2

    working = threading.Thread(target=_make_a_file, args=(federation,))
    working.start()
    many = call(
        "synthesize", "--run", "wards", "--n", "5000", "--out", str(tmp_path / "many.pq"),
        scope="scientist",
    )  # fmt: skip
    working.join(30)
    assert "ok        rows: 5,000 rows" in many.stderr
    assert pq.read_table(tmp_path / "many.pq").num_rows == 5000

    asked = ("synthesize", "--run", "wards", "--n", "5")
    there = call(*asked, "--out", str(tmp_path / "rows.csv"), code=2, scope="scientist")
    assert "--force" in there.stderr
    for wrong, said in (
        (("--labels", "q"), "--labels"),
        (("--domain", "a", "--mixture", "b"), "not both"),
        (("--counts", "a=1"), "exactly one of n and counts"),
    ):
        out = str(tmp_path / "new.csv")
        assert said in call(*asked, *wrong, "--out", out, code=2, scope="scientist").stderr
    refused = call(
        *asked, "--domain", "nobody", "--out", str(tmp_path / "new.csv"), code=1, scope="scientist"
    )
    assert "nobody" in refused.stderr
    assert not (tmp_path / "new.csv").exists()
    scope = call(*asked, "--out", str(tmp_path / "new.csv"), code=1, scope="auditor")
    assert "code:  forbidden (403)" in scope.stderr


def _make_a_file(federation: real.Federation) -> None:
    """A worker of the queue synthesis."""
    until = time.monotonic() + 20
    while not (ready := federation.sql("SELECT id FROM synthesis_jobs WHERE state = 'ready'")):
        assert time.monotonic() < until, "nobody asked for a file"
        time.sleep(0.05)
    job = federation.worker.claim_file(str(ready[0][0]), Claim(made_with=made_with()))
    store = federation.settings.object_store_url
    assert files.make(job, federation.worker, store, stop=threading.Event()) == "completed"


def test_the_live_view_shows_who_is_missing_and_why(
    call: Call, federation: real.Federation
) -> None:
    federation.enrol("site-a", "site-a/all")
    run_id = federation.start("wards", "site-a")
    until = time.monotonic() + 20
    while (view := watch.look(federation.operator, run_id)).round is None or not view.why:
        assert time.monotonic() < until
        time.sleep(0.05)
    screen = Console(file=io.StringIO(), width=100)
    screen.print(watch.drawn(view, "no answer from x. Trying again."))
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    for part in ("wards", "running", "0 of 2 rounds", "site-a", "taking-part", "approved", "quorum",
                 "Trying again"):  # fmt: skip
        assert part in text, text
    assert "asking the coordinator" in str(watch.drawn(None, ""))


def test_an_outage_is_said_once_and_waited_out(
    federation: real.Federation, capsys: pytest.CaptureFixture[str]
) -> None:
    federation.enrol("site-a", "site-a/all")
    run_id = federation.start("wards", "site-a")
    federation.operator.cancel_run(run_id)
    real_run, calls = federation.operator.run, iter(range(9))

    def run(name: str) -> Any:
        if next(calls) < 3:
            raise Unreachable("no answer from x.")
        return real_run(name)

    federation.operator.run = run  # type: ignore[method-assign]
    state = watch.follow(federation.operator, run_id, every_s=0.01, as_json=False)
    shown = capsys.readouterr()
    assert state == "cancelled"
    assert shown.err.count("Trying again") == 1
    assert shown.out.startswith("wards cancelled")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("plan.yaml", "name: [", "cannot read"),
        ("plan.yaml", "just words", "no keys and values"),
        ("plan.toml", "name = ", "cannot read"),
        ("plan.json", "{", "cannot read"),
        ("plan.yaml", "name: wards\nspace: tiny\ncolour: red", "privacy: missing"),
        ("plan.yaml", "name: wards\nspace: tiny\ncolour: red", "colour: no such key"),
        ("plan.yaml", "!!python/object/apply:os.system ['true']", "cannot read"),
    ],
)
def test_a_plan_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, text: str, says: str
) -> None:
    """Found before anything is sent: there is no coordinator here."""
    monkeypatch.setenv("FHV_COORDINATOR_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("FHV_TOKEN", "fhv_admin_x")
    (tmp_path / name).write_text(text)
    done = CliRunner().invoke(run_app, ["create", str(tmp_path / name), "--clients", "a"])
    assert done.exit_code == 1
    assert says in done.stderr
    assert "Traceback" not in done.output


def test_no_settings_no_coordinator_and_plain_http(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.console.base._PATIENCE", ONCE)
    for name in ("FHV_TOKEN", "FHV_COORDINATOR_URL"):
        monkeypatch.delenv(name, raising=False)
    done = CliRunner().invoke(run_app, ["list"])
    assert done.exit_code == 1
    assert "mend:  Set FHV_TOKEN" in done.stderr
    monkeypatch.setenv("FHV_TOKEN", "fhv_admin_x")
    monkeypatch.setenv("FHV_COORDINATOR_URL", "http://127.0.0.1:9")
    done = CliRunner().invoke(run_app, ["list"])
    assert done.exit_code == 1
    assert "mend:  Check FHV_COORDINATOR_URL" in done.stderr
    monkeypatch.setenv("FHV_COORDINATOR_URL", "http://coordinator.invalid")
    assert "unencrypted" in CliRunner().invoke(run_app, ["list"]).stderr


def test_what_the_other_side_sends_steers_no_terminal() -> None:
    assert printable("a\x1b[2Jb\r") == "a\N{REPLACEMENT CHARACTER}[2Jb\N{REPLACEMENT CHARACTER}"


def test_keys_of_secure_sums_are_set_for_managed_clients_and_removed(
    call: Call, federation: real.Federation
) -> None:
    federation.enrol("site-a", "site-a/all")
    federation.operator.enrol_client(
        name="ward", space="tiny", site="ward", population="ward/all", unit="record",
        managed=True, epsilon=2.0, delta=1e-5,
    )  # fmt: skip
    key = "5f" * 32
    said = call("admin", "clients", "identity-key", "ward", key, "--yes").output
    assert fingerprint(key) in said
    call("admin", "clients", "identity-key", "ward", key, "--yes")  # the same again
    other = call("admin", "clients", "identity-key", "ward", "60" * 32, "--yes", code=1).output
    assert "has another identity key" in other
    assert "--remove" in call("admin", "clients", "identity-key", "ward", code=2).output
    short = call("admin", "clients", "identity-key", "ward", "5f", code=2).output
    assert "64 hexadecimal" in short
    own = call("admin", "clients", "identity-key", "site-a", key, "--yes", code=1).output
    assert "not yours to speak for" in own
    call("admin", "clients", "identity-key", "ward", "--remove", "--yes")
    call("admin", "clients", "identity-key", "ward", "60" * 32, "--yes")


def test_of_secure_sums_epsilon_is_said_with_its_premise(
    call: Call, federation: real.Federation, tmp_path: Path
) -> None:
    """Before, at and after the making of a run; and nothing of the kind of a plain one."""
    names = ("site-a", "site-b", "site-c")
    for name in names:
        federation.enrol(name, f"{name}/all")
        with federation.client(name) as client:
            key = name.encode().hex().ljust(64, "0")
            client.put_identity_key(str(client.client("me")["id"]), key)
    plain = {**PLAN, "round": {"quorum": 2, "deadline_s": 600.0, "lease_s": 300.0}}
    secure = {
        **plain,
        "name": "together",
        "aggregation": "secure",
        "secure": {"drop": 0, "collude": 1, "step_s": 60.0},
    }
    said = "epsilon of founding clients holds while no more than 1 of a round's other clients work"
    for plan, rests in ((plain, False), (secure, True)):
        file = written(tmp_path / "plan.yaml", plan)
        for options in (("--dry-run",), ()):
            shown = call("run", "create", file, "--clients", ",".join(names), *options).stdout
            assert (
                (f"premise: {said}" in shown)
                == ("against everybody else together" in shown)
                == rests
            ), shown
        name = str(plan["name"])
        assert (
            "premise    epsilon of founding clients holds while" in call("run", "show", name).stdout
        ) == rests
        made = json.loads(call("run", "show", name, "--json").stdout)["run"]
        view = watch.look(federation.operator, str(made["id"]))
        screen = Console(file=io.StringIO(), width=100)
        screen.print(watch.drawn(view, ""))
        drawn = screen.file.getvalue()  # type: ignore[attr-defined]
        assert ("no more than 1 of" in drawn) == rests, drawn
        assert ("on the premise of secure sums" in watch.one_line(view)) == rests
    listed = call("run", "list").stdout.splitlines()
    assert [line.split()[4] for line in listed] == ["SUMS", "plain", "secure"]
