"""What is computed once: pinned models, conditioning, text features, and the standard Gaussian's rewards.

The baseline fixes a reward's unit everywhere else: the pooled within-prompt standard deviation on training prompts.
"""

import json
import time
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pahi.artifacts import Manifest, Output
from pahi.artifacts.output import shard_name
from pahi.artifacts.schemas import BASELINE, embeds_schema, reward_text_schema, tensor_column
from pahi.errors import UserError
from pahi.evaluation.statistics import pooled_within_prompt_std
from pahi.generators import standard_noise
from pahi.generators.load import lineage, part_files, replaced_parts
from pahi.rewards.files import pinned as files_of
from pahi.rewards.load import kind_of, source
from pahi.stages import ingest
from pahi.stages.checkpoints import keep_all
from pahi.stages.common import Context, environment, missing
from pahi.stages.tensors import read_conditioning, read_prepared
from pahi.training.trainer import PromptSet

STAGE, VERSION = "cache", 2
Rows = list[dict[str, Any]]


def selection(ctx: Context, partitions: ingest.Chain, split: str, most: int | None) -> Rows:
    """A split's prompts, at most so many, spread over the order of their ids so that no source or kind is favoured."""
    table = partitions.prompts(["prompt_id", "text", "kind", "split"])
    rows = [row for row in table.to_pylist() if row["split"] == split]
    return sorted(rows, key=lambda row: row["prompt_id"])[:most]


def place(ctx: Context, partitions: ingest.Chain) -> tuple[Output, dict[str, Any], dict[str, str]]:
    """Where the cache of these partitions lies; its settings and inputs."""
    s = ctx.settings
    settings = {"cache": s.cache.fingerprinted(), "dtype": s.generator.dtype, "rewards": ctx.reward_settings()}
    inputs = ctx.model_hashes | {f"ingest/{i:05d}": h for i, h in enumerate(partitions.hashes)}
    return ctx.output(STAGE, VERSION, settings, inputs), settings, inputs


def locate(ctx: Context, partitions: ingest.Chain) -> Output | None:
    """The finished cache of these partitions, or None."""
    if not partitions.outputs:
        return None
    output = place(ctx, partitions)[0]
    return output if output.manifest() is not None else None


def run(ctx: Context, partitions: ingest.Chain) -> tuple[Output, bool]:
    """Encodes, generates and scores; returns the cache, and whether it was there already."""
    started = time.time()
    if not partitions.outputs:
        raise missing(ctx, STAGE, ingest.STAGE)
    output, settings, inputs = place(ctx, partitions)
    if output.manifest() is not None:
        return output, True
    fetch(ctx)
    cache = ctx.settings.cache
    train = selection(ctx, partitions, "train", cache.max_train_prompts)
    validation = selection(ctx, partitions, "validation", cache.max_validation_prompts)
    if not train:
        raise UserError(
            "no prompt is in the training split, so nothing can be learned; add prompts or change the fractions"
        )
    rows = train + validation
    output.put_file("models.json", json.dumps(_models(ctx), indent=1, sort_keys=True).encode())
    size = cache.shard_rows
    shards = [shard_name(i) for i in range(-(-len(rows) // size))]
    for i, shard in enumerate(shards):
        part = rows[i * size : (i + 1) * size]
        output.commit_shard(shard, lambda p=part: (_shard(ctx, p), {"prompts": len(p)}))  # type: ignore[misc]
        ctx.progress(STAGE, min((i + 1) * size, len(rows)), len(rows), "prompts")
    texts = pa.concat_tables([output.read_part("reward_text", shard) for shard in shards])
    cut = [name for name in texts.column_names if name.endswith("__truncated")]
    summary = {
        "truncated": {name.removesuffix("__truncated"): sum(texts.column(name).to_pylist()) for name in cut},
        "train_prompts": len(train),
        "validation_prompts": len(validation),
        "seeds": cache.seeds,
        "units": _units(ctx, output, shards, {row["prompt_id"] for row in train}),
    }
    output.finish(
        version=VERSION, settings=settings, inputs=inputs, shards=shards, files=["models.json"], summary=summary
    )
    output.write_run(environment(started))
    return output, False


def fetch(ctx: Context) -> list[dict[str, Any]]:
    """Brings every checkpoint into the store, and nothing else: one row a model, with its hash."""
    rows = []
    total = 1 + len(ctx.reward_models)
    for done, (name, found) in enumerate(keep_all(ctx.settings, ctx.checkpoints), 1):
        rows.append({"model": name, "hash": found.hash})
        ctx.progress(STAGE, done, total, "models")
    return rows


def _models(ctx: Context) -> dict[str, Any]:
    """Every checkpoint: its hash, licence, and the sha256 of each file; of a Hub model the id and commit too."""
    s = ctx.settings
    entry: dict[str, Any] = lineage(ctx.generator_settings) | {"hash": ctx.model_hashes["generator"]}
    for name, part in entry.get("parts", {}).items():
        # A copy in the store is known by the Hub's name, never by its place.
        named = s.generator.parts.get(name, s.generator.training_autoencoder)
        part |= {"id": named.id} | _origin(ctx, named.id, named.revision, part_files(named))  # type: ignore[union-attr, arg-type]
    pinned = {"generator": entry | _origin(ctx, s.generator.id, s.generator.revision, (), replaced_parts(s.generator))}
    for model in ctx.reward_models:
        kind = kind_of(model)
        entry = {"hash": ctx.model_hashes[f"reward/{model.name}"], "kind": model.kind, "revision": model.revision}
        if kind.digest is None:
            entry["license"] = kind.license if model.id == kind.checkpoint else "see its own"
            entry |= _origin(ctx, model.id, model.revision, kind.files)
            found = source(model, ctx.checkpoints.find)
            entry["files"] = files_of(found.folder, kind.files)
            entry["base"] = files_of(found.base, kind.base_files)
        pinned[f"reward/{model.name}"] = entry
    return pinned


def _origin(
    ctx: Context, model_id: str, revision: str | None, only: tuple[str, ...], skip: tuple[str, ...] = ()
) -> dict[str, Any]:
    record = ctx.checkpoints.record(model_id, revision, only, skip)
    return {} if record is None else {"id": record["id"], "revision": record["commit"]}


@torch.no_grad()
def _shard(ctx: Context, part: Rows) -> dict[str, pa.Table]:
    """Tables of one shard's prompts; batches are fixed slices of it."""
    generator, batch = ctx.generator, ctx.settings.cache.batch_size
    ids, texts = [row["prompt_id"] for row in part], [row["text"] for row in part]
    conditioning = generator.encode(texts)
    tensors = {f"embed_{n}": t.cpu().numpy() for n, t in conditioning.embeds.items()}
    tensors["pooled"] = conditioning.pooled.cpu().numpy()
    schema = embeds_schema({n: t.shape[1:] for n, t in tensors.items()}, truncated=True)
    columns = [tensor_column(t, schema.field(n).type) for n, t in tensors.items()]
    tables = {
        "conditioning": pa.Table.from_arrays([pa.array(ids), pa.array(conditioning.truncated), *columns], schema=schema)
    }

    rewards = [ctx.reward(model) for model in ctx.reward_models]
    prepared = {reward.name: reward.prepare(texts) for reward in rewards}
    features = {f"{r}__{n}": t.cpu().numpy() for r, p in prepared.items() for n, t in p.items() if n != "truncated"}
    cut = {f"{r}__truncated": p["truncated"].bool().tolist() for r, p in prepared.items() if "truncated" in p}
    schema = reward_text_schema(features, [name.removesuffix("__truncated") for name in cut])
    columns = [tensor_column(t, schema.field(n).type) for n, t in features.items()]
    tables["reward_text"] = pa.Table.from_arrays(
        [pa.array(ids), *(pa.array(c, pa.bool_()) for c in cut.values()), *columns], schema=schema
    )

    pairs = [(i, seed) for i in range(len(part)) for seed in range(ctx.settings.cache.seeds)]
    baseline: Rows = []
    for start in range(0, len(pairs), batch):
        chunk = pairs[start : start + batch]
        index = torch.tensor([i for i, _ in chunk])
        eps = standard_noise([ids[i] for i, _ in chunk], [seed for _, seed in chunk], generator.latent_shape)
        images = generator.decode(generator.denoise(eps.to(generator.device), conditioning.rows(index)))
        for reward in rewards:
            rows = {n: t[index] for n, t in prepared[reward.name].items()}
            scores = reward.score(images, rows, [texts[i] for i, _ in chunk]).tolist()
            baseline += [
                {"prompt_id": ids[i], "seed": seed, "reward": reward.name, "score": score}
                for (i, seed), score in zip(chunk, scores, strict=True)
            ]
    tables["baseline"] = pa.Table.from_pylist(baseline, schema=BASELINE)
    return tables


def _units(ctx: Context, output: Output, shards: list[str], train: set[str]) -> dict[str, float | None]:
    table = pa.concat_tables([output.read_part("baseline", shard) for shard in shards])
    units: dict[str, float | None] = {}
    for model in ctx.reward_models:
        scores = baseline_scores(table, model.name, ctx.settings.cache.seeds)
        unit = pooled_within_prompt_std(np.array([s for prompt, s in scores.items() if prompt in train]))
        units[model.name] = unit if np.isfinite(unit) else None
    return units


def baseline_scores(table: pa.Table, reward: str, seeds: int) -> dict[str, list[float]]:
    """A reward's scores of each prompt, in the order of the seeds."""
    scores: dict[str, list[float]] = {}
    for row in table.select(["prompt_id", "seed", "reward", "score"]).to_pylist():
        if row["reward"] == reward:
            scores.setdefault(row["prompt_id"], [float("nan")] * seeds)[row["seed"]] = row["score"]
    return scores


def prompt_sets(ctx: Context, output: Output, manifest: Manifest) -> tuple[PromptSet, PromptSet]:
    """The training and validation prompts as the trainer reads them."""
    conditioning_table, text_table = output.read("conditioning"), output.read("reward_text")
    baseline = output.read("baseline")
    conditioning = read_conditioning(conditioning_table)
    ids = conditioning_table.column("prompt_id").to_pylist()
    texts_by_id = {
        row["prompt_id"]: row["text"] for row in ingest.chain(ctx).prompts(["prompt_id", "text"]).to_pylist()
    }
    texts = [texts_by_id[prompt] for prompt in ids]
    prepared = {model.name: read_prepared(text_table, model.name) for model in ctx.reward_models}
    seeds = ctx.settings.cache.seeds
    scores = {model.name: baseline_scores(baseline, model.name, seeds) for model in ctx.reward_models}

    def part(start: int, stop: int) -> PromptSet:
        index = torch.arange(start, stop)
        return PromptSet(
            ids[start:stop],
            texts[start:stop],
            conditioning.rows(index),
            {name: {n: t[index] for n, t in p.items()} for name, p in prepared.items()},
            {name: torch.tensor([s[i] for i in ids[start:stop]]).reshape(-1, seeds) for name, s in scores.items()},
            list(range(seeds)),
        )

    split = manifest.summary["train_prompts"]
    return part(0, split), part(split, len(ids))
