"""Problems and OpenAPI are complete; odd requests are answered in problem+json."""

from __future__ import annotations

import csv
import importlib
import io
import pkgutil
import re
import subprocess
import sys
from typing import Any

import pytest

import api
import core
from api import examples, problems
from api.app import create_app
from api.clients.service import ClientView, Enrolled, NewClient
from api.config import Settings
from api.db.engine import Database
from api.enrolments import examples as enrolment_examples
from api.enrolments.messages import (
    Approval,
    EnrolmentMade,
    EnrolmentView,
    NewEnrolment,
    Redeemed,
    Redemption,
    Refusal,
)
from api.erasure.service import ErasedView
from api.events.service import EndView, EventView, ProgressView
from api.joins.service import JoinView, NewJoin
from api.ledger import table
from api.ledger.service import LedgerView
from api.ledger.statement import StatementView
from api.own_token import OwnToken, Rotated, Rotation
from api.planner.service import PlannerRequest, PlannerView
from api.receipts.keys import KeysView
from api.receipts.service import Proof, Verdict
from api.replays.service import ReplayView
from api.report.example import REPORT
from api.rounds.service import ModelView, RoundView
from api.runs.service import NewRun, RunView
from api.secure_sums import examples as secure_sums
from api.spaces import SpaceView
from api.synthesis_jobs.service import JobView
from api.tokens import NewToken, TokenMade, TokenView
from api.usage.service import TokenUsage, UsageView
from api.webhooks import examples as webhooks
from api.webhooks.service import DeliveryView, NewWebhook, WebhookMade, WebhookView
from core.errors import DomainError
from core.federation.plan import EmbeddingSpace
from core.receipts.receipt import Receipt
from core.receipts.signing import Signed
from core.report.report import Report
from core.synthesis.request import SynthesisRequest
from core.wire import messages, secure, synthesis
from tests.api.support import Coordinator, problem


def _subclasses(kind: type) -> set[type]:
    direct = set(kind.__subclasses__())
    return direct.union(*(_subclasses(one) for one in direct))


def test_every_domain_error_has_a_status() -> None:
    for package in (api, core):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):  # importing a program runs it
                importlib.import_module(module.name)
    ours = {
        kind for kind in _subclasses(DomainError) if kind.__module__.startswith(("api", "core"))
    }
    codes = {kind.code for kind in ours} | {DomainError.code}  # type: ignore[attr-defined]
    assert codes <= set(problems.CATALOGUE), codes - set(problems.CATALOGUE)
    for status, title in problems.CATALOGUE.values():
        assert 400 <= status < 600
        assert title


def test_the_api_imports_no_torch_no_opacus_no_worker() -> None:
    code = (
        "import sys, api.app, api.cli, api.sweeper; "
        "print(sorted({'torch', 'opacus', 'worker'} & {m.split('.')[0] for m in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    settings = Settings(
        env="dev", database_url="postgresql://nowhere/x", object_store_url="file:///nowhere"
    )
    return create_app(settings).openapi()


def _operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method, path, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
    ]


def test_every_operation_is_documented_with_examples(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for _, _, operation in _operations(document)]
    assert len(ids) == len(set(ids)) >= 29
    for method, path, operation in _operations(document):
        where = f"{method} {path}"
        assert operation["summary"], where
        assert operation["description"], where
        assert operation["tags"], where
        assert "secret" not in operation["operationId"], where
        for media, content in operation.get("requestBody", {}).get("content", {}).items():
            assert content.get("example") or content.get("examples"), f"{where}: {media}"
        successes = {k: v for k, v in operation["responses"].items() if k.startswith("2")}
        assert successes, where
        shown = [
            content
            for answer in successes.values()
            for content in answer.get("content", {}).values()
            if "example" in content
        ]
        assert shown or set(successes) == {"204"}, f"{where} has no example of an answer"
        for code, answer in operation["responses"].items():
            if not code.startswith(("2", "3")):
                examples_of = answer["content"][problems.CONTENT_TYPE]["examples"]
                assert all(str(e["value"]["status"]) == code for e in examples_of.values())


def test_everything_but_health_needs_the_bearer_scheme(document: dict[str, Any]) -> None:
    scheme = document["components"]["securitySchemes"]["bearer"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    for _, path, operation in _operations(document):
        public = path in ("/healthz", "/readyz", "/v1/enrolments/redeem")
        assert (operation.get("security") == [{"bearer": []}]) != public, path


@pytest.mark.parametrize(
    ("model", "value"),
    [
        (EmbeddingSpace, examples.SPACE),
        (SpaceView, examples.SPACE_VIEW),
        (NewClient, examples.CLIENT_NEW),
        (ClientView, examples.CLIENT),
        (Enrolled, examples.ENROLLED),
        (NewToken, examples.TOKEN_NEW),
        (TokenView, examples.TOKEN),
        (TokenMade, examples.TOKEN_MADE),
        (OwnToken, examples.OWN_TOKEN),
        (Rotation, examples.TOKEN_ROTATION),
        (Rotated, examples.TOKEN_ROTATED),
        (NewEnrolment, enrolment_examples.NEW),
        (EnrolmentMade, enrolment_examples.MADE),
        (EnrolmentView, enrolment_examples.WAITING),
        (EnrolmentView, enrolment_examples.APPROVED),
        (EnrolmentView, enrolment_examples.REFUSED),
        (Redemption, enrolment_examples.REDEMPTION),
        (Redeemed, enrolment_examples.REDEEMED),
        (Approval, enrolment_examples.APPROVAL),
        (Refusal, enrolment_examples.REFUSAL),
        (NewRun, examples.RUN_NEW),
        (RunView, examples.RUN),
        (RoundView, examples.ROUND),
        (NewJoin, examples.JOIN_NEW),
        (JoinView, examples.JOIN),
        (ModelView, examples.MODEL),
        (LedgerView, examples.LEDGER),
        (StatementView, examples.STATEMENT),
        (PlannerRequest, examples.PLANNER),
        (PlannerView, examples.PLANNED),
        (SynthesisRequest, examples.SYNTHESIS),
        (Signed, examples.SIGNED_RECEIPT),
        (Receipt, examples.SIGNED_RECEIPT["receipt"]),
        (Report, REPORT),
        (UsageView, examples.USAGE),
        (JobView, examples.SYNTHESIS_JOB),
        (synthesis.Claim, examples.SYNTHESIS_CLAIM),
        (synthesis.SynthesisJob, examples.SYNTHESIS_WORK),
        (synthesis.Part, examples.SYNTHESIS_PART),
        (synthesis.FileMade, examples.SYNTHESIS_FILE_MADE),
        (TokenUsage, examples.TOKEN_USAGE),
        (Verdict, examples.VERDICT),
        (Proof, examples.PROOF),
        (KeysView, examples.RECEIPT_KEYS),
        (messages.WorkOrder, examples.ORDER),
        (messages.OfferedOrder, examples.OFFERED_ORDER),
        (messages.OfferedPlan, examples.OFFERED_PLAN),
        (messages.PlanOffer, examples.PLAN_APPROVED),
        (messages.ConsentDecision, examples.CONSENT),
        (messages.LeaseRenewal, examples.RENEWAL),
        (messages.WorkFailure, examples.FAILURE),
        (messages.UpdateReceipt, examples.RECEIPT),
        (messages.AggregateJob, examples.JOB),
        (messages.AggregateResult, examples.JOB_RESULT),
        (messages.JobFailure, examples.JOB_FAILURE),
        (secure.SumStep, secure_sums.STEP),
        (secure.OfferedStep, secure_sums.OFFERED_STEP),
        (secure.StepAnswer, secure_sums.ANSWER),
        (secure.StepDecline, secure_sums.DECLINE),
        (secure.StepReceipt, secure_sums.RECEIPT),
        (secure.IdentityKey, secure_sums.IDENTITY),
        (secure.Peer, secure_sums.PEER),
        (EventView, examples.EVENT_VIEW),
        (ProgressView, examples.PROGRESS),
        (EndView, examples.END),
        (ReplayView, examples.REPLAY),
        (ErasedView, examples.ERASED),
        (NewWebhook, webhooks.NEW),
        (WebhookView, webhooks.WEBHOOK),
        (WebhookMade, webhooks.ROTATED),
        (DeliveryView, webhooks.DELIVERY),
        (DeliveryView, webhooks.PONG),
    ],
)
def test_examples_are_what_the_models_say(model: Any, value: dict[str, Any]) -> None:
    parsed = model.model_validate(value)
    assert set(parsed.model_dump()) >= set(value)


async def test_odd_requests_get_problem_json(coordinator: Coordinator) -> None:
    problem(await coordinator.call("GET", "/nothing"), 404, "not-found")
    wrong = await coordinator.call("DELETE", "/healthz")
    problem(wrong, 405, "method-not-allowed")
    assert wrong.headers["Allow"] == "GET"
    broken = await coordinator.call(
        "POST", "/v1/spaces", content=b"{", headers={"Content-Type": "application/json"}
    )
    problem(broken, 422, "invalid-request")
    empty = await coordinator.call("POST", "/v1/spaces")
    problem(empty, 422, "invalid-request")
    problem(await coordinator.call("GET", "/v1/runs/7"), 422, "invalid-request", "run_id")
    nan = await coordinator.call(
        "POST",
        "/v1/spaces",
        content=b'{"dim": NaN}',
        headers={"Content-Type": "application/json"},
    )
    problem(nan, 422, "invalid-request")


async def test_large_json_is_refused_declared_or_not(coordinator: Coordinator) -> None:
    limit = coordinator.ctx.settings.max_json_bytes
    headers = {"Content-Type": "application/json"}
    declared = await coordinator.call(
        "POST", "/v1/spaces", content=b" " * (limit + 1), headers=headers
    )
    problem(declared, 413, "payload-too-large")

    async def chunks():
        for _ in range(limit // 2**20 + 1):
            yield b" " * 2**20

    streamed = await coordinator.call("POST", "/v1/spaces", content=chunks(), headers=headers)
    problem(streamed, 413, "payload-too-large")


async def test_request_ids_and_protocol(coordinator: Coordinator) -> None:
    echoed = await coordinator.call("GET", "/healthz", headers={"X-Request-ID": "mine-1"})
    assert echoed.headers["X-Request-ID"] == "mine-1"
    assert echoed.headers["X-FHV-Protocol"] == "1"
    forged = await coordinator.call("GET", "/healthz", headers={"X-Request-ID": "a b" * 50})
    assert len(forged.headers["X-Request-ID"]) == 36
    other = await coordinator.call("GET", "/healthz", headers={"X-FHV-Protocol": "4"})
    problem(other, 400, "unsupported-protocol", "X-FHV-Protocol")


async def test_crashes_are_500_without_details(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("the secret is 42")

    monkeypatch.setattr("api.clients.repository.page", broken)
    found = problem(await coordinator.call("GET", "/v1/clients"), 500, "internal-error")
    assert "secret" not in str(found)  # digits alone may be in the request id


async def test_a_database_that_is_away_is_a_503_to_try_again(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    await coordinator.ok("GET", "/v1/clients")
    away = Database("postgresql+psycopg://nobody@127.0.0.1:1/nothing", pool_size=2)
    object.__setattr__(coordinator.ctx, "database", away)
    refused = await coordinator.call("GET", "/v1/clients")
    problem(refused, 503, "not-ready")
    assert refused.headers["Retry-After"] == "2"
    await away.close()


async def test_health_and_readiness(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await coordinator.ok("GET", "/healthz", None) == {"status": "ok"}
    ready = await coordinator.ok("GET", "/readyz", None)
    assert ready == {"database": "ok", "store": "ok", "broker": "not configured"}

    def away(_: str) -> bool:
        raise OSError("gone")

    monkeypatch.setattr(coordinator.ctx.store, "exists", away)
    found = problem(await coordinator.call("GET", "/readyz", None), 503, "not-ready")
    assert found["store"] == "unreachable"


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
async def test_documents_for_people_work_without_internet(
    coordinator: Coordinator, page: str
) -> None:
    html = (await coordinator.http.get(page)).text
    assets = re.findall(r'(?:src|href)="([^"]+)"', html)
    scripts = [asset for asset in assets if asset.endswith((".js", ".css"))]
    assert scripts
    for asset in assets:
        assert asset.startswith("/"), f"{page} would fetch {asset}"
    for script in scripts:
        assert (await coordinator.http.get(script)).status_code == 200


def test_a_ledgers_table_runs_nothing_in_a_spreadsheet() -> None:
    ledger = LedgerView.model_validate(examples.LEDGER)
    hostile = ledger.account.model_copy(update={"site": '=HYPERLINK("x")', "population": "a,\n@b"})
    text = table.to_csv(hostile, ledger.entries)
    (line,) = csv.DictReader(io.StringIO(text, newline=""))
    assert line["site"] == '\'=HYPERLINK("x")'
    assert line["population"] == "a,\n@b"
    assert tuple(line) == table.COLUMNS
    assert examples.LEDGER_TABLE.startswith(",".join(table.COLUMNS) + "\r\n")
