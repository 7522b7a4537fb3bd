"""PickScore: exp(logit_scale) * cos(CLIP text, CLIP image). Kirstain et al. 2023, yuvalkirstain/PickScore_v1."""

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel

from pahi.errors import UserError
from pahi.rewards.base import Kind, Prepared, Source
from pahi.rewards.preprocess import clip_pixels


class PickScore:
    """A CLIP model fine-tuned on preferences, from a folder of transformers' layout."""

    differentiable = True

    def __init__(self, name: str, source: Source, device: torch.device) -> None:
        """Raises UserError when the folder holds no CLIP model."""
        folder = source.folder
        try:
            model, report = CLIPModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
            self.tokenizer = AutoTokenizer.from_pretrained(source.processor)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise UserError(f"reward {name}: cannot load {folder}: {str(error).splitlines()[0]}") from None
        # transformers fills what a checkpoint lacks with random numbers, and only warns.
        if report["missing_keys"]:
            raise UserError(f"reward {name}: {folder} is no whole CLIP model: it lacks {min(report['missing_keys'])}")
        self.model = model.to(device)
        self.model.requires_grad_(False).eval()
        self.name, self.hash = name, source.hash
        self.size = self.model.config.vision_config.image_size
        self.tokens = self.model.config.text_config.max_position_embeddings

    @torch.no_grad()
    def prepare(self, prompts: list[str]) -> Prepared:
        """text_features (batch, width), of unit length."""
        batch = self.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=self.tokens, return_tensors="pt"
        ).to(self.model.device)
        features = self.model.get_text_features(batch.input_ids, attention_mask=batch.attention_mask).pooler_output
        return {"text_features": F.normalize(features, dim=-1)}

    def score(self, images: Tensor, prepared: Prepared, prompts: list[str]) -> Tensor:
        features = self.model.get_image_features(clip_pixels(images, self.size)).pooler_output
        text = prepared["text_features"].to(features.device)
        return self.model.logit_scale.exp() * (F.normalize(features, dim=-1) * text).sum(-1)


KIND = Kind(
    load=lambda model, source, device: PickScore(model.name, source, device),
    checkpoint="yuvalkirstain/PickScore_v1",
    license="MIT",
    processor="laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
)
