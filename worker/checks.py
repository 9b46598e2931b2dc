"""What ``fedhypevae doctor --site`` checks: coordinator, clock, token, site.toml, state, GPU."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from core.findings import Check, Finding, failed, ok, warn
from worker.answers import ONCE, JsonObject, Timeouts
from worker.client import CoordinatorClient
from worker.config import ClientConfig, SiteConfig, WorkerSettings, load_settings
from worker.errors import ApiProblem, ClientError, ConfigError, NotNow, Unreachable, WorkerError

_SKEW_S, _FAR_SKEW_S = 5.0, 120.0
_QUICK = Timeouts(connect=5.0, read=10.0)
_SOON_DAYS = 7.0
_SITE_SCOPES = ("client", "worker")


def checks() -> Iterator[Check]:
    yield Check("settings", settings)
    yield Check("coordinator", coordinator)
    yield Check("token", token)
    yield Check("site.toml", site_file)
    yield Check("state folder", state_folder)
    yield Check("broker", broker)
    yield Check("device", device)


def _settings() -> WorkerSettings | None:
    """None where ``settings`` has said why."""
    try:
        return load_settings()
    except ConfigError:
        return None


def _site(found: WorkerSettings | None) -> SiteConfig | None:
    """None where ``site_file`` has said why."""
    try:
        return None if found is None or found.site_config is None else found.require_site()
    except ConfigError:
        return None


def _client(found: WorkerSettings, token: str | None) -> CoordinatorClient:
    return CoordinatorClient(found.coordinator_url, token, retry=ONCE, timeouts=_QUICK)


def settings() -> Iterator[Finding]:
    try:
        found = load_settings()
    except ConfigError as error:
        for problem in error.problems:
            what, _, mend = problem.replace("Value error, ", "").partition(". ")
            yield failed("settings", what, mend or "Correct it, or leave it out.")
        return
    if found.plain_http_to_elsewhere:
        yield warn(
            "settings",
            f"the token goes to {found.coordinator_url} unencrypted",
            "Use https:// in FHV_COORDINATOR_URL.",
        )
    else:
        yield ok("settings", f"usable; the coordinator is {found.coordinator_url}")


def coordinator() -> Iterator[Finding]:
    """Is it there, ready, and does its clock agree with ours?"""
    found = _settings()
    if found is None:
        return
    with _client(found, None) as client:
        before = datetime.now(UTC)
        try:
            theirs = client.clock()
        except NotNow as error:
            yield failed("coordinator", error.message, "Wait, or ask who runs it (proxy, load).")
            return
        except Unreachable as error:
            yield failed("coordinator", error.message, _unreachable_mend(found.coordinator_url))
            return
        except ClientError as error:
            yield failed("coordinator", error.message, error.mend or "Check FHV_COORDINATOR_URL.")
            return
        after = datetime.now(UTC)
        try:
            client.ready()
            yield ok("coordinator", f"{found.coordinator_url} answers and is ready")
        except ClientError as error:
            said = getattr(error, "detail", "") or error.message
            yield warn(
                "coordinator",
                f"it answers, but is not ready: {said}",
                "Ask who runs it to call 'fedhypevae doctor --coordinator' there.",
            )
    yield from _clock(theirs, before, after)


def _unreachable_mend(url: str) -> str:
    parts = urlsplit(url)
    return (
        f"Check FHV_COORDINATOR_URL, that the coordinator runs, and that this machine may call "
        f"{parts.hostname} (name, firewall, proxy, certificate): curl -v {url}/healthz"
    )


def _clock(theirs: datetime | None, before: datetime, after: datetime) -> Iterator[Finding]:
    """The header ``Date`` is cut to seconds, and the request took a while: both count for us."""
    if theirs is None:
        yield warn("clock", "the coordinator's answer has no Date", "Let the proxy hand it on.")
        return
    early = (before - theirs).total_seconds() - 1.0
    late = (theirs - after).total_seconds()
    skew = max(early, late, 0.0)
    text = f"{skew:.0f} s {'ahead of' if early > late else 'behind'} the coordinator's"
    mend = "Let this machine set its clock by NTP (timedatectl set-ntp true)."
    if skew > _FAR_SKEW_S:
        yield failed("clock", text, mend)
    elif skew > _SKEW_S:
        yield warn("clock", text, mend)
    else:
        yield ok("clock", "agrees with the coordinator's")


def token() -> Iterator[Finding]:
    """Is it taken, and is it one that works for a site?"""
    found = _settings()
    if found is None:
        return
    site = _site(found)
    kept = None if found.token else found.token_kept(None if site is None else site.state_dir)
    try:
        text = found.token_source(None if site is None else site.state_dir)()
    except ConfigError as error:
        yield failed("token", error.message, error.mend or "Set FHV_TOKEN or FHV_TOKEN_FILE.")
        return
    if kept is not None and kept.path.stat().st_mode & 0o077:
        yield failed("token", f"others can read {kept.path}", f"chmod 600 {kept.path}")
    kind, _, rest = text.removeprefix("fhv_").partition("_")
    if not text.startswith("fhv_") or not rest:
        yield failed(
            "token",
            "FHV_TOKEN does not look like a token (fhv_<scope>_...)",
            "Copy it as a whole, without quotes or spaces.",
        )
        return
    with _client(found, text) as client:
        try:
            own = client.own_token()
        except ApiProblem as problem:
            yield failed("token", _refusal(problem), _token_mend(problem, kind))
            return
        except ClientError:
            return  # ``coordinator`` has said so
        yield _taken(own, renewed=kept is not None)
        if own["scope"] == "client":
            yield from _enrolled(client, site)


def _taken(own: JsonObject, *, renewed: bool) -> Finding:
    """``renewed``: it is in a file, where an agent replaces it in time if it may."""
    scope, left_s = str(own["scope"]), own["expires_in_s"]
    if scope not in _SITE_SCOPES:
        return warn(
            "token",
            f"taken, but its scope is {scope}: no agent or worker runs with it",
            "Agents need the token of their client, workers one of scope worker.",
        )
    if left_s is None:
        return ok("token", f"taken; its scope is {scope}, it has no end")
    left = float(left_s) / 86_400.0
    text = f"taken; its scope is {scope}, it ends in {left:.0f} days"
    if left > _SOON_DAYS or (renewed and own["renewable"]):
        return ok("token", text)
    return warn(
        "token",
        text,
        "Have another one made in time; a token in a file (FHV_TOKEN_FILE) that came by "
        "'fedhypevae agent enrol' is renewed by the agent.",
    )


def _refusal(problem: ApiProblem) -> str:
    return f"the coordinator refuses it: {problem.detail}"


def _token_mend(problem: ApiProblem, kind: str) -> str:
    if problem.status != 401:
        return problem.mend or "Ask the coordinator's administrator."
    return (
        "Ask the coordinator's administrator for another one (fedhypevae admin tokens create "
        f"--scope {kind} ...), and check that FHV_COORDINATOR_URL is the one that made it."
    )


def _enrolled(client: CoordinatorClient, site: SiteConfig | None) -> Iterator[Finding]:
    """The token's client must be one of this site's, with the same unit and population."""
    try:
        me = client.client("me")
    except ClientError as error:
        yield failed("client", error.message, error.mend or "Ask the administrator.")
        return
    if me.get("revoked_at"):
        yield failed("client", f"{me['name']} was revoked", "Ask the administrator why.")
        return
    if site is None:
        return
    own = site.named(str(me["name"]))
    if own is None:
        names = ", ".join(each.name for each in site.client)
        yield failed(
            "client",
            f"the token is of {me['name']!r}; site.toml has: {names}",
            "Add a [[client]] with this name, or use that client's token.",
        )
        return
    differing = [key for key in ("unit", "population") if getattr(own, key) != me[key]]
    if differing:
        said = "; ".join(
            f"{key}: {getattr(own, key)!r} here, {me[key]!r} at the coordinator"
            for key in differing
        )
        yield failed("client", said, "Correct site.toml, or have the client enrolled anew.")
    else:
        yield ok("client", f"{own.name} is enrolled as site.toml says")


# --- the site's own ---


def site_file() -> Iterator[Finding]:
    found = _settings()
    if found is None:
        return
    if found.site_config is None:
        yield warn(
            "site.toml",
            "FHV_SITE_CONFIG is not set: no agent or train worker runs without it",
            "Set FHV_SITE_CONFIG to the site's TOML file (README has one).",
        )
        return
    try:
        site = found.require_site()
    except ConfigError as error:
        for problem in error.problems or (str(error),):
            what, _, mend = problem.partition(". ")
            yield failed("site.toml", what, mend or f"Mend {found.site_config}.")
        return
    yield ok("site.toml", f"{found.site_config}: {len(site.client)} clients")
    for client in site.client:
        yield _data(client)


def _data(client: ClientConfig) -> Finding:
    """The file is there and has the arrays; 'agent check' reads all of it."""
    name = f"data of {client.name}"
    mend = f"Put the records there, or correct 'data' of {client.name!r} in site.toml."
    if not client.data.is_file():
        return failed(name, f"there is no file {client.data}", mend)
    if not os.access(client.data, os.R_OK):
        return failed(name, f"{client.data} may not be read", f"chown or chmod {client.data}")
    try:
        found = _fields(client.data)
    except Exception as error:
        # numpy, zipfile and pyarrow have many; none of them quotes a record here.
        return failed(
            name,
            f"{client.data} cannot be read ({type(error).__name__})",
            "Write npz, npy or parquet.",
        )
    lacking = [field for field in ("x", "y") if field not in found]
    lacking += ["unit"] if client.unit == "patient" and "unit" not in found else []
    if lacking:
        return failed(
            name,
            f"{client.data} has no {', '.join(lacking)}",
            "Store embeddings as x, classes as y, and for the unit patient whose each is as unit.",
        )
    if client.data.stat().st_mode & stat.S_IROTH:
        return warn(
            name, f"every user of this machine may read {client.data}", f"chmod 600 {client.data}"
        )
    return ok(name, f"{client.data}; 'fedhypevae agent check' reads it as a round would")


def _fields(path: Path) -> set[str]:
    """Names of what a file of records holds, without reading the records."""
    import numpy as np
    import pyarrow.parquet as pq

    if path.suffix == ".npz":
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return set(archive.files)
    if path.suffix == ".npy":
        return set(np.load(path, mmap_mode="r", allow_pickle=False).dtype.names or ())
    if path.suffix == ".parquet":
        alias = {"embedding": "x", "label": "y"}
        return {alias.get(name, name) for name in pq.read_schema(path).names}
    raise ValueError("neither npz, npy nor parquet")


def state_folder() -> Iterator[Finding]:
    from worker.agent.site import LEDGER_FILE, SECRET_FILE, read_secret

    site = _site(_settings())
    if site is None:
        return
    folder = site.state_dir
    name = "state folder"
    if not folder.exists():
        above = next(parent for parent in folder.parents if parent.exists())
        if above.is_dir() and os.access(above, os.W_OK | os.X_OK):
            yield ok(name, f"{folder} is made at the first use")
        else:
            yield failed(name, f"{folder} cannot be made", f"Let this user write to {above}.")
        return
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        yield failed(
            name, f"{folder} cannot be used", "Make it a folder of this user, of mode 0700."
        )
        return
    if folder.stat().st_mode & 0o077:
        yield warn(name, f"other users may enter {folder}", f"chmod 700 {folder}")
    try:
        secret = read_secret(folder / SECRET_FILE)
    except WorkerError as error:
        yield failed(name, error.message, error.mend or "Restore it from a backup.")
        return
    ledger = (folder / LEDGER_FILE).exists()
    if secret is not None and not ledger:
        yield failed(
            name,
            f"the secret is in {folder}, its ledger is gone",
            "Restore it: fedhypevae agent restore BACKUP. Never begin a new one.",
        )
    elif ledger and secret is None:
        yield failed(
            name,
            f"the ledger is in {folder}, its secret is gone",
            "Restore both: fedhypevae agent restore BACKUP.",
        )
    else:
        yield ok(name, f"{folder} " + ("holds secret and ledger" if ledger else "is empty"))


def broker() -> Iterator[Finding]:
    """Only Celery workers have one."""
    import redis

    found = _settings()
    if found is None or found.broker_url is None:
        return
    url = found.require_broker_url()
    where = urlsplit(url).hostname or "?"
    try:
        client = redis.Redis.from_url(url, socket_connect_timeout=5, socket_timeout=5)
        try:
            client.ping()
        finally:
            client.close()
    except (redis.RedisError, OSError, ValueError) as error:
        yield failed(
            "broker",
            f"{where} does not answer ({type(error).__name__})",
            "Check FHV_BROKER_URL, its password, and that Valkey or Redis runs there.",
        )
    else:
        yield ok("broker", f"{where} answers")


def device() -> Iterator[Finding]:
    """What FHV_DEVICE asks for, and what torch finds."""
    found = _settings()
    if found is None:
        return
    try:
        import torch
    except ImportError as error:
        yield failed("device", f"torch cannot be imported: {error}", "make install")
        return
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    cards = Path("/proc/driver/nvidia/gpus")
    wanted = found.device
    if wanted.startswith("cuda:") and int(wanted.partition(":")[2]) >= there:
        yield failed(
            "device",
            f"FHV_DEVICE={wanted}, but torch {torch.__version__} finds {there} CUDA devices",
            "Set FHV_DEVICE=auto or cpu; or install the driver and a torch built for CUDA.",
        )
    elif not there and cards.is_dir() and any(cards.iterdir()):
        yield warn(
            "device",
            f"this machine has a GPU, but torch {torch.__version__} finds none",
            "Install a torch built for CUDA, and a driver that is new enough for it.",
        )
    elif there and wanted != "cpu":
        index = 0 if wanted == "auto" else int(wanted.partition(":")[2])
        free, total = torch.cuda.mem_get_info(index)
        yield ok(
            "device",
            f"{torch.cuda.get_device_name(index)}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB "
            f"free, torch {torch.__version__}",
        )
    else:
        yield ok("device", f"cpu, {torch.get_num_threads()} threads, torch {torch.__version__}")
