"""What Prefect adds to a run of N shards: the same work, a file a shard, with it and without it.

    python benchmarks/orchestration.py [--shards 1 10 100 1000] [--repeats 3]

A server of its own (SQLite) and fresh processes; the first run of each is thrown away. The flow is `pahi/ingest`'s: one
task a stage, as in every flow, and a file a shard.
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

ROOT = Path(__file__).parents[1]

ONE_RUN = """
import json, sys, time
from pahi.settings import load_settings
from pahi.stages import run_stage
from flows.ingest import ingest
source, root, shards, how = sys.argv[1:]
def settings(name):
    sources = json.dumps([{"path": source}])
    return load_settings("tiny", None, [f"ingest.sources={sources}", "ingest.shard_rows=1"], root=root, name=name)
def once(name):
    started = time.perf_counter()
    if how == "prefect":
        ingest(settings(name))
    else:
        run_stage("ingest", settings(name))
    return time.perf_counter() - started
once(f"{how}-{shards}-warm")
print("seconds", once(f"{how}-{shards}"))
"""


def prompts(count: int) -> list[str]:
    """Prompts that are no near-duplicates of each other."""
    draw = random.Random(count)
    words = ["".join(draw.choices("bdfgklmnprst", k=2) + draw.choices("aeiou", k=2)) for _ in range(400)]
    return [" ".join(draw.sample(words, 12)) for _ in range(count)]


def server(home: Path) -> tuple[subprocess.Popen[bytes], dict[str, str]]:
    """A Prefect server that answers, and the environment that leads to it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")} | {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "PYTHONPATH": str(ROOT),
        "DO_NOT_TRACK": "1",
    }
    command = [
        sys.executable,
        "-m",
        "prefect",
        "server",
        "start",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--no-ui",
    ]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while True:
        try:
            urllib.request.urlopen(f"{environment['PREFECT_API_URL']}/health", timeout=2).read()
            return process, environment
        except OSError:
            if time.monotonic() > deadline or process.poll() is not None:
                raise SystemExit("error: the server did not start") from None
            time.sleep(0.2)


def seconds(source: Path, root: Path, shards: int, how: str, environment: dict[str, str]) -> float:
    arguments = [str(source), str(root), str(shards), how]
    done = subprocess.run(
        [sys.executable, "-c", ONE_RUN, *arguments], env=environment, capture_output=True, text=True, cwd=ROOT
    )
    for line in done.stdout.splitlines():
        if line.startswith("seconds "):
            return float(line.split()[1])
    raise SystemExit(f"error: a run of {shards} shards failed: {done.stderr[-2000:]}")


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
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        process, environment = server(home / "prefect")
        try:
            print("| shards | direct, s | by Prefect, s | added, s | added a shard, ms | database, MB | server, MB |")
            print("|---|---|---|---|---|---|---|")
            for shards in options.shards:
                source = home / f"{shards}.jsonl"
                source.write_text("".join(json.dumps({"text": text}) + "\n" for text in prompts(shards)))
                taken: dict[str, list[float]] = {"direct": [], "prefect": []}
                for repeat in range(options.repeats):
                    for how, found in taken.items():
                        found.append(seconds(source, home / f"store-{repeat}", shards, how, environment))
                direct, with_it = (statistics.median(taken[how]) for how in ("direct", "prefect"))
                size = sum(file.stat().st_size for file in (home / "prefect").glob("prefect.db*")) / 1e6
                added = with_it - direct
                print(
                    f"| {shards} | {direct:.2f} | {with_it:.2f} | {added:.2f} | {1000 * added / shards:.1f} "
                    f"| {size:.1f} | {memory_mb(process.pid):.0f} |",
                    flush=True,
                )
        finally:
            process.terminate()
            process.wait(30)


if __name__ == "__main__":
    main()
