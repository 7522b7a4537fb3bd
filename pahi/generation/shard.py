"""One shard of pictures: its batches, which candidates are kept, and the rows that are written."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pahi.artifacts.schemas import CANDIDATES, IMAGE_SCORES, IMAGES, noise_schema, tensor_column
from pahi.generation.drawing import KL, NOISE_NORM, SCORES, Drawer, Drawn
from pahi.generation.pictures import encode, pixels_sha256
from pahi.generation.plan import STANDARD, Sample, plan
from pahi.generation.uplift import Uplift
from pahi.settings import Generate

EVERY_PROMPT = "*"  # `noise.prompt_id` of a mu and sigma that are the same for all
GLOBAL = ("standard", "scale", "hpi")

Row = dict[str, Any]
Built = tuple[dict[str, pa.Table], dict[str, Any]]


@dataclass(frozen=True)
class Origin:
    """What every row of a run says of where it comes from, and how pictures are chosen."""

    settings: Generate
    lineage: Row  # generator, generator_revision, generator_hash, predictor_hash, dtype
    units: dict[str, float | None]  # pooled within-prompt standard deviation, by reward
    weights: dict[str, float]  # of the training rewards, which choose among candidates


@dataclass
class Shard:
    """Draws and writes one shard; what the engine calls a work."""

    name: str  # unique within a run
    part: str  # part-00042
    prompts: list[Row]  # prompt_id and text
    drawer: Drawer
    origin: Origin
    commit: Callable[["Shard", Callable[[], Built]], None]
    batch_size: int = 32
    first: bool = False  # of its partition
    drawn: int = 0  # of its prompts
    _pooled: dict[int, torch.Tensor] = field(default_factory=dict)
    _group: list[tuple[Drawn, int]] = field(default_factory=list)
    _scores: list[Row] = field(default_factory=list)
    _candidates: list[Row] = field(default_factory=list)
    _noise: pa.Table | None = None
    _ahead: tuple[Sample, dict[str, float | None]] | None = None  # a kept picture whose control picture may follow

    def __post_init__(self) -> None:
        self.uplift = Uplift(reward.name for reward in self.drawer.rewards)

    @property
    def plan(self) -> list[Sample]:
        ids = [prompt["prompt_id"] for prompt in self.prompts]
        return plan(ids, self.origin.settings, self.drawer.predictor.kind)

    # -------------------------------------------------------------------------------------------------- as the engine

    def batches(self) -> Iterator[Drawn]:
        self._pooled, self._group, self._scores, self._candidates = {}, [], [], []
        self.uplift, self._ahead = Uplift(self.uplift.sums), None
        samples, size = self.plan, self.batch_size
        for start in range(0, len(samples), size):
            batch = self.drawer.draw(self.prompts, samples[start : start + size], self._pooled)
            self.drawn = batch.samples[-1].prompt + (start + size >= len(samples))
            yield batch
        self._noise = self._noise_table()

    def encode(self, batch: Drawn) -> list[Callable[[], Row]]:
        """The kept pictures of every group that this batch completes."""
        batch.ready()
        jobs: list[Callable[[], Row]] = []
        for row in range(len(batch.samples)):
            self._group.append((batch, row))
            if len(self._group) == self.origin.settings.best_of:
                kept = self._choose()
                jobs.append(lambda kept=kept: self._row(*kept))  # type: ignore[misc]
                self._group = []
        return jobs

    def write(self, encoded: list[Row]) -> None:
        self.commit(self, lambda: self.build(encoded))

    def build(self, rows: list[Row]) -> Built:
        """The shard's tables and its statistics."""
        assert self._noise is not None and not self._group
        tables = {
            "images": pa.Table.from_pylist(rows, schema=IMAGES),
            "scores": pa.Table.from_pylist(self._scores, schema=IMAGE_SCORES),
            "noise": self._noise,
        }
        if self.origin.settings.best_of > 1:
            tables["candidates"] = pa.Table.from_pylist(self._candidates, schema=CANDIDATES)
        reasons: dict[str, int] = {}
        for row in rows:
            if row["reason"]:
                reasons[row["reason"]] = reasons.get(row["reason"], 0) + 1
        return tables, {"images": len(rows), "failed": sum(reasons.values()), "reasons": reasons}

    # ------------------------------------------------------------------------------------------------------- the rows

    def _choose(self) -> tuple[Drawn, int]:
        """The best of a group by the training rewards; among equals the first. Puts down every score."""
        scores = [self._raw(drawn, row) for drawn, row in self._group]
        merits = [self._merit(raw) for raw in scores]
        best = max(range(len(merits)), key=lambda k: (merits[k], -k))
        self._compare(self._group[best][0].samples[self._group[best][1]], scores[best])
        s = self.origin.settings
        for k, (drawn, row) in enumerate(self._group):
            sample = drawn.samples[row]
            base = {"image_id": self._image_id(sample), "prompt_id": self.prompts[sample.prompt]["prompt_id"]}
            for name, score in scores[k].items():
                one = base | {"arm": sample.arm, "reward": name, "score": score, "seed": sample.seed}
                if k == best:
                    unit = self.origin.units.get(name)
                    self._scores.append(one | {"uplift_scale": float("nan") if unit is None else unit})
                if s.best_of > 1:
                    picture = (sample.seed - s.seed) // s.best_of
                    self._candidates.append(one | {"picture": picture, "kept": k == best})
        return self._group[best]

    def _compare(self, kept: Sample, raw: dict[str, float | None]) -> None:
        """A control picture follows the picture that it is drawn for."""
        ahead, self._ahead = self._ahead, (kept, raw)
        if ahead and kept.arm == STANDARD != ahead[0].arm and ahead[0].prompt == kept.prompt:
            for name, control in raw.items():
                self.uplift.add(name, ahead[1][name], control, self.origin.units.get(name))

    def _raw(self, drawn: Drawn, row: int) -> dict[str, float | None]:
        failed = drawn.reason(row) is not None
        values = drawn.values[row][SCORES:]
        return {
            reward.name: None if failed or not math.isfinite(value) else value
            for reward, value in zip(self.drawer.rewards, values, strict=True)
        }

    def _merit(self, raw: dict[str, float | None]) -> float:
        """The weighted mean of the training rewards in their own units; -inf for a picture that failed."""
        total = 0.0
        for name, weight in self.origin.weights.items():
            score = raw[name]
            if score is None:
                return -math.inf
            total += weight * score / (self.origin.units.get(name) or 1.0)
        return total

    def _image_id(self, sample: Sample) -> str:
        return f"{self.prompts[sample.prompt]['prompt_id']}-{sample.arm}-{sample.seed}"

    def _row(self, drawn: Drawn, row: int) -> Row:
        """A row of `images`; called in an encoder's thread."""
        s, sample, pixels = self.origin.settings, drawn.samples[row], drawn.pixels.numpy()[row]
        reason = drawn.reason(row)
        picture = None
        if reason is None:
            try:
                picture = {"bytes": encode(pixels, s.format, s.quality), "path": None}
            except Exception as error:
                reason = f"cannot be encoded as {s.format}: {type(error).__name__}"
        return {
            "image_id": self._image_id(sample),
            "prompt_id": self.prompts[sample.prompt]["prompt_id"],
            "prompt": self.prompts[sample.prompt]["text"],
            "seed": sample.seed,
            "arm": sample.arm,
            "image": picture,
            "width": pixels.shape[1],
            "height": pixels.shape[0],
            "format": s.format,
            "pixels_sha256": pixels_sha256(pixels) if reason is None else None,
            "status": "ok" if reason is None else "failed",
            "reason": reason,
            "truncated": drawn.truncated[row],
            "noise_norm": drawn.values[row][NOISE_NORM],
            "kl": drawn.values[row][KL],
            "candidates": s.best_of,
            **self.origin.lineage,
        }

    def _noise_table(self) -> pa.Table:
        """mu and sigma of each prompt; of all of them, once a partition, where they are the same."""
        schema = noise_schema(self.drawer.generator.latent_shape)
        rows = sorted(self._pooled) if self.origin.settings.keep_noise else []
        if self.drawer.predictor.kind in GLOBAL:
            rows = rows[:1] if self.first else []
        distribution = self.drawer.distribution(torch.stack([self._pooled[row] for row in rows])) if rows else None
        if distribution is None:
            return schema.empty_table()  # no Gaussian: its noise is drawn again instead
        ids = [self.prompts[row]["prompt_id"] for row in rows]
        if self.drawer.predictor.kind in GLOBAL:
            ids = [EVERY_PROMPT]
        columns = [
            tensor_column(tensor.cpu().numpy().astype(np.float16), schema.field(name).type)
            for name, tensor in zip(("mu", "sigma"), distribution, strict=True)
        ]
        return pa.Table.from_arrays([pa.array(ids, pa.string()), *columns], schema=schema)
