"""One curated dataset, made of pictures that nobody drew, by the stage itself."""

import made_up
import numpy as np
import pyarrow as pa
import pytest
from curated_world import NOISE, PROMPT_COUNT, World, images, write

from pahi.artifacts import Output
from pahi.artifacts.schemas import PROMPTS, noise_schema, tensor_column
from pahi.settings import load_settings
from pahi.stages.common import Context
from pahi.stages.ingest import Chain


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
