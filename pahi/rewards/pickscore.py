"""PickScore: exp(logit_scale) * cos(CLIP text, CLIP image). Kirstain et al. 2023, yuvalkirstain/PickScore_v1."""

import torch
from torch import Tensor

from pahi.rewards.base import Kind, Prepared, Source
from pahi.rewards.preprocess import Pixels
from pahi.rewards.towers import Towers
from pahi.settings import RewardModel


class PickScore:
    """A CLIP model fine-tuned on preferences, from a folder of transformers' layout."""

    differentiable = True

    def __init__(self, model: RewardModel, source: Source, device: torch.device) -> None:
        """Raises UserError when the folder holds no CLIP model."""
        self.name, self.hash = model.name, source.hash
        self.towers = Towers.load(model, source, device)
        self.pixels = Pixels(self.towers.size)

    def prepare(self, prompts: list[str]) -> Prepared:
        return self.towers.text(prompts)

    def score(self, images: Tensor, prepared: Prepared, prompts: list[str]) -> Tensor:
        return self.towers.logit_scale.exp() * self.towers.cosine(self.pixels(images), prepared)


KIND = Kind(
    load=PickScore,
    checkpoint="yuvalkirstain/PickScore_v1",
    license="MIT",
    base="laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
)
