"""A run of any length holds the same few shards in memory."""

import gc
import tracemalloc
import weakref
from pathlib import Path

import torch

from pahi.artifacts import Output, Store
from pahi.artifacts.output import shard_name
from pahi.generation import engine
from pahi.generation.drawing import SCORES, Drawn
from pahi.generation.shard import Origin, Shard
from pahi.predictors import NoisePredictor
from pahi.settings import Generate
from pahi.stages.generate import Lazy

ROWS, BATCH = 50, 25
LINEAGE = dict.fromkeys(("generator", "generator_hash", "predictor_hash", "dtype"), "")


class Constant:
    """A drawer that has drawn already."""

    rewards: tuple[()] = ()
    predictor = NoisePredictor("standard", (1, 1, 1), 1)

    class generator:
        latent_shape = (1, 1, 1)

    def draw(self, prompts, samples, pooled) -> Drawn:
        n = len(samples)
        pixels = torch.arange(n * 192).remainder(251).byte().view(n, 8, 8, 3)
        return Drawn(samples, pixels, torch.zeros(n, SCORES), [None] * n, [False] * n, lambda: None)


def peaks(shards: int, folder: Path) -> tuple[int, int]:
    """Shards that were alive at once, and bytes that Python had at most, of a run without anyone who watches it."""
    output = Output(Store(str(folder)), "flat", "generate", "0" * 12)
    origin = Origin(Generate(control_fraction=0), LINEAGE, {}, {})
    prompts = [{"prompt_id": f"{i:020x}", "text": f"number {i}"} for i in range(ROWS)]
    alive: weakref.WeakSet[object] = weakref.WeakSet()
    most = 0

    class Watched(Shard):  # a dataclass that compares by value has no hash
        __hash__ = object.__hash__

    def commit(shard, build):
        output.commit_shard(shard.part, build, row_group_rows=100)

    def make(i: int) -> Shard:
        nonlocal most
        shard = Watched(str(i), shard_name(i), prompts, Constant(), origin, commit, BATCH, first=i == 0)
        alive.add(shard)
        most = max(most, len(alive))
        return shard

    gc.collect()
    tracemalloc.start()
    try:
        report = engine.run(Lazy(range(shards), make), encoders=2)
        assert report.failed == {}
        return most, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    peaks(5, tmp_path / "warm")
    few, many = peaks(10, tmp_path / "few"), peaks(100, tmp_path / "many")
    assert few[0] <= 8 and many[0] <= 8
    assert many[1] < 1.2 * few[1] + 100_000, (few, many)
