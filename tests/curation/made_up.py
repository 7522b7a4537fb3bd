"""Pictures and scores that nobody drew: small, seeded, in the layout of the generate stage."""

import hashlib
import io
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from pahi.artifacts.schemas import IMAGE_SCORES, IMAGES

REWARDS = {"pick": 0.5, "held": 2.0}  # with their units
KINDS = ("counting", "colours", "position")


def prompt_id(i: int) -> str:
    return hashlib.sha256(f"prompt {i}".encode()).hexdigest()[:20]


def prompts(count: int) -> pa.Table:
    return pa.table(
        {
            "prompt_id": [prompt_id(i) for i in range(count)],
            "text": [f"prompt {i}" for i in range(count)],
            "source": [("parti", "hpd")[i % 2] for i in range(count)],
            "kind": [KINDS[i % 3] for i in range(count)],
            "group": [f"group {i // 2}" for i in range(count)],
            "cluster": [f"cluster {i // 4}" for i in range(count)],
            "split": [("train", "train", "train", "validation", "test")[i % 5] for i in range(count)],
        }
    )


def picture(seed: int, size: int = 48) -> np.ndarray:
    """(size, size, 3) uint8: soft blobs of colour, no two seeds alike."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    return np.asarray(small.resize((size, size), Image.Resampling.BICUBIC))


def png(pixels: np.ndarray, kind: str = "png", **options: Any) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, format=kind, **options)
    return sink.getvalue()


def row(prompt: int, seed: int, arm: str = "pahi", pixels: np.ndarray | None = None, **changes: Any) -> dict[str, Any]:
    pixels = picture(1000 * prompt + seed + (500 if arm == "standard" else 0)) if pixels is None else pixels
    return {
        "image_id": f"{prompt_id(prompt)}-{arm}-{seed}",
        "prompt_id": prompt_id(prompt),
        "prompt": f"prompt {prompt}",
        "seed": seed,
        "arm": arm,
        "image": {"bytes": png(pixels), "path": None},
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "format": "png",
        "pixels_sha256": hashlib.sha256(pixels.tobytes()).hexdigest(),
        "status": "ok",
        "reason": None,
        "truncated": False,
        "generator": "made/up",
        "generator_hash": "g" * 64,
        "predictor_hash": "p" * 64,
        "dtype": "float32",
        "noise_norm": 1.0,
        "kl": 0.1,
    } | changes


def rows(count: int, seeds: int = 4, control: int = 3) -> list[dict[str, Any]]:
    """`count` prompts with `seeds` pictures each; every `control`-th prompt has a control picture of each seed."""
    found = []
    for i in range(count):
        for seed in range(seeds):
            found.append(row(i, seed))
            if i % control == 0:
                found.append(row(i, seed, "standard"))
    return found


def score_rows(images: list[dict[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """Two correlated rewards; the control pictures' are lower."""
    rng = np.random.default_rng(seed)
    found = []
    for image in images:
        common = rng.normal() - (image["arm"] == "standard")
        for name, unit in REWARDS.items():
            score = None if image["status"] != "ok" else float(np.float32(20 + unit * (common + 0.5 * rng.normal())))
            found.append(
                {
                    "image_id": image["image_id"],
                    "prompt_id": image["prompt_id"],
                    "seed": image["seed"],
                    "arm": image["arm"],
                    "reward": name,
                    "score": score,
                    "uplift_scale": unit,
                }
            )
    return found


def image_table(images: list[dict[str, Any]]) -> pa.Table:
    """Columns that are not of this test are null."""
    schema = pa.schema([IMAGES.field(n).with_nullable(True) for n in IMAGES.names])
    return pa.Table.from_pylist(images, schema=schema)


def score_table(scores: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(scores, schema=IMAGE_SCORES)
