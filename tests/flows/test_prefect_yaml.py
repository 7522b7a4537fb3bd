"""prefect.yaml: Prefect ignores keys it does not know, so that a slip of the pen would go unseen."""

from pathlib import Path

import pytest
import yaml
from prefect.cli.deploy._models import (
    ConcurrencyLimitSpec,
    DeploymentConfig,
    PrefectYamlModel,
    RawScheduleConfig,
    WorkPoolConfig,
)
from prefect.flows import load_flow_from_entrypoint

from pahi.stages import STAGES

ROOT = Path(__file__).parents[2]
FILE = yaml.safe_load((ROOT / "prefect.yaml").read_text())
DEPLOYMENTS = {deployment["name"]: deployment for deployment in FILE["deployments"]}


def known(model):
    """The keys that a model of Prefect's reads, by name and by alias."""
    return set(model.model_fields) | {field.alias for field in model.model_fields.values() if field.alias}


def test_every_stage_and_the_pipeline_are_deployed():
    assert [name for name in DEPLOYMENTS if name != "generate-shards"] == [*STAGES, "pipeline"]


def test_the_top_level_holds_only_what_prefect_reads():
    assert set(FILE) - {"definitions"} <= known(PrefectYamlModel)
    PrefectYamlModel.model_validate(FILE)


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_deployment_holds_only_what_prefect_reads(name):
    deployment = DEPLOYMENTS[name]
    assert set(deployment) <= known(DeploymentConfig)
    assert set(deployment["work_pool"]) <= known(WorkPoolConfig)
    assert set(deployment["concurrency_limit"]) <= known(ConcurrencyLimitSpec)
    for schedule in deployment.get("schedules", []):
        RawScheduleConfig.model_validate(schedule)
        assert schedule["slug"]
    assert deployment["description"]
    assert deployment["work_pool"]["name"] == "pahi"


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_deployments_flow_loads_and_is_called_pahi(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    flow = load_flow_from_entrypoint(DEPLOYMENTS[name]["entrypoint"], use_placeholder_flow=False)
    assert flow.name == "pahi"
    assert flow.flow_run_name == name + "-{settings.name}"


def test_nothing_runs_by_itself_before_someone_wants_it():
    schedules = [schedule for deployment in DEPLOYMENTS.values() for schedule in deployment.get("schedules", [])]
    assert schedules
    assert not any(schedule["active"] for schedule in schedules)
