"""prefect.yaml: Prefect ignores keys it does not know, so that a slip of the pen would go unseen."""

import inspect
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
from prefect.client.schemas.objects import ConcurrencyLimitStrategy
from prefect.deployments import steps
from prefect.events import DeploymentEventTrigger
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema
from prefect.workers.process import ProcessJobConfiguration, ProcessVariables

from pahi.settings import Settings
from pahi.stages import STAGES

ROOT = Path(__file__).parents[2]
FILE = yaml.safe_load((ROOT / "prefect.yaml").read_text())
DEPLOYMENTS = {deployment["name"]: deployment for deployment in FILE["deployments"]}
SHARED = ("__init__", "artifacts", "common", "doctor", "hooks", "lost", "setup")  # of flows/: no deployments
POOLS = {"pahi-cpu", "pahi-gpu"}


def known(model):
    """The keys that a model of Prefect's reads, by name and by alias."""
    return set(model.model_fields) | {field.alias for field in model.model_fields.values() if field.alias}


def flow_of(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    return load_flow_from_entrypoint(DEPLOYMENTS[name]["entrypoint"], use_placeholder_flow=False)


def test_every_stage_the_pipeline_and_every_file_of_flows_is_deployed():
    files = {file.stem.replace("_", "-") for file in (ROOT / "flows").glob("*.py") if file.stem not in SHARED}
    assert set(DEPLOYMENTS) == files
    assert {*STAGES, "pipeline"} <= files


def test_the_top_level_holds_only_what_prefect_reads():
    assert set(FILE) - {"definitions"} <= known(PrefectYamlModel)
    PrefectYamlModel.model_validate(FILE)


@pytest.mark.parametrize("section", ["build", "pull"])
def test_a_step_takes_only_what_its_function_takes(section):
    for step in FILE[section]:
        ((path, arguments),) = step.items()
        function = getattr(steps, path.rsplit(".", 1)[1])
        assert set(arguments) - {"id", "requires"} <= set(inspect.signature(function).parameters)


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_deployment_holds_only_what_prefect_reads(name):
    deployment = DEPLOYMENTS[name]
    assert set(deployment) <= known(DeploymentConfig)
    assert set(deployment["work_pool"]) <= known(WorkPoolConfig)
    assert deployment["work_pool"]["name"] in POOLS
    assert set(deployment["work_pool"]["job_variables"]) <= known(ProcessVariables) & known(ProcessJobConfiguration)
    assert set(deployment["concurrency_limit"]) <= known(ConcurrencyLimitSpec)
    ConcurrencyLimitStrategy(deployment["concurrency_limit"]["collision_strategy"])
    assert deployment["concurrency_limit"]["limit"] >= 1
    assert deployment["description"].endswith(".")
    assert "pahi" in deployment["tags"]
    assert ("models" in deployment["tags"]) == (deployment["work_pool"]["name"] == "pahi-gpu")
    assert float(deployment["work_pool"]["job_variables"]["env"]["PAHI_TIMEOUT_HOURS"]) > 0


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_deployments_flow_loads_is_called_pahi_and_says_how_it_ends(name, monkeypatch):
    flow = flow_of(name, monkeypatch)
    assert flow.name == "pahi"
    assert flow.flow_run_name == name + "-{settings.name}"
    assert flow.on_failure_hooks and flow.on_crashed_hooks and flow.on_cancellation_hooks
    assert flow.retries == 0, "a user's mistake is never retried; the stages retry what can help"


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_every_parameter_is_explained_in_the_form(name, monkeypatch):
    schema = parameter_schema(flow_of(name, monkeypatch)).model_dump_for_openapi()
    assert schema["properties"]
    trees = [schema, *schema["definitions"].values()]
    bare = [(t.get("title"), key) for t in trees for key, f in t["properties"].items() if not f.get("description")]
    assert not bare
    places = [f for t in trees for key, f in t["properties"].items() if key in ("root", "path")]
    assert all("pattern" in field for field in places), "the server refuses a password before it stores it"


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_the_form_is_labelled_by_the_keys_in_the_order_they_are_written_in(name, monkeypatch):
    schema = parameter_schema(flow_of(name, monkeypatch)).model_dump_for_openapi()
    for title, tree in [("", schema), *schema["definitions"].items()]:
        # As PostgreSQL gives them back, and as the form sorts them.
        shown = sorted(sorted(tree["properties"].items()), key=lambda item: item[1]["position"])
        assert all(field.get("title", key) == key for key, field in shown), title
        if title == "Settings":
            assert [key for key, _ in shown] == list(Settings.model_fields)
    assert sorted(schema["properties"], key=lambda key: schema["properties"][key]["position"])[-1] == "settings"


def test_every_setting_is_explained():
    def bare(tree, path=""):
        for name, field in tree.model_fields.items():
            if not field.description or len(field.description) < 10:
                yield path + name
            for inner in (field.annotation, *getattr(field.annotation, "__args__", ())):
                if hasattr(inner, "model_fields"):
                    yield from bare(inner, f"{path}{name}.")

    assert list(bare(Settings)) == []


def test_nothing_runs_by_itself_before_someone_wants_it():
    schedules = [schedule for deployment in DEPLOYMENTS.values() for schedule in deployment.get("schedules", [])]
    assert [schedule["slug"] for schedule in schedules] == ["nightly"]
    switches = {}
    for step in FILE["build"]:
        ((_, arguments),) = step.items()
        switches[arguments["id"]] = arguments["script"]
    for schedule in schedules:
        RawScheduleConfig.model_validate(schedule)
        assert schedule["active"] == "{{ nightly.stdout }}"
    assert switches["nightly"] == """sh -c 'echo "${PAHI_NIGHTLY:-false}"'"""
    assert switches["chain"] == """sh -c 'echo "${PAHI_CHAIN:-false}"'"""


def test_a_trigger_holds_only_what_prefect_reads():
    triggers = [trigger for deployment in DEPLOYMENTS.values() for trigger in deployment.get("triggers", [])]
    assert triggers
    for trigger in triggers:
        assert set(trigger) <= known(DeploymentEventTrigger)
        assert trigger["enabled"] == "{{ chain.stdout }}"
        read = DeploymentEventTrigger.model_validate({**trigger, "enabled": "false"})
        assert read.enabled is False
        assert trigger["match_related"]["prefect.resource.name"] in DEPLOYMENTS
