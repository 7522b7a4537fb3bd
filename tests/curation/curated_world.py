"""What the tests of curation read: pictures that nobody drew."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import made_up
import numpy as np
import pyarrow as pa

from pahi.artifacts import Output
from pahi.settings import load_settings
from pahi.stages import curate
from pahi.stages.common import Context
from pahi.stages.ingest import Chain

PROMPT_COUNT = 30
NOISE = (4, 2, 2)
# The tiny preset's rewards under the names of these scores.
REWARDS = [
    "rewards.train=[{name: pick, kind: pickscore, id: 'pkg:pahi.tiny/weights/reward-alpha'}]",
    "rewards.held_out=[{name: held, kind: clip_score, id: 'pkg:pahi.tiny/weights/reward-gamma'}]",
    "rewards.judges=[]",
]
# What each of the special rows must end as.
SPECIAL = {"broken": (1, 40), "blank": (2, 40), "near_duplicate": (3, 40), "failed": (4, 40), "duplicate": (5, 40)}


@dataclass
class World:
    """A store with finished prompts and pictures, and what curating them gives."""

    root: Path
    images: list[dict[str, Any]]
    scores: list[dict[str, Any]]
    partitions: Chain
    drawn: list[Output]

    def context(self, *overrides: str) -> Context:
        sets = [*REWARDS, "threads=1", "curate.shard_rows=16", *overrides]
        return Context(load_settings("tiny", overrides=sets, root=str(self.root), name="made-up"))

    def curate(self, *overrides: str) -> Output:
        ctx = self.context(*overrides)
        return curate.build(ctx, self.drawn, self.partitions, 0.0)[0]


def images() -> list[dict[str, Any]]:
    """Thirty prompts, four pictures each, and one of each kind that must not be published."""
    found = [row | {"generator": "/home/me/models/made-up"} for row in made_up.rows(PROMPT_COUNT)]
    one = made_up.picture(1000 * 3)  # prompt 3, seed 0
    found += [
        made_up.row(1, 40, image={"bytes": made_up.png(made_up.picture(7))[:200], "path": None}),
        made_up.row(2, 40, pixels=np.full((48, 48, 3), 128, dtype=np.uint8)),
        made_up.row(3, 40, pixels=np.clip(one.astype(int) + 2, 0, 255).astype(np.uint8)),
        made_up.row(4, 40, status="failed", reason="not finite", image=None, pixels_sha256=None),
        made_up.row(5, 40, pixels=made_up.picture(1000 * 5)),
    ]
    return found


def write(output: Output, tables: list[dict[str, pa.Table]], inputs: dict[str, str]) -> Output:
    names = [f"part-{i:05d}" for i in range(len(tables))]
    for name, shard in zip(names, tables, strict=True):
        output.commit_shard(name, lambda t=shard: (t, {}), row_group_rows=20)
    output.finish(version=1, settings={}, inputs=inputs, shards=names, summary={"images": 0})
    return output
