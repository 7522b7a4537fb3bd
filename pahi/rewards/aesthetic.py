"""The improved aesthetic predictor: an MLP on CLIP ViT-L/14's picture embedding, 1 to 10. Schuhmann 2022.

The head is sac+logos+ava1-l14-linearMSE.pth of christophschuhmann/improved-aesthetic-predictor; it reads no prompt.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from pahi.errors import UserError, first_line
from pahi.rewards.base import Kind, Prepared, Source
from pahi.rewards.image_reward import PUBLISHED_HEAD, Head
from pahi.rewards.preprocess import Pixels
from pahi.rewards.towers import DTYPES
from pahi.settings import RewardModel

HEAD = "sac+logos+ava1-l14-linearMSE.pth"


class Aesthetic:
    """A folder that holds the head; the CLIP below it lies beside it, or is the `base`."""

    differentiable = True

    def __init__(self, model: RewardModel, source: Source, device: torch.device) -> None:
        """Raises UserError when the folders hold no such head, or no CLIP that fits it."""
        try:
            # weights_only: a pickle that would run code is refused instead of run.
            weights = torch.load(source.folder / HEAD, map_location="cpu", weights_only=True)
            self.head = Head(weights["layers.0.weight"].shape[1], PUBLISHED_HEAD)
            self.head.load_state_dict(weights)
            clip, report = CLIPVisionModelWithProjection.from_pretrained(
                source.base, dtype=DTYPES[model.dtype], output_loading_info=True
            )
        except Exception as error:  # a torn or hostile file shows itself in as many ways as there are readers
            raise UserError(f"reward {model.name}: cannot load {source.folder}: {first_line(error)}") from None
        if report["missing_keys"]:
            raise UserError(
                f"reward {model.name}: {source.base} is no whole CLIP model: it lacks {min(report['missing_keys'])}"
            )
        if clip.config.projection_dim != weights["layers.0.weight"].shape[1]:
            raise UserError(
                f"reward {model.name}: {source.base} has embeddings of {clip.config.projection_dim}, not 768"
            )
        self.clip = clip.to(device).requires_grad_(False).eval()
        self.head.to(device).requires_grad_(False).eval()
        self.name, self.hash = model.name, source.hash
        self.pixels = Pixels(int(clip.config.image_size), "crop_rounded")

    def prepare(self, prompts: list[str]) -> Prepared:
        return {}

    def score(self, images: Tensor, prepared: Prepared, prompts: list[str]) -> Tensor:
        embeds = self.clip(self.pixels(images).to(self.clip.dtype)).image_embeds
        return self.head(F.normalize(embeds.float(), dim=-1)).squeeze(-1)


KIND = Kind(
    load=Aesthetic,
    checkpoint="",
    license="Apache-2.0",
    files=(HEAD,),
    base="openai/clip-vit-large-patch14",
    base_files=("config.json", "*.safetensors"),
)
