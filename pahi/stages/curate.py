"""The curated dataset: Parquet with pictures by split, a card, and every exclusion with its reason."""

import json
import time
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pahi.artifacts import Output
from pahi.artifacts.output import shard_name
from pahi.artifacts.schemas import EXCLUDED, curated_schema
from pahi.curation.card import card
from pahi.curation.select import select
from pahi.errors import PahiError
from pahi.stages import generate, ingest
from pahi.stages.common import Context, environment, missing

STAGE, VERSION = "curate", 1
SPLITS = ("train", "validation", "test")
LIGHT = ["image_id", "prompt_id", "arm", "status", "reason", "pixels_sha256"]


def place(ctx: Context, drawn: list[Output], partitions: ingest.Chain) -> tuple[Output, dict[str, Any], dict[str, str]]:
    """Where the dataset of these pictures lies."""
    settings = {"curate": ctx.settings.curate.fingerprinted(), "license": ctx.settings.generator.license}
    inputs = {f"generate/{i:05d}": output.require().hash for i, output in enumerate(drawn)}
    inputs |= {f"ingest/{i:05d}": h for i, h in enumerate(partitions.hashes)}
    return ctx.output(STAGE, VERSION, settings, inputs), settings, inputs


def locate(ctx: Context, partitions: ingest.Chain) -> Output | None:
    """The finished dataset, or None."""
    drawn = generate.locate_all(ctx, partitions)
    if drawn is None:
        return None
    output = place(ctx, drawn, partitions)[0]
    return output if output.manifest() is not None else None


def run(ctx: Context, partitions: ingest.Chain) -> tuple[Output, bool]:
    """Selects from every partition's pictures; returns the dataset, and whether it was there already."""
    started = time.time()
    drawn = generate.locate_all(ctx, partitions)
    if drawn is None:
        raise missing(STAGE, generate.STAGE)
    output, settings, inputs = place(ctx, drawn, partitions)
    if output.manifest() is not None:
        return output, True
    images = [row for o in drawn for row in o.read("images", LIGHT).to_pylist()]
    scores: dict[str, dict[str, float | None]] = {row["image_id"]: {} for row in images}
    for o in drawn:
        for row in o.read("scores", ["image_id", "reward", "score"]).to_pylist():
            scores[row["image_id"]][row["reward"]] = row["score"]
    kept, excluded, funnel = select(images, scores, ctx.settings.curate)
    if len(kept) + len(excluded) != len(images):
        raise PahiError(
            f"curate: {len(images)} pictures in, {len(kept)} kept and {len(excluded)} excluded do not add up"
        )

    prompts = {row["prompt_id"]: row for row in partitions.prompts(["prompt_id", "kind", "split"]).to_pylist()}
    rewards = sorted({name for by_name in scores.values() for name in by_name})
    schema = curated_schema(rewards)
    chosen: dict[str, list[str]] = {split: [] for split in SPLITS}
    for row in kept:
        chosen[prompts[row["prompt_id"]]["split"]].append(row["image_id"])
    size = ctx.settings.curate.shard_rows
    shards = [shard_name(i) for i in range(max(1, -(-max(len(ids) for ids in chosen.values()) // size)))]
    for i, shard in enumerate(shards):
        parts = {split: ids[i * size : (i + 1) * size] for split, ids in chosen.items()}

        def build(parts=parts, first=i == 0):
            tables = {s: _rows(drawn, ids, prompts, scores, schema) for s, ids in parts.items() if ids}
            if first:
                tables["rejects"] = pa.Table.from_pylist(excluded, schema=EXCLUDED)
            return tables, {}

        output.commit_shard(shard, build, row_group_rows=100)
        ctx.progress(STAGE, i + 1, len(shards), "shards written")
    splits = {split: len(ids) for split, ids in chosen.items()}
    facts = {
        "generator": ctx.settings.generator.id,
        "generator_hash": ctx.model_hashes["generator"],
        "license": ctx.settings.generator.license,
        "predictor_hash": drawn[0].require().inputs["predictor"],
        "rewards": rewards,
    }
    title = ctx.settings.curate.title or ctx.settings.name
    output.put_file("README.md", card(title, splits, funnel, facts).encode())
    output.put_file("statistics.json", json.dumps({"splits": splits, "funnel": funnel}, indent=1).encode())
    summary = {
        "images_in": len(images),
        "kept": len(kept),
        "excluded": len(excluded),
        "splits": splits,
        "funnel": funnel,
    }
    output.finish(
        version=VERSION,
        settings=settings,
        inputs=inputs,
        shards=shards,
        files=["README.md", "statistics.json"],
        summary=summary,
    )
    output.write_run(environment(started))
    return output, False


def _rows(
    drawn: list[Output], ids: list[str], prompts: dict[str, Any], scores: dict[str, Any], schema: pa.Schema
) -> pa.Table:
    """The chosen pictures' full rows, in the order of the partitions: one shard of pictures in memory at a time."""
    wanted = pa.array(ids)
    columns = [n for n in schema.names if n != "kind" and not n.startswith("score_")]
    tables = []
    for output in drawn:
        for part in output.read_shards("images", columns):
            part = part.filter(pc.is_in(part.column("image_id"), wanted))
            if not len(part):
                continue
            rows = part.to_pylist()
            for row in rows:
                row["kind"] = prompts[row["prompt_id"]]["kind"]
                row |= {
                    n: scores[row["image_id"]].get(n.removeprefix("score_"))
                    for n in schema.names
                    if n.startswith("score_")
                }
            tables.append(pa.Table.from_pylist(rows, schema=schema))
    return pa.concat_tables(tables)
