"""How far two sets of pictures are apart as a whole: CMMD, Jayasumana et al. 2024, "Rethinking FID".

    MMD^2(P, Q) = E k(x, x') + E k(y, y') - 2 E k(x, y),      k(a, b) = exp( -||a - b||^2 / (2 s^2) )

on features of unit length, s = 10, times 1000 as published. FID needs tens of thousands of pictures and takes features
for Gaussian; this needs neither. The published code keeps each picture's likeness to itself, which makes two samples of
one distribution differ. Here only pairs of different prompts count, so that the estimate has no bias, whatever ties
the pictures of one prompt to each other, within an arm or (drawn from the same eps) between two.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pahi.evaluation.statistics import Interval

BANDWIDTH, SCALE = 10.0, 1000.0
BLOCK = 256  # rows of the kernel's matrix at once


def mmd(
    x: np.ndarray, y: np.ndarray, x_groups: Sequence[Any], y_groups: Sequence[Any], bandwidth: float = BANDWIDTH
) -> Interval:
    """MMD^2 between features x (n, width) and y (m, width), unbiased, with a 95% interval by the jackknife over groups.

    A group is a prompt, by any name; pairs of one group do not count. NaN where a side has fewer than two groups.
    """
    names, where = np.unique([*map(str, x_groups), *map(str, y_groups)], return_inverse=True)
    a, b = where[: len(x)], where[len(x) :]
    number = len(names)
    if len(np.unique(a)) < 2 or len(np.unique(b)) < 2:
        return {"value": float("nan"), "low": float("nan"), "high": float("nan")}
    n, m = np.bincount(a, minlength=number).astype(float), np.bincount(b, minlength=number).astype(float)
    xx, xx_own, _ = _sums(x, x, a, a, number, bandwidth)
    yy, yy_own, _ = _sums(y, y, b, b, number, bandwidth)
    xy, xy_own, yx = _sums(x, y, a, b, number, bandwidth)

    def estimate(gone: np.ndarray | None = None) -> Any:
        """Of everything, or of everything but each group in turn."""
        sides = []
        for left, own, right, p, q in ((xx, xx_own, xx, n, n), (yy, yy_own, yy, m, m), (xy, xy_own, yx, n, m)):
            total, pairs = left.sum() - own.sum(), p.sum() * q.sum() - (p * q).sum()
            if gone is not None:
                # What goes with a group: its pairs with all others on either side, its own being out already.
                total = total - (left - own) - (right - own)
                pairs = pairs - p * (q.sum() - q) - q * (p.sum() - p)
            sides.append(total / np.where(pairs > 0, pairs, np.nan))
        return sides[0] + sides[1] - 2 * sides[2]

    value = float(estimate())
    without = estimate(np.arange(number))
    without = without[np.isfinite(without)]
    spread = np.sqrt((len(without) - 1) * without.var()) if len(without) > 1 else float("nan")
    return {"value": value, "low": float(value - 1.96 * spread), "high": float(value + 1.96 * spread)}


def cmmd(x: np.ndarray, y: np.ndarray, x_groups: Sequence[Any], y_groups: Sequence[Any]) -> Interval:
    """`mmd` in CMMD's scale."""
    return {name: SCALE * value for name, value in mmd(x, y, x_groups, y_groups).items()}


def _sums(
    x: np.ndarray, y: np.ndarray, a: np.ndarray, b: np.ndarray, number: int, bandwidth: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Kernel sums by group, (groups,) each: of x's group with all y, with y's of the same group, of y's with all x."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    left, own, right = np.zeros(number), np.zeros(number), np.zeros(number)
    squares = (y**2).sum(1)
    for start in range(0, len(x), BLOCK):
        rows, groups = x[start : start + BLOCK], a[start : start + BLOCK]
        distance = (rows**2).sum(1)[:, None] + squares - 2 * rows @ y.T
        k = np.exp(-np.maximum(distance, 0) / (2 * bandwidth**2))
        left += np.bincount(groups, k.sum(1), number)
        own += np.bincount(groups, (k * (groups[:, None] == b)).sum(1), number)
        right += np.bincount(b, k.sum(0), number)
    return left, own, right
