"""What is the site's own: site.toml, the records that it names, the state folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from core.findings import Finding, failed, ok, warn
from worker.checks.common import usable_settings, usable_site
from worker.config import ClientConfig
from worker.errors import ConfigError, WorkerError


def site_file() -> Iterator[Finding]:
    found = usable_settings()
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

    site = usable_site(usable_settings())
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
