"""Pictures in bulk: one output for each partition of prompts, with a predictor frozen by its hash."""

import hashlib
import time
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pahi import models
from pahi.artifacts import Output
from pahi.artifacts.output import shard_name
from pahi.artifacts.schemas import IMAGE_SCORES, IMAGES, noise_schema, tensor_column
from pahi.errors import PahiError
from pahi.generation.pictures import broken, encode, pixels_sha256
from pahi.generators import standard_noise
from pahi.predictors import GaussianPredictor, NoisePredictor
from pahi.predictors.base import WEIGHTS
from pahi.stages import cache, ingest, train
from pahi.stages.common import Context, environment, missing, to_uint8

STAGE, VERSION = "generate", 1
Sample = tuple[int, int, str]  # row of the shard, seed, arm


def frozen_predictor(ctx: Context, partitions: ingest.Chain) -> tuple[str, Any, dict[str, float | None]] | None:
    """The predictor's hash, how to load it, and the rewards' units; None where nothing was trained yet."""
    found = train.newest(ctx, partitions)
    units: dict[str, float | None] = {}
    if found is not None:
        cached = cache.locate(ctx, found[1])
        assert cached is not None
        units = cached.require().summary["units"]
    given = ctx.settings.generate.predictor
    if given:
        folder = models.resolve(given)
        return models.model_hash(folder), lambda: NoisePredictor.from_pretrained(str(folder)).to(ctx.device), units
    if found is None:
        return None
    digest = found[0].require().data["files"][f"predictor/{WEIGHTS}"]["sha256"]
    return digest, lambda: train.load_predictor(ctx, found[0]), units


def place(ctx: Context, partition: Output, predictor_hash: str) -> tuple[Output, dict[str, Any], dict[str, str]]:
    """Where one partition's pictures lie."""
    own = ctx.settings.generate.fingerprinted()
    own.pop("predictor")  # its hash is an input
    rewards = [r for r in ctx.reward_settings() if r["role"] != "judge"]
    settings = {"generate": own, "dtype": ctx.settings.generator.dtype, "rewards": rewards}
    inputs = ctx.model_hashes | {"predictor": predictor_hash, "ingest": partition.require().hash}
    return ctx.output(STAGE, VERSION, settings, inputs), settings, inputs


def locate_all(ctx: Context, partitions: ingest.Chain) -> list[Output] | None:
    """Every partition's finished pictures, or None while one is missing."""
    frozen = frozen_predictor(ctx, partitions)
    if frozen is None:
        return None
    outputs = [place(ctx, partition, frozen[0])[0] for partition in partitions.outputs]
    return outputs if outputs and all(output.manifest() is not None for output in outputs) else None


def run(ctx: Context, partitions: ingest.Chain) -> tuple[list[Output], bool]:
    """Draws what no earlier run drew; returns every partition's output, and whether all were there already."""
    frozen = frozen_predictor(ctx, partitions)
    if frozen is None:
        raise missing(STAGE, train.STAGE)
    digest, load, units = frozen
    places = [place(ctx, partition, digest) for partition in partitions.outputs]
    undone = [i for i, (output, _, _) in enumerate(places) if output.manifest() is None]
    if undone:
        predictor = load()
        predictor.check(ctx.generator.id, ctx.generator.latent_shape, ctx.generator.pooled_width)
        drawer = Drawer(ctx, predictor, digest, units)
        for i in undone:
            _partition(ctx, partitions.outputs[i], *places[i], drawer)
    return [output for output, _, _ in places], not undone


def _partition(ctx: Context, partition: Output, output: Output, settings: Any, inputs: Any, drawer: "Drawer") -> None:
    started = time.time()
    prompts = partition.read("prompts", ["prompt_id", "text"]).to_pylist()
    size = ctx.settings.generate.shard_rows
    shards = [shard_name(i) for i in range(max(1, -(-len(prompts) // size)))]
    rows = bad = 0
    for i, shard in enumerate(shards):
        part = prompts[i * size : (i + 1) * size]
        entry = output.commit_shard(shard, lambda p=part: drawer.shard(p), row_group_rows=100)  # type: ignore[misc]
        rows += entry["tables"]["images"]["rows"]
        bad += entry["statistics"]["failed"]
        if rows and bad / rows > ctx.settings.generate.max_bad_fraction:
            raise PahiError(
                f"{bad} of {rows} pictures failed, more than generate.max_bad_fraction allows; their reasons are in "
                f"{output.url}/images: mend the cause, or raise the fraction and run again"
            )
        ctx.progress(STAGE, min((i + 1) * size, len(prompts)), len(prompts), "prompts")
    expected = sum(len(drawer.samples([prompt])) for prompt in prompts)
    if rows != expected:
        raise PahiError(f"{output.url}: {expected} pictures were planned and {rows} written")
    summary = {"prompts": len(prompts), "images": rows, "failed": bad}
    output.finish(version=VERSION, settings=settings, inputs=inputs, shards=shards, summary=summary)
    output.write_run(environment(started))


class Drawer:
    """Draws shards of prompts with one generator, one predictor and the rewards."""

    def __init__(self, ctx: Context, predictor: NoisePredictor, digest: str, units: dict[str, float | None]) -> None:
        self.ctx, self.predictor, self.digest, self.units = ctx, predictor, digest, units
        r = ctx.settings.rewards
        self.rewards = [*r.train, *r.held_out]

    def samples(self, prompts: list[dict[str, Any]]) -> list[Sample]:
        """The sampling plan: every prompt's seeds, and in the control group the standard Gaussian of the same eps."""
        g = self.ctx.settings.generate
        plan: list[Sample] = []
        for i, prompt in enumerate(prompts):
            digest = hashlib.sha256(f"control:{prompt['prompt_id']}".encode()).digest()
            control = int.from_bytes(digest[:8], "big") / 2**64 < g.control_fraction
            for seed in range(g.seed, g.seed + g.images_per_prompt):
                plan.append((i, seed, self.predictor.kind))
                if control and self.predictor.kind != "standard":
                    plan.append((i, seed, "standard"))
        return plan

    @torch.no_grad()
    def draw(self, prompts: list[dict[str, Any]], samples: list[Sample]) -> dict[str, Any]:
        """One batch: pictures (n, 3, h, w), x_T's norm, KL, truncation, and raw scores by reward."""
        generator = self.ctx.generator
        index = torch.tensor([i for i, _, _ in samples])
        texts = [prompts[i]["text"] for i, _, _ in samples]
        conditioning = self._conditioning.rows(index)
        ids, seeds = [prompts[i]["prompt_id"] for i, _, _ in samples], [seed for _, seed, _ in samples]
        eps = standard_noise(ids, seeds, generator.latent_shape).to(generator.device)
        x_T, divergence = self.predictor.draw(conditioning.pooled, eps)
        plain = torch.tensor([arm == "standard" for _, _, arm in samples], device=eps.device)
        x_T, divergence = torch.where(plain.view(-1, 1, 1, 1), eps, x_T), divergence.masked_fill(plain, 0)
        images = generator.decode(generator.denoise(x_T, conditioning))
        scores = {}
        for model in self.rewards:
            prepared = {n: t[index] for n, t in self._prepared[model.name].items()}
            scores[model.name] = self.ctx.reward(model).score(images, prepared, texts).cpu().numpy()
        return {
            "images": images.float().permute(0, 2, 3, 1).cpu().numpy(),
            "pixels": to_uint8(torch.nan_to_num(images)),
            "norm": x_T.flatten(1).square().mean(1).sqrt().cpu().numpy(),
            "kl": divergence.cpu().numpy(),
            "truncated": conditioning.truncated,
            "scores": scores,
        }

    def shard(self, prompts: list[dict[str, Any]]) -> tuple[dict[str, pa.Table], dict[str, Any]]:
        """A shard's tables and statistics; batches are fixed slices of its samples."""
        self.prepare(prompts)
        g, plan = self.ctx.settings.generate, self.samples(prompts)
        images: list[dict[str, Any]] = []
        scores: list[dict[str, Any]] = []
        for start in range(0, len(plan), g.batch_size):
            samples = plan[start : start + g.batch_size]
            got = self.draw(prompts, samples)
            for k, (i, seed, arm) in enumerate(samples):
                row = self._row(prompts[i], seed, arm, got, k)
                images.append(row)
                for name, values in got["scores"].items():
                    failed = row["status"] != "ok" or not np.isfinite(values[k])
                    scores.append(
                        {
                            "image_id": row["image_id"],
                            "prompt_id": row["prompt_id"],
                            "arm": arm,
                            "reward": name,
                            "score": None if failed else float(values[k]),
                            "uplift_scale": self.units.get(name) or float("nan"),
                        }
                    )
        tables = {
            "images": pa.Table.from_pylist(images, schema=IMAGES),
            "scores": pa.Table.from_pylist(scores, schema=IMAGE_SCORES),
            "noise": self._noise(prompts),
        }
        return tables, {"failed": sum(row["status"] != "ok" for row in images), "images": len(images)}

    def prepare(self, prompts: list[dict[str, Any]]) -> None:
        """Encodes a shard's prompts, once for all of their pictures."""
        texts = [prompt["text"] for prompt in prompts]
        if texts:
            self._conditioning = self.ctx.generator.encode(texts)
            self._prepared = {m.name: self.ctx.reward(m).prepare(texts) for m in self.rewards}

    def _row(self, prompt: dict[str, Any], seed: int, arm: str, got: dict[str, Any], k: int) -> dict[str, Any]:
        g, pixels = self.ctx.settings.generate, got["pixels"][k]
        reason = broken(got["images"][k])
        return {
            "image_id": f"{prompt['prompt_id']}-{arm}-{seed}",
            "prompt_id": prompt["prompt_id"],
            "prompt": prompt["text"],
            "seed": seed,
            "arm": arm,
            "image": None if reason else {"bytes": encode(pixels, g.format, g.quality), "path": None},
            "width": pixels.shape[1],
            "height": pixels.shape[0],
            "format": g.format,
            "pixels_sha256": None if reason else pixels_sha256(pixels),
            "status": "failed" if reason else "ok",
            "reason": reason,
            "truncated": got["truncated"][k],
            "generator": self.ctx.settings.generator.id,
            "generator_hash": self.ctx.model_hashes["generator"],
            "predictor_hash": self.digest,
            "dtype": self.ctx.settings.generator.dtype,
            "noise_norm": float(got["norm"][k]),
            "kl": float(got["kl"][k]),
        }

    @torch.no_grad()
    def _noise(self, prompts: list[dict[str, Any]]) -> pa.Table:
        shape = self.ctx.generator.latent_shape
        schema = noise_schema(shape)
        if not prompts or not isinstance(self.predictor, GaussianPredictor):
            return schema.empty_table()  # other predictors have no mu and sigma: their noise is drawn again instead
        mu, log_sigma = self.predictor.distribution(self._conditioning.pooled)
        columns = [
            tensor_column(t.cpu().numpy().astype(np.float16), schema.field(name).type)
            for name, t in (("mu", mu), ("sigma", log_sigma.exp()))
        ]
        ids = pa.array([prompt["prompt_id"] for prompt in prompts])
        return pa.Table.from_arrays([ids, *columns], schema=schema)
