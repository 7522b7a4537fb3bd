"""What a user writes with public code alone: diffusers' pipeline a prompt at a time, scored as the models' cards say.

The ImageReward package needs transformers 4, so that its loop (a picture at a time, through PIL) runs on our expression
of the same network.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from pahi import models
from pahi.rewards.image_reward import ImageRewardModel
from pahi.rewards.reference import pil_pixels
from pahi.settings import RewardModel
from pahi.stages.common import Context

Score = Callable[[Image.Image, str], float]


class UserLoop:
    """The settings' Stable Diffusion and rewards. Calling it draws, scores and saves; returns the scores."""

    def __init__(self, ctx: Context) -> None:
        generator = ctx.settings.generator
        self.pipe = StableDiffusionPipeline.from_pretrained(
            models.resolve(generator.id), dtype=getattr(torch, generator.dtype), safety_checker=None
        ).to(ctx.device)
        self.pipe.set_progress_bar_config(disable=True)
        rewards = (*ctx.settings.rewards.train, *ctx.settings.rewards.held_out)
        self.scores = {model.name: published(model, ctx.device) for model in rewards}

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], folder: Path) -> list[dict[str, float]]:
        rows = []
        for i, prompt in enumerate(prompts):
            picture = self.pipe(prompt, num_inference_steps=1, guidance_scale=0.0).images[0]
            rows.append({name: score(picture, prompt) for name, score in self.scores.items()})
            picture.save(folder / f"{i}.png")
        return rows


def published(model: RewardModel, device: torch.device) -> Score:
    """One reward as its own code scores a picture."""
    folder = models.resolve(model.id)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if model.kind == "image_reward":
        network = ImageRewardModel.from_pretrained(folder).to(device)

        def image_reward(picture: Image.Image, prompt: str) -> float:
            text = tokenizer(
                prompt, padding="max_length", truncation=True, max_length=network.tokens, return_tensors="pt"
            ).to(device)
            pixels = pil_pixels(picture, network.image_size).to(device)
            return network(pixels, text["input_ids"], text["attention_mask"]).item()

        return image_reward
    processor = AutoImageProcessor.from_pretrained(folder)
    towers = AutoModel.from_pretrained(folder, dtype=getattr(torch, model.dtype)).to(device).eval()

    def cosine(picture: Image.Image, prompt: str) -> float:
        pixels = processor(images=picture, return_tensors="pt").to(device)
        text = tokenizer(prompt, padding=True, truncation=True, return_tensors="pt").to(device)
        image = torch.nn.functional.normalize(towers.get_image_features(**pixels).pooler_output, dim=-1)
        words = torch.nn.functional.normalize(towers.get_text_features(**text).pooler_output, dim=-1)
        scale = towers.logit_scale.exp() if model.kind == "pickscore" else 100
        return (scale * (image * words).sum()).item()

    return cosine
