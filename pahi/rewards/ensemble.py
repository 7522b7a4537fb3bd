"""Several rewards as one training signal, whose weights have no units.

    R(images, c) = sum_k w_k min( u_k, cap ),      u_k = ( r_k(images, c) - b_k(c) ) / s_k

b_k(c) and s_k are the cached baseline's: the mean reward of standard-Gaussian pictures of prompt c, and the pooled
within-prompt standard deviation. The cap is ReFL's guard against a reward that is driven beyond what it can judge
(Xu et al. 2023).
"""

from collections.abc import Iterable

from torch import Tensor

from pahi.errors import UserError
from pahi.rewards.base import Prepared, Reward


def uplift(score: Tensor, baseline: Tensor, unit: float, cap: float | None = None) -> Tensor:
    """A reward in within-prompt standard deviations above the prompt's own baseline, (batch,); capped as in ReFL."""
    u = (score - baseline) / unit
    return u if cap is None else u.clamp(max=cap)


class Ensemble:
    """The rewards that train, each with its weight and its unit.

    The held-out ones are named only to be kept out: neither one of them, nor another name for its weights, can train.
    """

    def __init__(
        self,
        members: list[tuple[Reward, float, float]],
        held_out: Iterable[Reward] = (),
        cap: float | None = None,
        gradients: bool = True,
    ) -> None:
        """`members` are (reward, weight, unit). Raises UserError where one is held out, has no unit, or has no gradient
        though `gradients` are wanted.
        """
        kept_out = list(held_out)
        for reward, _, unit in members:
            for other in kept_out:
                if other is reward or other.name == reward.name or other.hash == reward.hash:
                    raise UserError(f"reward {reward.name!r} is held out as {other.name!r}, so it cannot train")
            if gradients and not reward.differentiable:
                raise UserError(
                    f"reward {reward.name!r} has no gradient, so it cannot train; list it under rewards.held_out, "
                    "or set train.estimator=value"
                )
            if not unit > 0:
                raise UserError(f"reward {reward.name!r} is the same for every picture, so it can teach nothing")
        self.members, self.cap = members, cap

    @property
    def weights(self) -> list[float]:
        return [weight for _, weight, _ in self.members]

    def uplifts(
        self, images: Tensor, prepared: dict[str, Prepared], texts: list[str], baseline: dict[str, Tensor]
    ) -> list[Tensor]:
        """Pictures (batch, 3, h, w) -> u_k, capped, (batch,) a reward; text sides and baselines are by reward."""
        return [
            uplift(reward.score(images, prepared[reward.name], texts), baseline[reward.name], unit, self.cap)
            for reward, _, unit in self.members
        ]
