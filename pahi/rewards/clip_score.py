"""CLIPScore: 100 * cos(CLIP text, CLIP image), on any dual encoder. Hessel et al. 2021; openai/clip-vit-large-patch14.

The paper's own scale is 2.5 * max(cos, 0); 100 * cos is what torchmetrics reports (cut at 0) and what ReNO trains on.
The cut is left out here: below it the reward would have no gradient. Neither scale nor cut changes an order of scores,
and a weight has no units.
"""

import torch
from torch import Tensor

from pahi.rewards.base import Kind, Prepared, Source
from pahi.rewards.towers import Towers, published_pixels
from pahi.settings import RewardModel


class ClipScore:
    """CLIP, SigLIP or two towers of one's own (VisionTextDualEncoderModel), from a folder of transformers' layout."""

    differentiable = True

    def __init__(self, model: RewardModel, source: Source, device: torch.device) -> None:
        """Raises UserError when the folder holds no dual encoder."""
        self.name, self.hash = model.name, source.hash
        self.towers = Towers.load(model, source, device)
        self.pixels = published_pixels(model.name, source, self.towers.size)

    def prepare(self, prompts: list[str]) -> Prepared:
        return self.towers.text(prompts)

    def score(self, images: Tensor, prepared: Prepared, prompts: list[str]) -> Tensor:
        return 100 * self.towers.cosine(self.pixels(images), prepared)


KIND = Kind(load=ClipScore, checkpoint="openai/clip-vit-large-patch14", license="MIT")
