"""PostgreSQL, Prefect's server on it, workers, and commands that speak to them; whoever starts them stops them."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PATIENCE = float(os.environ.get("PAHI_TEST_PATIENCE", "1"))  # a busy machine's multiple of every wait
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def postgres_binaries() -> Path | None:
    """The newest PostgreSQL of Debian's packages, or None."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda p: int(p.parts[4]))
    return found[-1].parent if found else None


def wait(what: str, condition: Callable[[], Any], seconds: float, explain: Callable[[], str] = str) -> Any:
    """The condition's first true value."""
    deadline = time.monotonic() + seconds * PATIENCE
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what}: not after {seconds * PATIENCE:.0f} s{explain()}"
        time.sleep(0.3)


class Services:
    """What one test run started. `home` takes every log and all state of Prefect."""

    def __init__(self, home: Path, environment: dict[str, str] | None = None) -> None:
        self.home = home
        self.port, self.database_port = free_port(), free_port()
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.data: Path | None = None
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "PAHI_"))}
        self.environment = clean | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "PREFECT_HOME": str(home / "prefect"),
            "PREFECT_API_URL": f"http://127.0.0.1:{self.port}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            # As docs/operations.md starts it: a restart must not end the runs.
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
            "PREFECT_CLI_COLORS": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
            "DO_NOT_TRACK": "1",
            "OMP_NUM_THREADS": "1",
            **(environment or {}),
        }

    # ------------------------------------------------------------------------------------------------------ processes

    def start(self, name: str, command: list[str], **options: Any) -> None:
        """A process in a group of its own, so that what it starts is stopped with it."""
        options.setdefault("env", self.environment)
        with (self.home / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, **options
            )

    def stop(self, name: str, *numbers: int) -> None:
        """Signals a process's whole group, the last signal at once if it does not end."""
        process = self.running.pop(name)
        for number in numbers or (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20 * PATIENCE)
                return

    def stop_all(self) -> None:
        for name in reversed(list(self.running)):
            # PostgreSQL's fast shutdown; its ordinary one waits for clients.
            self.stop(name, *((signal.SIGINT, signal.SIGKILL) if name == "postgres" else ()))
        if self.data is not None:
            shutil.rmtree(self.data, ignore_errors=True)

    def start_postgres(self, superuser: str = "prefect") -> None:
        """An empty cluster whose superuser needs no password; the server is told to use it."""
        binaries = postgres_binaries()
        assert binaries is not None
        # As root it refuses to run; Debian's package made this user for it.
        user: dict[str, Any] = {"user": "postgres", "group": "postgres"} if os.getuid() == 0 else {}
        if self.data is None:
            self.data = Path(tempfile.mkdtemp(prefix="pahi-postgres-"))
            if user:
                shutil.chown(self.data, "postgres", "postgres")
            subprocess.run(
                [str(binaries / "initdb"), "-D", str(self.data / "db"), "-U", superuser, "--auth=trust", "-E", "UTF8"],
                check=True,
                capture_output=True,
                cwd=self.data,
                timeout=120 * PATIENCE,
                **user,
            )
        command = [str(binaries / "postgres"), "-D", str(self.data / "db"), "-k", str(self.data)]
        command += ["-h", "127.0.0.1", "-p", str(self.database_port), "-c", "fsync=off", "-c", "max_connections=200"]
        self.start("postgres", command, **user)
        address = f"postgresql+asyncpg://prefect@127.0.0.1:{self.database_port}/postgres"
        self.environment["PREFECT_API_DATABASE_CONNECTION_URL"] = address
        wait("PostgreSQL", lambda: listens(self.database_port), 60, self.logs)

    def dump(self) -> str:
        """The whole database as text."""
        binaries = postgres_binaries()
        assert binaries is not None
        command = [str(binaries / "pg_dump"), "-h", "127.0.0.1", "-p", str(self.database_port), "-U", "prefect"]
        return subprocess.run(
            [*command, "postgres"], check=True, capture_output=True, text=True, timeout=120 * PATIENCE
        ).stdout

    def start_server(self) -> None:
        arguments = ["server", "start", "--host", "127.0.0.1", "--port", str(self.port), "--no-ui"]
        self.start("server", [sys.executable, "-m", "prefect", *arguments])
        wait("the server", self._server_answers, 120, self.logs)

    def _server_answers(self) -> bool:
        assert self.running["server"].poll() is None, f"the server ended{self.logs()}"
        try:
            with urllib.request.urlopen(f"{self.environment['PREFECT_API_URL']}/health", timeout=2):
                return True
        except OSError:
            return False

    def start_worker(self, name: str, pool: str, limit: int = 1, **environment: str) -> None:
        command = ["sh", "infra/worker.sh", "--pool", pool, "--name", name, "--limit", str(limit)]
        self.start(name, command, env=self.environment | {"PAHI_STOP_SECONDS": "15"} | environment)

    # ------------------------------------------------------------------------------------------------------- commands

    def run(self, command: list[str], timeout: float = 180, code: int = 0, **environment: str) -> str:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=timeout * PATIENCE,
        )
        said = done.stdout + done.stderr
        assert (done.returncode == 0) == (code == 0), f"{' '.join(command[:6])}: {said}{self.logs()}"
        return said

    def prefect(self, *arguments: str, **options: Any) -> str:
        return self.run([sys.executable, "-m", "prefect", "--no-prompt", *arguments], **options)

    def api(self, path: str, body: Any = None, method: str | None = None) -> Any:
        request = urllib.request.Request(
            f"{self.environment['PREFECT_API_URL']}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
            method=method or ("GET" if body is None else "POST"),
        )
        with urllib.request.urlopen(request, timeout=30 * PATIENCE) as answer:
            return json.loads(answer.read() or "null")

    def deployment(self, name: str) -> dict[str, Any]:
        return self.api(f"/deployments/name/pahi/{name}")

    def submit(self, name: str, job_variables: dict[str, Any] | None = None, **parameters: Any) -> str:
        """A flow run of a deployment, by its id."""
        body = {"parameters": parameters, "job_variables": job_variables or {}}
        return self.api(f"/deployments/{self.deployment(name)['id']}/create_flow_run", body)["id"]

    def state(self, flow_run: str) -> dict[str, Any]:
        return self.api(f"/flow_runs/{flow_run}")["state"]

    def finished(self, flow_run: str, seconds: float = 180) -> dict[str, Any]:
        """The run's final state."""

        def final() -> Any:
            state = self.state(flow_run)
            return state if state["type"] in FINAL else None

        return wait(f"flow run {flow_run}", final, seconds, lambda: str(self.state(flow_run)) + self.logs())

    def messages(self, flow_run: str) -> list[str]:
        """What a run logged, in the server."""
        asked = {"logs": {"flow_run_id": {"any_": [flow_run]}}, "limit": 200, "sort": "TIMESTAMP_DESC"}
        return [entry["message"] for entry in self.api("/logs/filter", asked)]

    def logs(self) -> str:
        return "".join(f"\n--- {log.name}\n{log.read_text()[-3000:]}" for log in sorted(self.home.glob("*.log")))
