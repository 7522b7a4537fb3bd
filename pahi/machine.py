"""What `pahi doctor` looks at on this machine: Python, torch, disks and the store; each line says what to do."""

import platform
import secrets
import shutil
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pahi.artifacts import Store
from pahi.errors import UserError

Check = dict[str, Any]

PYTHON = (3, 11)
FREE_GB = 5.0  # a checkpoint passes through it
SKEW_SECONDS = 60.0  # S3 refuses signatures that are 15 minutes off; certificates and schedules suffer before


def check(name: str, ok: bool, detail: str) -> Check:
    return {"check": name, "ok": ok, "detail": detail}


def python() -> Check:
    """The interpreter's version."""
    found = platform.python_version()
    if sys.version_info >= PYTHON:
        return check("python", True, found)
    return check("python", False, f"{found}, but 3.11 is needed: install it and name it with `make PYTHON=...`")


def torch_and_device(wanted: str) -> Check:
    """torch, what it can compute on, and whether that is what the settings ask for."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = [torch.cuda.get_device_name(i) for i in range(count)]
    memory = [torch.cuda.get_device_properties(i).total_memory / 2**30 for i in range(count)]
    devices = ", ".join(f"{name} ({size:.0f} GiB)" for name, size in zip(gpus, memory, strict=True))
    found = f"{torch.__version__}, {devices or f'CPU with {torch.get_num_threads()} threads, no GPU'}"
    if wanted.startswith("cuda") and not gpus:
        built = torch.version.cuda
        why = "torch is a CPU build: install the CUDA one" if built is None else "no driver answers: try `nvidia-smi`"
        return check("torch", False, f"{found}, but device={wanted}: {why}")
    index = int(wanted.partition(":")[2] or 0) if wanted.startswith("cuda") else 0
    if wanted.startswith("cuda") and index >= len(gpus):
        return check("torch", False, f"{found}, but device={wanted}: number the GPUs from 0")
    return check("torch", True, found)


def disk(name: str, folder: str, need_gb: float = FREE_GB) -> Check:
    """Free space where a folder is or would be."""
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 1e9
    if free >= need_gb:
        return check(name, True, f"{free:.0f} GB free at {place}")
    return check(name, False, f"{free:.1f} GB free at {place}: free some space, {need_gb:.0f} GB at least")


def disks(store: Store) -> list[Check]:
    """Where shards and checkpoints pass through, and a local store."""
    found = [disk("scratch disk", tempfile.gettempdir())]
    return [*found, disk("store's disk", store.path(""))] if store.local else found


def probe(store: Store) -> str:
    """What the store can do with an object, in one line. Raises UserError where it cannot do what is needed."""
    key = f"_probe/{secrets.token_hex(8)}"
    try:
        store.create(key, b"first")
        skew = _skew(store, key)
        again = store.create(key, b"second")
        kept = store.read(key) == b"first" and not again
        listed = key in store.list("_probe")
    finally:
        store.delete(key)
    if not listed:
        raise UserError(f"{store.root} does not list what was just written: choose a store that does")
    if store.exists(key):
        raise UserError(f"{store.root} does not delete: `pahi gc` and `pahi verify --repair` need that right")
    parts = [f"{store.root} can be written, read, listed and deleted"]
    parts.append("create-only honoured" if kept else "create-only NOT honoured: run one writer at a time")
    if skew is not None:
        if abs(skew) > SKEW_SECONDS:
            raise UserError(
                f"{store.root}: this machine's clock is {abs(skew):.0f} s {'behind' if skew > 0 else 'ahead of'} the "
                "store's: set it by NTP, or requests are refused"
            )
        parts.append("clocks agree")
    return ", ".join(parts)


def _skew(store: Store, key: str) -> float | None:
    """The store's clock less this machine's, in seconds; None where the store tells no time."""
    now = time.time()
    try:
        written = store.fs.modified(store.path(key))
    except (NotImplementedError, KeyError):
        return None
    if not isinstance(written, datetime):
        return None
    if written.tzinfo is None:
        written = written.replace(tzinfo=UTC)
    return written.timestamp() - now
