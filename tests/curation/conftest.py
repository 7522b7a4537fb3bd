"""One curated dataset, made of pictures that nobody drew, by the stage itself."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import made_up
import numpy as np
import pyarrow as pa
import pytest

from pahi.artifacts import Output
from pahi.artifacts.schemas import PROMPTS, noise_schema, tensor_column
from pahi.settings import load_settings
from pahi.stages import curate
from pahi.stages.common import Context
from pahi.stages.ingest import Chain

PROMPT_COUNT = 30
NOISE = (4, 2, 2)
# The tiny preset's rewards under the names of these scores.
REWARDS = [
    "rewards.train=[{name: pick, kind: pickscore, id: 'pkg:pahi.tiny/weights/reward-alpha'}]",
    "rewards.held_out=[{name: held, kind: pickscore, id: 'pkg:pahi.tiny/weights/reward-beta'}]",
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


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("curation")
    rows = images()
    scores = made_up.score_rows(rows)
    # The copy scores less than what it copies.
    for s in scores:
        if s["image_id"] == f"{made_up.prompt_id(3)}-pahi-40":
            s["score"] -= 5
    store = Context(load_settings("tiny", root=str(root))).store
    schema = pa.schema([f.with_nullable(True) for f in PROMPTS])
    prompts = pa.Table.from_pylist(made_up.prompts(PROMPT_COUNT).to_pylist(), schema=schema)
    ingested = write(Output(store, "made-up", "ingest", "i" * 12), [{"prompts": prompts}], {})
    rng = np.random.default_rng(0)
    shards = []
    for start in range(0, len(rows), 60):
        part = rows[start : start + 60]
        ids = {row["image_id"] for row in part}
        mine = sorted({row["prompt_id"] for row in part})
        noise = noise_schema(NOISE)
        tensors = [
            tensor_column(rng.normal(size=(len(mine), *NOISE)).astype(np.float16), noise.field(n).type)
            for n in ("mu", "sigma")
        ]
        shards.append(
            {
                "images": made_up.image_table(part),
                "scores": made_up.score_table([s for s in scores if s["image_id"] in ids]),
                "noise": pa.Table.from_arrays([pa.array(mine), *tensors], schema=noise),
            }
        )
    drawn = write(Output(store, "made-up", "generate", "g" * 12), shards, {"predictor": "p" * 64})
    return World(root, rows, scores, Chain("chain", [ingested], ["sources"]), [drawn])


@pytest.fixture(scope="session")
def curated(world: World) -> Output:
    return world.curate("curate.keep_fraction=1")
