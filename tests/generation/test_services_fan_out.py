"""pahi/generate's fan-out through a real Prefect server: two workers, one of them killed in the middle."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from small_world import manifests
from test_fan_out import ready

from pahi.artifacts import Store
from pahi.maintenance import verify
from pahi.settings import Settings
from pahi.stages import run_stage

sys.path.insert(0, str(Path(__file__).parents[1] / "flows"))
from services import PATIENCE, ROOT, Services, wait
from test_services import descendants, power_off

pytestmark = [pytest.mark.slow, pytest.mark.services, pytest.mark.faults]

# Twelve shards of some half a second each, so that there is a middle.
SETS = ("generate.shard_rows=1", "generate.images_per_prompt=30", "generate.control_fraction=0")
POOL = "pahi-gpu"


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    """The server on SQLite, both deployments, and the automation that notices lost runs, in a minute here."""
    services = Services(tmp_path)
    try:
        services.start_server()
        services.prefect("work-pool", "create", POOL, "--type", "process", PAHI_HOME=str(ROOT))
        services.prefect("deploy", "-n", "generate", "-n", "generate-shards", timeout=300, PAHI_HOME=str(ROOT))
        automation = yaml.safe_load((ROOT / "infra" / "automations.yaml").read_text())["automations"][0]
        automation["trigger"]["within"] = 60 * PATIENCE
        services.api("/automations/", automation)
        yield services
    finally:
        services.stop_all()


def shards(settings: Settings) -> int:
    keys = Store(settings.root).list(f"{settings.name}/generate")
    return sum("/_manifest/" in key for key in keys)


def groups(services: Services) -> list[dict]:
    asked = {"deployments": {"name": {"any_": ["generate-shards"]}}}
    return services.api("/flow_runs/filter", asked)


def test_a_killed_workers_group_is_done_by_the_other_one(services: Services, tmp_path: Path) -> None:
    alone = ready(tmp_path, "alone", *SETS)
    run_stage("generate", alone)
    settings = ready(tmp_path, "spread", *SETS)
    services.start_worker("waits", POOL)
    parameters = {"settings": settings.model_dump(mode="json"), "fan_out": 3}
    parent = services.submit("generate", **parameters)
    wait("the parent's groups", lambda: len(groups(services)) == 3, 120, services.logs)
    for worker in ("doomed", "survivor"):
        services.start_worker(worker, POOL)
    # In the middle: both are at work, and some shards are there.
    at_work = lambda name: descendants(services.running[name].pid)[1:]  # noqa: E731
    wait(
        "both workers", lambda: at_work("doomed") and at_work("survivor") and shards(settings) >= 2, 180, services.logs
    )
    assert services.state(parent)["type"] == "RUNNING"
    assert shards(settings) < 12, "nothing is left to be interrupted"
    power_off(services, "doomed")
    assert services.finished(parent, 400)["type"] == "COMPLETED", services.logs()
    names = {
        run["id"]: [state["name"] for state in services.api(f"/flow_run_states/?flow_run_id={run['id']}")]
        for run in groups(services)
    }
    assert len(names) == 3, "the lost group was taken up again, not asked for once more"
    assert [states.count("AwaitingRetry") for states in names.values()].count(1) == 1, names
    assert manifests(Store(settings.root)) == manifests(Store(alone.root))
    assert all(check["ok"] for check in verify(settings, rows=0))
