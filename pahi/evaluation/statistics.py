"""Means, paired uplifts and win rates, with bootstrap intervals over scenes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

Interval = dict[str, float]
BLOCK = 1_000_000  # resampled numbers held at once


def bootstrap(
    per_prompt: np.ndarray,
    resamples: int,
    groups: Sequence[Any] | None = None,
    over: np.ndarray | None = None,
    seed: int = 0,
) -> Interval:
    """Mean over prompts (n,) with its 95% percentile interval; with `over` (n,), the quotient of both means.

    What is resampled are groups of prompts (a scene's wordings are no independent evidence), each prompt its own where
    none are given; pictures never are. Prompts with a NaN are left out.
    """
    below = np.ones(len(per_prompt)) if over is None else over
    usable = np.isfinite(per_prompt) & np.isfinite(below)
    names = np.arange(len(per_prompt)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    _, where = np.unique(names[usable], return_inverse=True)
    if not len(where):
        return {"value": float("nan"), "low": float("nan"), "high": float("nan")}
    top = np.bincount(where, per_prompt[usable])  # sums, so that a large group counts as its prompts do
    bottom = np.bincount(where, below[usable])
    rng = np.random.default_rng(seed)
    means: list[np.ndarray] = []
    rows = max(1, BLOCK // len(top))
    for start in range(0, resamples, rows):
        picked = rng.integers(len(top), size=(min(rows, resamples - start), len(top)))
        means.append(top[picked].sum(1) / bottom[picked].sum(1))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return {"value": float(top.sum() / bottom.sum()), "low": float(low), "high": float(high)}


def paired_uplift(arm: np.ndarray, standard: np.ndarray, unit: float) -> np.ndarray:
    """Scores (prompts, seeds) of both -> mean uplift of each prompt in units, (prompts,)."""
    return np.nanmean((arm - standard) / unit, axis=1) if arm.size else np.array([])


def win_rate(arm: np.ndarray, standard: np.ndarray) -> np.ndarray:
    """Share of pairs that the arm wins, a tie counting half, for each prompt: (prompts,)."""
    wins = (arm > standard) + 0.5 * (arm == standard)
    wins = np.where(np.isfinite(arm) & np.isfinite(standard), wins, np.nan)
    return np.nanmean(wins, axis=1)


def pooled_within_prompt_std(scores: np.ndarray) -> float:
    """Scores (prompts, seeds) -> sqrt of the mean of the prompts' unbiased variances: a reward's unit."""
    finite = scores[np.isfinite(scores).all(axis=1)]
    return float(np.sqrt(finite.var(axis=1, ddof=1).mean())) if len(finite) else float("nan")


def pixel_diversity(images: np.ndarray) -> float:
    """(seeds, ...) pictures of one prompt -> mean root-mean-square distance between pairs of them."""
    flat = images.reshape(len(images), -1).astype(np.float64)
    return _mean_distance(flat) / np.sqrt(flat.shape[1])


def feature_diversity(features: np.ndarray) -> float:
    """(seeds, width) features of one prompt's pictures -> mean Euclidean distance between pairs of them."""
    return _mean_distance(features.astype(np.float64))


def neighbour_correlation(x: np.ndarray) -> np.ndarray:
    """Noise (batch, channels, h, w) -> correlation of numbers beside each other, (batch,): 0 in white noise.

    Noise can have the right length and still hide a picture; a mean other than 0 counts as structure too.
    """
    across, down = x[..., 1:] * x[..., :-1], x[..., 1:, :] * x[..., :-1, :]
    count = across[0].size + down[0].size
    total = across.sum((1, 2, 3), dtype=np.float64) + down.sum((1, 2, 3), dtype=np.float64)
    return total / max(count, 1) / np.square(x, dtype=np.float64).mean((1, 2, 3))


def _mean_distance(rows: np.ndarray) -> float:
    distances = [np.linalg.norm(a - b) for i, a in enumerate(rows) for b in rows[i + 1 :]]
    return float(np.mean(distances)) if distances else 0.0
