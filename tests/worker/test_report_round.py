"""A report round at a site: judged by its policy, charged, computed on its records, sent once; and
a whole run with one over real HTTP.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core.errors import PlanRefused
from core.federation.aggregate import Aggregated, aggregate
from core.federation.plan import Noise, RunSpec
from core.federation.updates import check_update, expectation
from core.privacy import accounting
from core.report.statistics import read
from core.wire import tensors
from core.wire.messages import AggregateInput, AggregateJob, ObjectRef, WorkOrder
from tests.worker.real import federation
from tests.worker.support import Script, make_config, make_order, make_spec, write_records
from worker.agent.policy import judge
from worker.agent.site import Site
from worker.cache import digest_of_bytes
from worker.config import ClientConfig
from worker.execution import Outcome, perform

NOISE = Noise(sketch_multiplier=3.0, report_multiplier=3.0)


def spec_of(**privacy: Any) -> RunSpec:
    asked = {"rounds": 0, "sketch_share": None, "report_precision": 0.5, "report_holdout": 0.3}
    return make_spec(noise=privacy.pop("noise", NOISE), **(asked | privacy))


def order_of(spec: RunSpec, number: int, files: dict[str, bytes]) -> WorkOrder:
    inputs = tuple(
        ObjectRef(role=role, digest=digest_of_bytes(files[role]), size=len(files[role]))
        for role in ("frame", "weights") if files
    )  # fmt: skip
    order = make_order(spec, round_number=number, inputs=inputs)
    return order.model_copy(update={"kind": spec.kind(number)})


def summed(order: WorkOrder, digest: str, files: dict[str, bytes], script: Script) -> Aggregated:
    job = AggregateJob(
        job_id="j", lease_token="l", lease_s=60, run_id=order.run_id,
        round_number=order.round_number, kind=order.kind, spec=order.spec,
        updates=(AggregateInput(client_id=order.client_id, client="site-a", digest=digest),),
        **{role: digest_of_bytes(body) for role, body in files.items()},
    )  # fmt: skip
    return aggregate(job, (script.bodies | script.objects).__getitem__)


def after_the_sketch(
    spec: RunSpec, site: Site, config: ClientConfig
) -> tuple[Script, dict[str, bytes]]:
    script = Script()
    order = order_of(spec, 0, {})
    script.orders = [order]
    assert perform(order, config, script.place(site)) is Outcome.ACCEPTED
    made = summed(order, script.puts[-1][1], {}, script)
    files = {role: getattr(made, role) for role in ("frame", "weights", "optimiser")}
    script.objects = {digest_of_bytes(body): body for body in files.values()}
    return script, files


def kinds(site: Site) -> list[str]:
    return [entry.kind for entry in site.ledger.entries()]


def test_a_site_carries_a_report_round_out(site: Site, config: ClientConfig) -> None:
    spec = spec_of()
    write_records(config.data, n=400)
    script, files = after_the_sketch(spec, site, config)
    order = order_of(spec, 1, files)
    assert order.kind == "report"
    script.orders = [order]
    assert perform(order, config, script.place(site)) is Outcome.ACCEPTED
    digest = script.puts[-1][1]
    check_update(script.bodies[digest], expectation(spec, 1))
    assert kinds(site) == ["reserve", "commit"] * 2
    # By the site's own ledger the round has its price.
    both = accounting.epsilon(spec.events(), 1e-5)
    assert site.ledger.epsilon(config.population, 1e-5) == both
    assert both > accounting.epsilon([spec.event(0)], 1e-5)
    found = read(spec, summed(order, digest, files, script).weights)
    assert found is not None
    (only,) = found.sites
    assert only.client == "site-a"
    assert abs(only.held_out.value - 120) < 5 * only.held_out.se + 40
    assert abs(only.members.value - 280) < 5 * only.members.se + 40
    # Sent twice, it is the same bytes and no second event.
    assert perform(order, config, script.place(site)) is not Outcome.PLAN_REFUSED
    assert kinds(site) == ["reserve", "commit"] * 2


def test_files_that_no_report_can_use_say_nothing_of_the_records(
    site: Site, config: ClientConfig
) -> None:
    """The order is given back as not ready, as for every other fault, and its attempt is spent."""
    spec = spec_of()
    script, files = after_the_sketch(spec, site, config)
    content, metadata = tensors.unpack(files["weights"])
    left = {n: v for n, v in content.items() if n != "report.axes"}
    files = files | {"weights": tensors.pack(left, metadata)}  # type: ignore[arg-type]
    script.objects = {digest_of_bytes(body): body for body in files.values()}
    order = order_of(spec, 1, files)
    script.orders = [order]
    assert perform(order, config, script.place(site)) is Outcome.GIVEN_BACK
    assert kinds(site) == ["reserve", "commit", "reserve", "lost"]


@pytest.mark.parametrize(
    ("noise", "field"),
    [
        (Noise(sketch_multiplier=3.0, report_multiplier=0.1), "noise.report_multiplier"),
        (Noise(sketch_multiplier=3.0), "noise.report_multiplier"),
    ],
)
def test_the_policy_knows_its_noise(site: Site, records: Path, noise: Noise, field: str) -> None:
    config = make_config(records, min_noise_multiplier=0.5)
    with pytest.raises(PlanRefused) as refused:
        judge(order_of(spec_of(noise=noise), 0, {}), config, site.ledger.entries(), None)
    assert refused.value.field == field


@pytest.mark.timeout(240)
def test_a_run_with_a_report_over_http(
    database_url: str, tmp_path: Path, no_fhv_environment: None
) -> None:
    """Real coordinator, sites with their ledgers, sums by the worker's own code."""
    with federation(database_url, tmp_path) as fed:
        sites = {}
        for name in ("site-a", "site-b"):
            fed.enrol(name, f"{name}/all", site=name)
            sites[name] = fed.config(f"state-{name}", f"{name}/all", name)
        asked = {"epsilon": 20.0, "rounds": 1, "validation_share": 0.0, "report_precision": 0.5}
        run_id = fed.start("run-1", *sites, privacy=asked)
        fed.complete(run_id, sites, rounds=3)
        model = ObjectRef.model_validate(fed.operator.model(run_id)["weights"])
        spec = fed.operator.run(run_id)["spec"]
        weights = fed.operator.download(model.digest, size=model.size)
        found = read(RunSpec.model_validate(spec), weights)
        assert found is not None
        assert [site.client for site in found.sites] == ["site-a", "site-b"]
        for name, config in sites.items():
            with Site.open(config.state_dir) as site:
                executed = [each.event for each in site.ledger.standings(f"{name}/all")]
            assert executed == RunSpec.model_validate(spec).events()
