"""`pahi doctor`'s lines on Prefect: which server, whether it answers, and whether anybody would take a run."""

from typing import Any

import prefect
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import WorkerStatus
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings

from pahi.errors import first_line
from pahi.machine import check

POOLS = ("pahi-cpu", "pahi-gpu")
IN_MEMORY, IN_FILES = (
    "prefect.server.concurrency.lease_storage.memory",
    "prefect.server.concurrency.lease_storage.filesystem",
)


def checks() -> list[dict[str, Any]]:
    """One row a check: check, ok, detail."""
    url = get_current_settings().api.url
    if not url:
        detail = f"{prefect.__version__}; no server is named, so `pahi run` brings its own (PREFECT_API_URL names one)"
        return [check("prefect", True, detail)]
    try:
        with get_client(sync_client=True) as client:
            problem = client.api_healthcheck()
            if problem is not None:
                raise problem
            server = client.api_version()
            found = [_server(url, server), *_leases(client)]
            for pool in POOLS:
                try:
                    status = client.read_work_pool(pool)
                except ObjectNotFound:
                    found.append(check(f"pool {pool}", False, "not there: `sh infra/setup.sh` creates it"))
                    continue
                workers = client.read_workers_for_work_pool(pool)
                found.append(
                    _pool(pool, status.is_paused, [w.name for w in workers if w.status == WorkerStatus.ONLINE])
                )
            return found
    except Exception as error:
        detail = f"{url} does not answer ({first_line(error)}): start it, or mend PREFECT_API_URL"
        return [check("prefect", False, detail)]


def _server(url: str, server: str) -> dict[str, Any]:
    ours = prefect.__version__
    if server.split(".")[:2] != ours.split(".")[:2]:
        return check("prefect", False, f"{url} runs {server}, this machine {ours}: upgrade the server first")
    return check("prefect", True, f"{ours}, {url} answers with {server}")


def _leases(client: SyncPrefectClient) -> list[dict[str, Any]]:
    """Where the server keeps who holds a deployment's concurrency limit; nothing where it does not tell."""
    try:
        kept = client.request("GET", "/admin/settings").json()["server"]["concurrency"]["lease_storage"]
    except Exception:
        return []
    if kept != IN_MEMORY:
        return [check("server restarts", True, f"leases are kept by {kept}")]
    detail = (
        "the server keeps leases in memory, so its restart ends every run: set "
        f"PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE={IN_FILES} for it"
    )
    return [check("server restarts", False, detail)]


def _pool(pool: str, paused: bool, online: list[str]) -> dict[str, Any]:
    if paused:
        return check(f"pool {pool}", False, f"paused: `prefect work-pool resume {pool}`")
    if not online:
        return check(f"pool {pool}", False, f"no worker is online: `prefect worker start --pool {pool} --limit 1`")
    return check(f"pool {pool}", True, f"online: {', '.join(sorted(online))}")
