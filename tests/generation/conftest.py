"""A finished, undisturbed run to compare with."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from small_world import manifests, world

from pahi.stages import generate, ingest


@pytest.fixture(scope="session")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """The folder of its prompts and predictor, and its manifests."""
    folder = tmp_path_factory.mktemp("calm")
    ctx = world(folder / "store", folder)
    generate.run(ctx, ingest.chain(ctx))
    return folder, manifests(ctx.store)
