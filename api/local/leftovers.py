"""What is left of services whose keeper was killed: found by what they carry, and ended."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from api import embedded
from api.local.folder import MARK, Folder

_POSTGRES = "postgres"
_PATIENCE_S = 15.0


def _ours(folder: Folder) -> list[psutil.Process]:
    """Processes of this folder, but for this one and Postgres, which has data to write. Valkey
    writes over its environment, but it works in its folder.
    """
    found = []
    for process in psutil.process_iter(["pid", "name", "environ", "cwd"]):
        environ = process.info["environ"] or {}
        marked = environ.get(MARK) == str(folder.path)
        inside = process.info["cwd"] == str(folder.path / "valkey")
        strange = process.pid == os.getpid() or process.info["name"] == _POSTGRES
        if (marked or inside) and not strange:
            found.append(process)
    return found


def end(folder: Folder) -> list[str]:
    """End them: SIGTERM, some seconds, SIGKILL. Their names. Call it with the folder's lock held,
    or when nobody holds it.
    """
    found = _ours(folder)
    for process in found:
        _signal(process, kill=False)
    _, alive = psutil.wait_procs(found, timeout=_PATIENCE_S)
    for process in alive:
        _signal(process, kill=True)
    psutil.wait_procs(alive, timeout=_PATIENCE_S)
    return sorted({str(process.info["name"]) for process in found})


def _signal(process: psutil.Process, *, kill: bool) -> None:
    try:
        process.kill() if kill else process.terminate()
    except psutil.NoSuchProcess:
        return  # it has ended by itself


def postgres_runs(folder: Folder) -> bool:
    """Does the embedded Postgres of this folder run, whoever has started it?"""
    return postmaster(folder.path / "pg") is not None


def postmaster(data: Path) -> int | None:
    """The process id of the Postgres over these files; None if none runs."""
    try:
        pid = int((data / "postmaster.pid").read_text().split()[0])
        return pid if psutil.Process(pid).name() == _POSTGRES else None
    except (OSError, ValueError, IndexError, psutil.NoSuchProcess):
        return None


def stop_postgres(folder: Folder) -> None:
    """Join the server that was left running, and leave it as its last user: it stops cleanly."""
    with embedded.own_postgres(folder.path / "pg"):
        pass
