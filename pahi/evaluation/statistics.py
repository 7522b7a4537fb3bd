"""Means, paired uplifts and win rates, with bootstrap intervals over prompts."""

import numpy as np

Interval = dict[str, float]


def bootstrap(per_prompt: np.ndarray, resamples: int, seed: int = 0) -> Interval:
    """Mean over prompts (n,) with its 95% percentile interval.

    Prompts are resampled, never pictures; NaNs are left out.
    """
    values = per_prompt[np.isfinite(per_prompt)]
    if len(values) == 0:
        return {"value": float("nan"), "low": float("nan"), "high": float("nan")}
    rng = np.random.default_rng(seed)
    means = np.array([values[rng.integers(len(values), size=len(values))].mean() for _ in range(resamples)])
    low, high = np.quantile(means, [0.025, 0.975])
    return {"value": float(values.mean()), "low": float(low), "high": float(high)}


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
    distances = [np.sqrt(((a - b) ** 2).mean()) for i, a in enumerate(flat) for b in flat[i + 1 :]]
    return float(np.mean(distances)) if distances else 0.0
