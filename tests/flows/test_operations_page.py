"""docs/operations.md: every block says whether it is run, and those that are run work as they stand there."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from services import ROOT, Services, postgres_binaries

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
    assert marks.count("run") >= 5


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


@pytest.mark.slow
@pytest.mark.services
@pytest.mark.faults
def test_the_blocks_run_as_they_stand(tmp_path: Path):
    if postgres_binaries() is None:
        pytest.skip("no PostgreSQL here: `apt-get install postgresql`")
    services = Services(tmp_path, {"STORE": str(tmp_path / "store")})
    try:
        services.start_postgres()
        services.start_server()
        for mark, block in BLOCKS:
            if mark == "run":
                services.run(["sh", "-e", "-x", "-c", block], timeout=300)
        runs = services.api("/flow_runs/filter", {})
        assert [run["name"] for run in runs if run["name"] == "ingest-first"] or runs, "the run was asked for"
        services.start_worker("cpu-1", "pahi-cpu")
        assert services.finished(runs[0]["id"])["type"] == "COMPLETED"
    finally:
        services.stop_all()
