"""The real thing: a server, the deployments, a worker, and a run that it picks up."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from pahi.settings import load_settings

ROOT = Path(__file__).parents[2]
SMALL = [
    'ingest.sources=[{path: "pkg:pahi.tiny/prompts.jsonl", name: tiny, kind: kind, group: scene, split: split}]',
    "cache.max_train_prompts=8",
    "cache.max_validation_prompts=4",
    "cache.seeds=2",
    "train.hpi_steps=2",
    "train.steps=2",
    "train.batch_size=4",
    "train.validate_every=2",
    "threads=1",
]

pytestmark = [pytest.mark.slow, pytest.mark.services]


class Services:
    """Processes that are stopped again, and the commands that speak to them."""

    def __init__(self, home: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.home = home
        self.running: list[tuple[str, subprocess.Popen]] = []
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")} | {
            "PREFECT_HOME": str(home / "prefect"),
            "PREFECT_API_URL": f"http://127.0.0.1:{self.port}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_CLI_COLORS": "false",
            "DO_NOT_TRACK": "1",
        }

    def start(self, name: str, *arguments: str) -> None:
        # Its own process group, so that what it starts is stopped with it.
        with (self.home / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "prefect", *arguments],
                cwd=ROOT,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.running.append((name, process))

    def prefect(self, *arguments: str, timeout: float = 120) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, f"prefect {' '.join(arguments[:3])}: {done.stdout}{done.stderr}{self.logs()}"
        return done.stdout

    def wait_for_server(self) -> None:
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"{self.environment['PREFECT_API_URL']}/health", timeout=2):
                    return
            except OSError:
                assert time.monotonic() < deadline, f"the server did not start{self.logs()}"
                assert self.running[0][1].poll() is None, f"the server ended{self.logs()}"
                time.sleep(0.5)

    def logs(self) -> str:
        return "".join(f"\n--- {log.name}\n{log.read_text()[-4000:]}" for log in sorted(self.home.glob("*.log")))

    def stop(self) -> None:
        for _name, process in reversed(self.running):
            for number in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(process.pid, number)
                    process.wait(15)
                    break
                except subprocess.TimeoutExpired:
                    continue
                except ProcessLookupError:
                    break


@pytest.fixture
def services(tmp_path):
    services = Services(tmp_path)
    try:
        yield services
    finally:
        services.stop()


def test_a_deployed_run_completes(services, tmp_path):
    settings = load_settings("tiny", None, SMALL, root=str(tmp_path / "store"), name="served")
    services.start("server", "server", "start", "--host", "127.0.0.1", "--port", str(services.port), "--no-ui")
    services.wait_for_server()
    services.prefect("work-pool", "create", "pahi", "--type", "process")
    services.prefect("deploy", "--all")
    listed = json.loads(services.prefect("deployment", "ls", "-o", "json"))
    assert {deployment["name"] for deployment in listed} >= {"ingest", "train", "pipeline"}
    services.start("worker", "worker", "start", "--pool", "pahi")

    parameters = {"settings": settings.model_dump(mode="json"), "with_upstream": True}
    said = services.prefect(
        "deployment", "run", "pahi/train", "--params", json.dumps(parameters), "--watch", timeout=400
    )

    assert "Completed" in said or "finished" in said.lower(), said + services.logs()
    (manifest,) = (tmp_path / "store" / "served" / "train").glob("*/manifest.json")
    assert json.loads(manifest.read_text())["stage"] == "train"
