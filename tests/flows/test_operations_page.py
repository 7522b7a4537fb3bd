"""docs/operations.md: every block says whether it is run, and those that are run work as they stand there."""

import os
import re
import shutil
import subprocess

import pytest
import yaml
from services import ROOT, Services, listens, postgres_binaries, wait

TEXT = (ROOT / "docs" / "operations.md").read_text()
BLOCK = re.compile(r"((?:<!--.*?-->\n\n)?)((?:^    .+\n)+)", re.MULTILINE)
BLOCKS = [
    (mark.strip().strip("<!->").strip(), re.sub(r"^    ", "", block, flags=re.MULTILINE))
    for mark, block in BLOCK.findall(TEXT)
]


def test_every_block_says_whether_it_is_run():
    assert len(BLOCKS) > 10
    marks = [mark for mark, _ in BLOCKS]
    assert all(mark == "run" or re.fullmatch(r"not run: [a-z].+", mark, re.IGNORECASE) for mark in marks), marks
    assert marks.count("run") >= 8


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_every_block_is_shell_and_names_only_files_that_are_there(number, tmp_path):
    _, block = BLOCKS[number]
    assert subprocess.run(["sh", "-n"], input=block, text=True, timeout=10).returncode == 0
    for path in re.findall(r"(?<![\w/])infra/[\w./-]+", block):
        assert (ROOT / path).exists() or path == "infra/.env", path


def test_every_file_that_the_page_names_is_there():
    for path in re.findall(r"`((?:infra|tests|benchmarks|docs)/[\w./-]+)`", TEXT):
        assert (ROOT / path).exists(), path


def test_every_switch_of_prefect_yaml_is_explained():
    text = (ROOT / "prefect.yaml").read_text()
    for name in sorted(set(re.findall(r"PAHI_[A-Z_]+", text))):
        assert name in TEXT, name
    for deployment in yaml.safe_load(text)["deployments"]:
        assert deployment["work_pool"]["name"] in TEXT


@pytest.fixture
def machine(tmp_path):
    """An empty PostgreSQL as Debian's package leaves it, the page's port 4200, and what the page's reader sets."""
    if postgres_binaries() is None or os.getuid() != 0 or shutil.which("psql") is None:
        pytest.skip("the page is followed as root, with Debian's `postgresql`")
    if listens(4200):
        pytest.skip("port 4200, which the page names, is taken")
    services = Services(tmp_path)
    try:
        services.start_postgres(superuser="postgres")
        # The page says all of these itself; PGPORT and PGHOST are those of a cluster that is not the machine's own.
        for name in (
            "PREFECT_API_URL",
            "PREFECT_API_DATABASE_CONNECTION_URL",
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE",
        ):
            del services.environment[name]
        services.environment |= {
            "PGHOST": str(services.data),
            "PGPORT": str(services.database_port),
            "STORE": str(tmp_path / "store"),
            "DATABASE_PASSWORD": "of-the-reader",
            "BACKUP": str(tmp_path / "backup.sql"),
        }
        yield services
    finally:
        services.stop_all()


@pytest.mark.slow
@pytest.mark.services
def test_the_page_is_followed_from_top_to_bottom(machine, tmp_path):
    script = "set -ex\n" + "".join(block for mark, block in BLOCKS if mark == "run") + "echo followed to the end\n"
    machine.start("script", ["sh", "-c", script])
    # Its group holds the server and the workers that it leaves behind.
    script = machine.running["script"]
    wait("the script", lambda: script.poll() is not None, 600, machine.logs)
    said = (machine.home / "script.log").read_text()
    assert script.returncode == 0 and said.rstrip().endswith("followed to the end"), said[-6000:]
    assert "Completed" in said, "the first run is watched to its end"
    assert "ok    server restarts:" in said
    machine.environment["PREFECT_API_URL"] = "http://127.0.0.1:4200/api"
    (run,) = machine.api("/flow_runs/filter", {"flow_runs": {"name": {"any_": ["ingest-first"]}}})
    assert run["state_type"] == "COMPLETED"
    assert list((tmp_path / "store" / "first" / "ingest").glob("*/manifest.json"))
    assert {a["name"] for a in machine.api("/automations/filter", {})} >= {"pahi-lost-runs"}
    assert "ingest-first" in (tmp_path / "backup.sql").read_text()
