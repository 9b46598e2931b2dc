"""What this machine has: a broker for Celery workers, and a device to compute on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from core.findings import Finding, failed, ok, warn
from worker.checks.common import usable_settings


def broker() -> Iterator[Finding]:
    """Only Celery workers have one."""
    import redis

    found = usable_settings()
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
    found = usable_settings()
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
