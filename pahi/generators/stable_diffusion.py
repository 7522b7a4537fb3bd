"""Stable Diffusion UNets that draw in one step: SD-Turbo (trailing Euler), Hyper-SD (TCD), and what has their layout.

Pooled embedding: CLIP's pooled output, the last hidden state at the end token.
"""

import torch
from torch import Tensor

from pahi.errors import UserError
from pahi.generators.base import Conditioning
from pahi.generators.closed_form import from_scheduler
from pahi.generators.pipeline import OneStepPipeline, truncated


class StableDiffusion(OneStepPipeline):
    """A StableDiffusionPipeline as one differentiable step."""

    pipelines = ("StableDiffusionPipeline",)

    def _describe(self) -> None:
        self.require("text_encoder", "tokenizer", "unet")
        self.step = from_scheduler(self.pipe.scheduler, self.settings.timestep)
        self.latent_shape = unet_latents(self)
        self.pooled_width = self.pipe.text_encoder.config.hidden_size
        self._timestep_cond = guidance_embedding(self)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Conditioning:
        """prompt_embeds (batch, tokens, width)."""
        tokenizer, text_encoder = self.pipe.tokenizer, self.pipe.text_encoder
        length = tokenizer.model_max_length
        batch = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        # As the pipeline does: a mask only where the encoder's configuration asks for one.
        uses_mask = getattr(text_encoder.config, "use_attention_mask", False)
        mask = batch.attention_mask.to(self.device) if uses_mask else None
        out = text_encoder(batch.input_ids.to(self.device), attention_mask=mask)
        return Conditioning(
            {"prompt_embeds": out.last_hidden_state.to(self.arithmetic)},
            out.pooler_output.to(self.arithmetic),
            truncated(tokenizer, prompts, length, batch),
        )

    def predict(self, x: Tensor, conditioning: Conditioning) -> Tensor:
        return self.denoiser(
            x,
            self.timestep(),
            encoder_hidden_states=conditioning.embeds["prompt_embeds"].to(self.dtype),
            timestep_cond=rows(self._timestep_cond, x),
            return_dict=False,
        )[0]


def unet_latents(generator: OneStepPipeline) -> tuple[int, int, int]:
    """Latent shape of a UNet's pictures. Raises UserError for one that takes more than noise (inpainting, depth)."""
    config = generator.denoiser.config
    if config.in_channels != config.out_channels:
        raise UserError(
            f"the UNet reads {config.in_channels} channels and draws {config.out_channels}: not text to image"
        )
    native = config.sample_size
    if not isinstance(native, int):
        raise UserError(f"the UNet's sample_size is {native}; only square pictures are supported")
    side = generator.side(native)
    return (config.in_channels, side, side)


def guidance_embedding(generator: OneStepPipeline) -> Tensor | None:
    """timestep_cond (1, time_cond_proj_dim), float32, of a UNet distilled with its guidance; None for others."""
    width = generator.denoiser.config.time_cond_proj_dim
    if width is None:
        generator.refuse_guidance()
        return None
    return generator.pipe.get_guidance_scale_embedding(torch.tensor([generator.guidance() - 1]), embedding_dim=width)


def rows(row: Tensor | None, x: Tensor) -> Tensor | None:
    """One row for each of x, on its device and in its dtype."""
    return None if row is None else row.to(x.device, x.dtype).expand(len(x), -1)
