"""What Prefect adds to a run of N shards: the same work, a file a shard, without it, as a flow, and by its deployment.

    python benchmarks/orchestration.py [--shards 1 10 100 1000] [--repeats 3]

A server of its own (SQLite) with one worker; everything is a fresh process, timed from its start to its end, and a
deployment's run from the request to its last state. The work is `pahi/ingest`'s: one task, and a file a shard. Each
figure is the median. The worker asks for work every second; with Prefect's own 15 a run waits up to 14 s more.
"""

import argparse
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TARGET_FIXED, TARGET_A_SHARD = 15.0, 0.1  # seconds
POOL = "pahi-cpu"

ONE_RUN = """
import json, sys
from pahi.settings import Settings
settings = Settings.model_validate_json(sys.argv[1])
if sys.argv[2] == "direct":
    from pahi.stages import run_stage
    run_stage("ingest", settings)
else:
    from flows.ingest import ingest
    ingest(settings=settings)
"""


def prompts(count: int) -> list[str]:
    """Prompts that are no near-duplicates of each other."""
    draw = random.Random(count)
    words = ["".join(draw.choices("bdfgklmnprst", k=2) + draw.choices("aeiou", k=2)) for _ in range(400)]
    return [" ".join(draw.sample(words, 12)) for _ in range(count)]


class Prefect:
    """A server and a worker of its own, with pahi/ingest deployed."""

    def __init__(self, home: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")} | {
            "PREFECT_HOME": str(home),
            "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_LOGGING_LEVEL": "WARNING",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "DO_NOT_TRACK": "1",
        }
        self.home = home
        self.server = self._start("server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui")
        self.worker: subprocess.Popen[bytes] | None = None
        deadline = time.monotonic() + 600
        while not self._answers():
            if time.monotonic() > deadline or self.server.poll() is not None:
                self.close()
                raise SystemExit("error: the server did not start")
            time.sleep(0.2)

    def deploy(self) -> None:
        for arguments in (["work-pool", "create", POOL, "--type", "process"], ["deploy", "--name", "ingest"]):
            done = subprocess.run(
                self._prefect("--no-prompt", *arguments), capture_output=True, text=True, **self.where
            )
            if done.returncode:
                raise SystemExit(f"error: prefect {' '.join(arguments)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        self.worker = self._start("worker", "start", "--pool", POOL)
        self.deployment = self.api("/deployments/name/pahi/ingest")["id"]

    @property
    def where(self) -> dict[str, Any]:
        return {"env": self.environment, "cwd": ROOT}

    def _prefect(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "prefect", *arguments]

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(self._prefect(*arguments), **quiet, **self.where)

    def _answers(self) -> bool:
        try:
            return bool(self.api("/health"))
        except OSError:
            return False

    def api(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.environment["PREFECT_API_URL"] + path, data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def seconds(self, settings: dict[str, Any]) -> float:
        """From the request for a run of the deployment to its last state."""
        started = time.perf_counter()
        created = self.api(f"/deployments/{self.deployment}/create_flow_run", {"parameters": {"settings": settings}})
        while True:
            state = self.api(f"/flow_runs/{created['id']}")["state"]
            if state["type"] == "COMPLETED":
                return time.perf_counter() - started
            if state["type"] in ("FAILED", "CRASHED", "CANCELLED"):
                raise SystemExit(f"error: a run of the deployment ended as {state['name']}: {state['message']}")
            time.sleep(0.1)

    def database_mb(self) -> float:
        return sum(file.stat().st_size for file in self.home.glob("prefect.db*")) / 1e6

    def close(self) -> None:
        for process in (self.worker, self.server):
            if process is not None:
                process.terminate()
                process.wait(60)


def process_seconds(how: str, settings: dict[str, Any], environment: dict[str, str]) -> float:
    """A whole process: the interpreter, its imports and the work."""
    command = [sys.executable, "-c", ONE_RUN, json.dumps(settings), how]
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"error: a run failed: {done.stderr[-2000:]}")
    return time.perf_counter() - started


def memory_mb(pid: int) -> float:
    """Resident memory of a process and its children."""
    total = 0.0
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        total += memory_mb(int(child))
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            total += int(line.split()[1]) / 1024
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from pahi.settings import load_settings

    added = {}
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        prefect = Prefect(home / "prefect")
        try:
            prefect.deploy()
            print("| shards | direct, s | as a flow, s | by deployment, s | added, s | database, MB | server, MB |")
            print("|---|---|---|---|---|---|---|")
            for shards in sorted(options.shards):
                source = home / f"{shards}.jsonl"
                source.write_text("".join(json.dumps({"text": text}) + "\n" for text in prompts(shards)))
                overrides = [f"ingest.sources={json.dumps([{'path': str(source)}])}", "ingest.shard_rows=1"]
                taken: dict[str, list[float]] = {"direct": [], "flow": [], "deployment": []}
                # The first of each fills the file cache and is thrown away.
                for repeat in range(options.repeats + 1):
                    for how, found in taken.items():
                        made = load_settings(
                            "tiny", None, overrides, root=str(home / "store"), name=f"{how}-{shards}-{repeat}"
                        )
                        settings = made.model_dump(mode="json")
                        if how == "deployment":
                            found.append(prefect.seconds(settings))
                        else:
                            found.append(process_seconds(how, settings, prefect.environment))
                direct, flow, deployment = (statistics.median(found[1:]) for found in taken.values())
                added[shards] = deployment - direct
                print(
                    f"| {shards} | {direct:.2f} | {flow:.2f} | {deployment:.2f} | {added[shards]:.2f} "
                    f"| {prefect.database_mb():.1f} | {memory_mb(prefect.server.pid):.0f} |",
                    flush=True,
                )
        finally:
            prefect.close()
    least, most = min(added), max(added)
    a_shard = (added[most] - added[least]) / (most - least) if most > least else 0.0
    print(
        f"\nPrefect adds {added[least] - least * a_shard:.1f} s to a run (at most {TARGET_FIXED:.0f} are meant) "
        f"and {1000 * a_shard:.1f} ms to a shard (at most {1000 * TARGET_A_SHARD:.0f})"
    )


if __name__ == "__main__":
    main()
