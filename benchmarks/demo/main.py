"""The demo's steps in order. Each does one thing with real parts; see README.md, "What happens"."""

from __future__ import annotations

import shutil
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console

from benchmarks import scanner_digits
from benchmarks.demo import evaluation, federation, secure
from benchmarks.demo.memory import PeakMemory
from benchmarks.demo.narrator import Narrator
from benchmarks.demo.report import Report
from benchmarks.demo.sites import Client, Party, write_party
from benchmarks.demo.small import clusters
from benchmarks.demo.stack import Stack, services
from benchmarks.scanner_digits import ScannerDigits
from core.federation.plan import Plan, RunSpec
from core.privacy.premise import in_words
from core.processes import ChildEnded, Processes, ServiceError, stop_on_signals
from core.training.compute import Engine
from core.wire.jobs import QUEUE_COORDINATOR, QUEUE_TRAIN
from worker.answers import JsonObject
from worker.errors import ClientError

_HERE = Path(__file__).resolve().parent
ROWS, ROWS_SMALL = 4_000, 400
# Two clients are served by the Celery worker of the queue "train", the third by a site agent.
MANAGED = 2


@dataclass(frozen=True)
class Options:
    small: bool = False
    output: Path = Path("demo-output")
    plan: Path | None = None
    port: int | None = None
    keep: bool = False
    gradients: Engine = "ghost"
    secure: bool = False

    @property
    def rows(self) -> int:
        return ROWS_SMALL if self.small else ROWS


@dataclass(frozen=True)
class Federation:
    """Everything about the parties of one run."""

    data: ScannerDigits
    plan: Plan
    clients: list[Client]
    managed: Party
    alone: Party

    def party(self, client: Client) -> Party:
        return self.managed if client.managed else self.alone


def load_plan(options: Options) -> Plan:
    path = options.plan or _HERE / ("plan_small.toml" if options.small else "plan.toml")
    try:
        plan = Plan.model_validate(tomllib.loads(path.read_text()))
        return secure.of(plan) if options.secure else plan
    except (OSError, tomllib.TOMLDecodeError, ValidationError) as error:
        raise ServiceError(f"cannot use the plan {path}: {error}") from error


@contextmanager
def working_folder(keep: bool, console: Console) -> Iterator[Path]:
    """A temporary folder; kept when something fails, so that the logs can be read."""
    folder = Path(tempfile.mkdtemp(prefix="fhv-"))
    try:
        yield folder
    except Exception:
        console.print(f"Logs and state are kept in {folder}", highlight=False, markup=False)
        raise
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if keep:
        console.print(f"Logs and state are kept in {folder}", highlight=False, markup=False)
    else:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def with_logs(processes: Processes) -> Iterator[None]:
    """When a step fails, add the end of every child's log to what is shown."""
    try:
        yield
    except ChildEnded:
        raise
    except (ServiceError, ClientError) as error:
        tails = "\n".join(
            f"--- last lines of {child.name}:\n{child.tail(15)}" for child in processes.running
        )
        raise ServiceError(f"{error}\n{tails}") from error


def prepare(options: Options, narrator: Narrator, folder: Path, tag: str) -> Federation:
    """Real images (or clusters) into three sites, each with its own folder and configuration."""
    plan = load_plan(options)
    if options.small:
        with narrator.step("Making three small sites of Gaussian clusters"):
            data = clusters()
    else:
        with narrator.step("Three sites of real images, embedded by a frozen ImageNet network"):
            data = scanner_digits.load(track=narrator.track("embedding images (first time only)"))
    for site in data.sites:
        narrator.say(
            f"{site.name}: {site.scanner}, {len(site.train_y)} records, "
            f"{len(site.test_y)} more held out"
        )
    # A database that outlives the demo may know the plain names from an earlier one.
    plan = plan.model_copy(update={"name": plan.name + tag})
    clients = [
        Client(site.name + tag, site, managed=index < MANAGED)
        for index, site in enumerate(data.sites)
    ]
    shared = write_party(
        folder / "site-managed", [c for c in clients if c.managed], plan, data.space
    )
    alone = write_party(
        folder / "site-agent", [c for c in clients if not c.managed], plan, data.space
    )
    return Federation(data, plan, clients, shared, alone)


def train(
    stack: Stack, fed: Federation, narrator: Narrator, admin: str
) -> tuple[JsonObject, list[federation.Books]]:
    """Enrol, start workers and agent, run all rounds; the run and both ledgers of every client."""
    with stack.client(admin) as operator:
        with narrator.step("Enrolling three clients: two managed, one with an agent"):
            ids, tokens = federation.enrol(operator, fed.clients, fed.plan, fed.data.space)
        if fed.plan.aggregation == "secure":
            with narrator.step("Sites tell their keys, compare fingerprints and pin them"):
                for line in secure.introduce(operator, stack, fed.clients, ids, tokens, fed.party):
                    narrator.say(line)
        with narrator.step("Starting the Celery workers (train, coordinator) and the agent"):
            stack.start_worker(QUEUE_TRAIN, stack.token("worker"), site=fed.managed.config)
            stack.start_worker(QUEUE_COORDINATOR, stack.token("worker"))
            (agent_token,) = tokens.values()
            stack.start_agent(agent_token, fed.alone.config)
        with narrator.step("Creating the run: the accountant calibrates its noise"):
            run = operator.create_run(fed.plan, [client.name for client in fed.clients])
            noise = run["spec"]["noise"]
            sigmas = ", ".join(
                f"{name.removesuffix('_multiplier')} {value:.3f}"
                for name, value in noise.items()
                if value is not None
            )
            narrator.say(f"noise multipliers: {sigmas}; epsilon {run['epsilon_planned']:.3f}")
            if rests := in_words(run["views"]):
                narrator.say(rests)
        run_id = str(run["id"])
        with narrator.step("Sketch and training rounds over the three sites"):
            operator.start_run(run_id)
            spec = RunSpec.model_validate(run["spec"])  # with what the plan left to the rule
            run = federation.follow(stack, operator, run_id, spec, narrator)
        with narrator.step("Reading the ledgers"):
            rounds = federation.rounds_of(operator, run_id)
            books = [
                federation.books(operator, client, ids[client.name], fed.party(client), rounds)
                for client in fed.clients
            ]
    return run, books


def synthesize(
    stack: Stack, fed: Federation, narrator: Narrator, options: Options, run_id: str
) -> dict[str, Path]:
    """Neutral, a mixture, each single site: Parquet files by the name of the table's row.

    And neutral rows whose labels the classifier had no say in.
    """
    wanted: dict[str, tuple[str, federation.Mixture, federation.Guidance]] = {
        "synthetic: neutral, no guidance": ("unguided", "neutral", "none"),
        "synthetic: neutral code": ("neutral", "neutral", "model"),
    }
    if fed.plan.aggregation != "secure":  # else nobody knows a single site's code
        wanted |= _of_sites(fed)
    options.output.mkdir(parents=True, exist_ok=True)
    files: dict[str, Path] = {}
    with (
        narrator.step(f"POST /v1/synthesize, {len(wanted)} times {options.rows} rows"),
        stack.client(stack.token("scientist")) as scientist,
        narrator.progress() as progress,
    ):
        bar = progress.add_task("synthesizing", total=len(wanted))
        for title, (name, mixture, guidance) in wanted.items():
            path = options.output / f"{name}.parquet"
            federation.synthesize(scientist, run_id, mixture, guidance, options.rows, path)
            files[title] = path
            progress.advance(bar)
        page = scientist.report_page(run_id)
    (options.output / "model-report.html").write_text(page)
    return files


def _of_sites(
    fed: Federation,
) -> dict[str, tuple[str, federation.Mixture, federation.Guidance]]:
    """A mixture of two sites, and each site alone."""
    a, b = fed.clients[:2]
    mixed = {a.name: 0.7, b.name: 0.3}
    return {
        f"synthetic: 0.7 {a.site.name} + 0.3 {b.site.name}": ("mixture", mixed, "model"),
        **{f"synthetic: {c.site.name}": (c.site.name, {c.name: 1.0}, "model") for c in fed.clients},
    }


def evaluate(
    fed: Federation, narrator: Narrator, options: Options, files: dict[str, Path]
) -> list[evaluation.Row]:
    """A linear classifier on each training set, tested on the real held-out records."""
    rows = []
    with (
        narrator.step("A linear classifier on each table, tested on real records"),
        narrator.progress() as progress,
    ):
        bar = progress.add_task("classifiers", total=len(files) + 2)
        for title, private in (("real data (ceiling)", False), ("DP class means", True)):
            table = (
                evaluation.baseline(fed.data, fed.plan, options.rows)
                if private
                else fed.data.pooled_train()
            )
            rows.append(evaluation.score(title, table, fed.data, private=private))
            progress.advance(bar)
        for title, path in files.items():
            table = evaluation.read_table(path, fed.data.space)
            rows.append(evaluation.score(title, table, fed.data, private=True))
            progress.advance(bar)
    return rows


def run_demo(options: Options, console: Console) -> Report:
    """All steps; the report is also written to ``options.output``."""
    narrator = Narrator(console)
    with (
        stop_on_signals(),
        working_folder(options.keep, console) as folder,
        PeakMemory() as memory,
        services(
            folder, narrator, port=options.port, memory=memory, gradients=options.gradients
        ) as stack,
        with_logs(stack.processes),
    ):
        tag = f"-{folder.name.rsplit('-', 1)[-1][:6].lower()}" if stack.external_database else ""
        with narrator.step(f"Starting the coordinator at {stack.url}"):
            admin = stack.token("admin")
            stack.start_coordinator()
        fed = prepare(options, narrator, folder, tag.replace("_", "0"))
        run, books = train(stack, fed, narrator, admin)
        files = synthesize(stack, fed, narrator, options, str(run["id"]))
        rows = evaluate(fed, narrator, options, files)
        with narrator.step("Stopping every process"):
            stack.processes.stop()
    report = Report(
        spec=RunSpec.model_validate(run["spec"]),
        run_id=str(run["id"]),
        rounds_published=int(run["rounds_published"]),
        rows=rows,
        books=books,
        seconds=narrator.seconds,
        total_seconds=narrator.elapsed,
        peak_memory=memory.peak,
        receipts={path.name: federation.receipt_of(path) for path in files.values()},
        views=list(run["views"]),
    )
    report.write(options.output / "report.json")
    report.show(console)
    console.print(
        f"Synthetic tables, the model's report (model-report.html) and the demo's figures "
        f"(report.json) are in {options.output}/",
        highlight=False,
    )
    return report
