"""The ensemble's equation, its cap, and what can never be in it."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from pahi.errors import UserError
from pahi.rewards.ensemble import Ensemble


@dataclass
class Channel:
    """The mean of one colour of a picture, scaled: a reward whose gradient is known."""

    name: str
    channel: int
    scale: float = 1.0
    differentiable: bool = True

    @property
    def hash(self) -> str:
        return f"channel {self.channel}"

    def prepare(self, prompts: list[str]) -> dict[str, Tensor]:
        return {}

    def score(self, images: Tensor, prepared: dict[str, Tensor], prompts: list[str]) -> Tensor:
        return self.scale * images[:, self.channel].flatten(1).mean(1)


def uplifts(ensemble: Ensemble, images: Tensor, baseline: dict[str, Tensor]) -> list[Tensor]:
    return ensemble.uplifts(images, {name: {} for name in baseline}, ["a"] * len(images), baseline)


def test_weights_have_no_units() -> None:
    """A reward in other units, with its baseline and deviation in them, is the same training signal."""
    images = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    baseline = torch.tensor([0.4, 0.5, 0.6])
    one = uplifts(Ensemble([(Channel("r", 0), 1.0, 0.2)]), images, {"r": baseline})[0]
    other = uplifts(Ensemble([(Channel("r", 0, 50.0), 1.0, 10.0)]), images, {"r": 50 * baseline})[0]
    assert torch.allclose(one, other, atol=1e-5)
    assert torch.allclose(one, (images[:, 0].flatten(1).mean(1) - baseline) / 0.2)


def test_above_the_cap_nothing_is_earned() -> None:
    images = torch.stack([torch.full((3, 4, 4), v) for v in (0.1, 0.5, 0.9)]).requires_grad_()
    ensemble = Ensemble([(Channel("r", 1), 2.0, 0.1)], cap=2.0)
    (got,) = uplifts(ensemble, images, {"r": torch.full((3,), 0.4)})
    assert torch.allclose(got, torch.tensor([-3.0, 1.0, 2.0])) and ensemble.weights == [2.0]
    (gradient,) = torch.autograd.grad(got.sum(), images)
    assert [bool(g.abs().sum() > 0) for g in gradient] == [True, True, False]


@pytest.mark.parametrize(
    ("held_out", "complaint"),
    [
        (Channel("r", 2), "held out"),  # the same name
        (Channel("judge", 0), "held out as 'judge'"),  # the same weights
    ],
)
def test_what_is_held_out_cannot_train(held_out: Channel, complaint: str) -> None:
    member = (Channel("r", 0), 1.0, 1.0)
    Ensemble([member], [Channel("judge", 1)])
    with pytest.raises(UserError, match=complaint) as error:
        Ensemble([member], [Channel("other", 1), held_out])
    assert "\n" not in str(error.value)


def test_what_has_no_gradient_or_no_unit_cannot_train() -> None:
    with pytest.raises(UserError, match="no gradient"):
        Ensemble([(Channel("r", 0, differentiable=False), 1.0, 1.0)])
    for unit in (0.0, float("nan")):
        with pytest.raises(UserError, match="teach nothing"):
            Ensemble([(Channel("r", 0), 1.0, unit)])
