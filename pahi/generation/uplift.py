"""What the learned noise gains over the control group, while pictures are drawn."""

import math
from collections.abc import Iterable


class Uplift:
    """Mean gain over the standard Gaussian of the same noise, by reward, in its within-prompt standard deviations.

    Every reward has its place from the beginning, so that one thread may read while another adds.
    """

    def __init__(self, rewards: Iterable[str] = ()) -> None:
        self.sums = dict.fromkeys(rewards, 0.0)
        self.pairs = dict.fromkeys(self.sums, 0)

    def add(self, reward: str, score: float | None, control: float | None, unit: float | None) -> None:
        """One picture and its control picture. What failed, or has no unit, is in no mean."""
        if score is not None and control is not None and unit and math.isfinite(unit):
            self.pairs[reward] += 1
            self.sums[reward] += (score - control) / unit

    def merge(self, other: "Uplift") -> None:
        """What another shard or process found."""
        for reward, count in other.pairs.items():
            self.pairs[reward] = self.pairs.get(reward, 0) + count
            self.sums[reward] = self.sums.get(reward, 0.0) + other.sums[reward]

    @property
    def note(self) -> str:
        """`uplift pickscore +0.41, hpsv2 +0.18 (96 pairs)`; empty where nothing was drawn twice."""
        known = {reward: self.sums[reward] / count for reward, count in self.pairs.items() if count}
        if not known:
            return ""
        figures = ", ".join(f"{reward} {mean:+.2f}" for reward, mean in known.items())
        return f"uplift {figures} ({max(self.pairs.values()):,} pairs)"
