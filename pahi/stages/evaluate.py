"""The comparison on test prompts: every arm from the same eps, scored by every reward and judge."""

import copy
import json
import math
import time
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pahi.artifacts import Output, content_hash
from pahi.artifacts.output import shard_name
from pahi.artifacts.schemas import EVALUATED, GALLERY, SCORES, features_schema, read_tensor, tensor_column
from pahi.errors import UserError
from pahi.evaluation import features as picture_features
from pahi.evaluation.distance import cmmd
from pahi.evaluation.export import Exporter, benchmarks, read_metadata
from pahi.evaluation.optimise import optimise
from pahi.evaluation.statistics import Interval, feature_diversity, neighbour_correlation, pixel_diversity
from pahi.evaluation.summary import BEST_OF, OPTIMISED, SHUFFLED, among, arm_labels, calls, main_arm, summarise
from pahi.generation.pictures import encode
from pahi.generators import standard_noise
from pahi.settings import RewardModel
from pahi.stages import cache, ingest, train
from pahi.stages.common import Context, environment, missing
from pahi.stages.tensors import to_uint8

STAGE, VERSION = "evaluate", 2
BENCHMARKS = "benchmarks.json"  # what other evaluators found: it comes later, so no manifest names it
BEST_OF_STRIDE = 1_000_000  # between the seeds of one choice's candidates


def place(ctx: Context, trained: Output, partitions: ingest.Chain) -> tuple[Output, dict[str, Any], dict[str, str]]:
    """Where the evaluation of a predictor on its own dataset's test prompts lies."""
    own = ctx.settings.evaluate.fingerprinted()
    reference, metadata = own.pop("reference"), own.pop("geneval_metadata")
    settings: dict[str, Any] = {"evaluate": own}
    settings |= {"dtype": ctx.settings.generator.dtype, "rewards": ctx.reward_settings()}
    inputs = ctx.model_hashes | {f"ingest/{i:05d}": h for i, h in enumerate(partitions.hashes)}
    inputs["train"] = trained.require().hash
    if reference:
        inputs["reference"] = picture_features.Reference(reference).hash()
    if metadata:
        inputs["geneval_metadata"] = content_hash(read_metadata(metadata))
    return ctx.output(STAGE, VERSION, settings, inputs), settings, inputs


def locate(ctx: Context, partitions: ingest.Chain) -> Output | None:
    """The finished evaluation of the newest predictor, or None."""
    found = train.newest(ctx, partitions)
    if found is None:
        return None
    output = place(ctx, *found)[0]
    return output if output.manifest() is not None else None


def run(ctx: Context, partitions: ingest.Chain) -> tuple[Output, bool]:
    """Draws and scores every arm; returns the evaluation, and whether it was there already."""
    started = time.time()
    found = train.newest(ctx, partitions)
    if found is None:
        raise missing(ctx, STAGE, train.STAGE)
    trained, partitions = found
    output, settings, inputs = place(ctx, trained, partitions)
    if output.manifest() is not None:
        _read_benchmarks(ctx, output)
        return output, True
    chosen = cache.selection(ctx, partitions, "test", ctx.settings.evaluate.prompts)
    order = partitions.prompts(["prompt_id", "group"]).to_pylist()
    groups = {row["prompt_id"]: (i, row["group"]) for i, row in enumerate(order)}
    for row in chosen:
        row["place"], row["group"] = groups[row["prompt_id"]]
    if not chosen:
        raise UserError(
            "no prompt is in the test split, so nothing can be judged; raise ingest.test_fraction or add prompts"
        )
    cached = cache.locate(ctx, partitions)
    assert cached is not None  # the predictor was trained on it
    units = cached.require().summary["units"]
    arms = Arms(ctx, output, trained, chosen, units)
    size = ctx.settings.evaluate.shard_rows
    shards = [shard_name(i) for i in range(-(-len(chosen) // size))]
    for i, shard in enumerate(shards):
        part = range(i * size, min((i + 1) * size, len(chosen)))
        output.commit_shard(shard, lambda p=part: (arms.shard(p), {"prompts": len(p)}), row_group_rows=100_000)  # type: ignore[misc]
        ctx.progress(STAGE, part.stop, len(chosen), "prompts")
    scores = pa.concat_tables([output.read_part("scores", shard) for shard in shards])
    evaluated = pa.concat_tables([output.read_part("evaluated", shard) for shard in shards])
    summary = summarise(ctx.settings, units, scores, evaluated, arms.distances(output, shards))
    summary["feature_model"] = arms.encoder.name if arms.encoder else None
    output.put_file("summary.json", json.dumps(summary, indent=1, sort_keys=True).encode())
    output.finish(
        version=VERSION, settings=settings, inputs=inputs, shards=shards, files=["summary.json"], summary=summary
    )
    output.write_run(environment(started, ms_per_image=arms.milliseconds()))
    _read_benchmarks(ctx, output)
    return output, False


def _read_benchmarks(ctx: Context, output: Output) -> None:
    evaluate = ctx.settings.evaluate
    if not evaluate.export:
        return
    found = json.dumps(benchmarks(output, evaluate.seeds, evaluate.bootstrap), indent=1, sort_keys=True).encode()
    if output.store.read_or_none(output.key(BENCHMARKS)) != found:
        output.store.replace(output.key(BENCHMARKS), found)


def summary_of(output: Output) -> dict[str, Any]:
    """A finished evaluation's summary, each arm with what other evaluators found of it, under `benchmarks`."""
    summary = dict(output.require().summary)
    found = json.loads(output.store.read_or_none(output.key(BENCHMARKS)) or "{}")
    summary["arms"] = [{**arm, "benchmarks": found.get(arm["arm"], {})} for arm in summary["arms"]]
    return summary


class Arms:
    """Draws the pictures of every arm for slices of the test prompts."""

    def __init__(
        self, ctx: Context, output: Output, trained: Output, chosen: list[dict[str, Any]], units: dict[str, float]
    ) -> None:
        self.ctx, self.output, self.chosen, self.units = ctx, output, chosen, units
        best = train.load_predictor(ctx, trained)
        self.predictors = {best.kind: best}
        if best.kind == "pahi":
            self.predictors["hpi"] = train.load_predictor(ctx, trained, train.HPI)
        self.names = list(arm_labels(ctx.settings))
        for arm in filter(among, self.names):
            self.predictors[arm] = copy.deepcopy(best)
            self.predictors[arm].candidates = among(arm)  # type: ignore[assignment]
        self.train = [model for model in ctx.settings.rewards.train if model.weight]
        texts = [row["text"] for row in chosen]
        batch = ctx.settings.evaluate.batch_size
        encoded = [ctx.generator.encode(texts[i : i + batch]) for i in range(0, len(texts), batch)]
        self.pooled = torch.cat([c.pooled for c in encoded])
        self.seconds: dict[str, list[float]] = {}
        r = ctx.settings.rewards
        # What training used is no fair measure of what it changed: a held-out tower first.
        self.encoder = picture_features.encoder(ctx.reward(m) for m in (*r.held_out, *r.train))
        evaluate = ctx.settings.evaluate
        if evaluate.reference and self.encoder is None:
            raise UserError("evaluate.reference needs a reward with a picture tower: pickscore, clip_score or hpsv2")
        in_order = sorted(chosen, key=lambda row: row["place"])
        self.exporter = Exporter(evaluate, in_order) if evaluate.export else None

    def distances(self, output: Output, shards: list[str]) -> dict[str, dict[str, Interval]]:
        """CMMD of each arm's pictures from the standard arm's, and from the given ones where there are any."""
        if self.encoder is None:
            return {}
        table = pa.concat_tables([output.read_part("features", shard) for shard in shards])
        arm, prompt = np.array(table.column("arm").to_pylist()), np.array(table.column("prompt_id").to_pylist())
        values = read_tensor(table, "features")
        sets = {name: (values[arm == name], list(prompt[arm == name])) for name in self.names}
        x, prompts = sets["standard"]
        found = {"cmmd": {name: cmmd(y, x, p, prompts) for name, (y, p) in sets.items() if name != "standard"}}
        if self.ctx.settings.evaluate.reference:
            given = picture_features.Reference(self.ctx.settings.evaluate.reference)
            y, names = given.features(self.encoder, self.ctx.device), [f"/{name}" for name in given.names]
            found["cmmd_reference"] = {name: cmmd(x, y, p, names) for name, (x, p) in sets.items()}
        return found

    def milliseconds(self) -> dict[str, float]:
        """An image's time from noise to pixels, by arm; the median over batches."""
        return {arm: round(1000 * float(np.median(times)), 3) for arm, times in self.seconds.items()}

    @torch.no_grad()
    def shard(self, part: range) -> dict[str, pa.Table]:
        """Tables of some prompts; batches are fixed slices of them."""
        rows = [self.chosen[i] for i in part]
        evaluate, ctx = self.ctx.settings.evaluate, self.ctx
        texts = [row["text"] for row in rows]
        conditioning = ctx.generator.encode(texts)
        prepared = {m.name: ctx.reward(m).prepare(texts) for m in ctx.reward_models}
        pairs = [(i, seed) for i in range(len(rows)) for seed in range(evaluate.seeds)]
        scores: list[dict[str, Any]] = []
        evaluated: list[dict[str, Any]] = []
        after = str(main_arm(self.names))
        shown: dict[str, Any] = {"standard": None, after: None}  # their first pictures; of the others only figures stay
        found: list[np.ndarray] = []
        for arm in self.names:
            norms, correlations, kls, images, seen = [], [], [], [], []
            for start in range(0, len(pairs), evaluate.batch_size):
                chunk = pairs[start : start + evaluate.batch_size]
                index = torch.tensor([i for i, _ in chunk])
                drawn, x_T, kl, got = self._draw(arm, chunk, index, rows, part, conditioning, prepared, texts)
                images.append(to_uint8(drawn))
                if self.encoder is not None:
                    seen.append(picture_features.features(self.encoder, drawn))
                norms.append(x_T.flatten(1).square().mean(1).sqrt().cpu())
                correlations.append(neighbour_correlation(x_T.float().cpu().numpy()))
                kls.append(kl.cpu())
                for name, values in got.items():
                    scores += [
                        {
                            "prompt_id": rows[i]["prompt_id"],
                            "seed": seed,
                            "arm": arm,
                            "reward": name,
                            "score": value if math.isfinite(value) else None,
                        }
                        for (i, seed), value in zip(chunk, values.tolist(), strict=True)
                    ]
            pictures = np.concatenate(images).reshape(len(rows), evaluate.seeds, *images[0].shape[1:])
            if arm in shown:
                shown[arm] = pictures[:, 0].copy()
            features = np.concatenate(seen).reshape(len(rows), evaluate.seeds, -1) if seen else None
            if features is not None:
                found.append(features)
            norm = torch.cat(norms).view(len(rows), -1).mean(1)
            correlation = np.concatenate(correlations).reshape(len(rows), -1).mean(1)
            kl_rows = torch.cat(kls).view(len(rows), -1).mean(1)
            evaluated += [
                {
                    "prompt_id": row["prompt_id"],
                    "kind": row["kind"],
                    "arm": arm,
                    "group": row["group"],
                    "diversity": pixel_diversity(pictures[i]),
                    "feature_diversity": None if features is None else feature_diversity(features[i]),
                    "noise_norm": float(norm[i]),
                    "kl": float(kl_rows[i]) if math.isfinite(kl_rows[i]) else None,
                    "noise_correlation": float(correlation[i]),
                }
                for i, row in enumerate(rows)
            ]
            self._export(rows, arm, pictures)
        gallery = [
            {
                "prompt_id": row["prompt_id"],
                "prompt": row["text"],
                "kind": row["kind"],
                "seed": 0,
                "before": {"bytes": encode(shown["standard"][i]), "path": None},
                "after": {"bytes": encode(shown[after][i]), "path": None},
            }
            for i, row in enumerate(rows)
            if part[i] < evaluate.gallery
        ]
        tables = {
            "scores": pa.Table.from_pylist(scores, schema=SCORES),
            "evaluated": pa.Table.from_pylist(evaluated, schema=EVALUATED),
            "gallery": pa.Table.from_pylist(gallery, schema=GALLERY),
        }
        if found:
            every = np.stack(found)  # (arms, prompts, seeds, width)
            schema = features_schema(every.shape[-1])
            keys = [(arm, rows[i]["prompt_id"], seed) for arm in self.names for i, seed in pairs]
            columns = {"prompt_id": [k[1] for k in keys], "seed": [k[2] for k in keys], "arm": [k[0] for k in keys]}
            columns["features"] = tensor_column(every.reshape(len(keys), -1), schema.field("features").type)
            tables["features"] = pa.table(columns, schema=schema)
        return tables

    def _export(self, rows: list[dict[str, Any]], arm: str, pictures: np.ndarray) -> None:
        if self.exporter is None:
            return
        store, key = self.output.store, self.output.key
        for row, seeds in zip(rows, pictures, strict=True):
            for name, body in self.exporter.files(row, arm, [encode(pixels) for pixels in seeds]).items():
                store.create(key(name), body)  # the same bytes where an earlier run was here

    def _draw(self, arm, chunk, index, rows, part, conditioning, prepared, texts):
        """One batch of one arm: pictures, x_T, KL a row (NaN where the arm is no Gaussian), scores by reward."""
        generator = self.ctx.generator
        ids, seeds = [rows[i]["prompt_id"] for i, _ in chunk], [seed for _, seed in chunk]
        cond = conditioning.rows(index)

        def draw(x_T: Tensor) -> Tensor:
            return generator.decode(generator.denoise(x_T, cond))

        def score(images: Tensor, wanted: list[RewardModel] = self.ctx.reward_models) -> dict[str, Tensor]:
            return {
                m.name: self.ctx.reward(m).score(
                    images, {n: t[index] for n, t in prepared[m.name].items()}, [texts[i] for i in index.tolist()]
                )
                for m in wanted
            }

        def noise(offset: int = 0) -> Tensor:
            return standard_noise(ids, [s + offset for s in seeds], generator.latent_shape).to(generator.device)

        started = time.perf_counter()
        if arm.startswith(BEST_OF):
            candidates = []
            for k in range(calls(arm)):
                x_T = noise(k * BEST_OF_STRIDE)
                images = draw(x_T)
                candidates.append((x_T, images, score(images)))
            winner = torch.stack([self._trained(got) for _, _, got in candidates]).argmax(0)  # (batch,)

            def take(tensors: list[Tensor]) -> Tensor:
                return torch.stack(tensors)[winner, torch.arange(len(chunk), device=winner.device)]

            self._time(arm, started, len(chunk))
            chosen = {n: take([got[n] for _, _, got in candidates]) for n in candidates[0][2]}
            unknown = torch.full((len(chunk),), float("nan"))
            return take([i for _, i, _ in candidates]), take([x for x, _, _ in candidates]), unknown, chosen
        if arm.startswith(OPTIMISED):
            x_T = optimise(noise(), lambda x: self._trained(score(draw(x), self.train)), calls(arm))
            kl = torch.full((len(chunk),), float("nan"))
        elif arm == "standard":
            x_T, kl = noise(), torch.zeros(len(chunk))
        else:
            # Shuffled: each prompt takes the noise of the prompt half the list away.
            shift = len(self.chosen) // 2 if arm.endswith(SHUFFLED) else 0
            where = torch.tensor([(part[i] + shift) % len(self.chosen) for i, _ in chunk])
            x_T, kl = self.predictors[arm.removesuffix(SHUFFLED)].draw(self.pooled[where], noise())
        images = draw(x_T)
        self._time(arm, started, len(chunk))
        return images, x_T, kl, score(images)

    def _trained(self, scores: dict[str, Tensor]) -> Tensor:
        """(batch,): what training raises, in its units."""
        return sum((m.weight * scores[m.name] / self.units[m.name] for m in self.train), torch.zeros(()))

    def _time(self, arm: str, started: float, count: int) -> None:
        if self.ctx.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds.setdefault(arm, []).append((time.perf_counter() - started) / count)
