"""SDXL UNets that draw in one step: SDXL-Turbo and SDXL-Lightning (trailing Euler), Hyper-SDXL and DMD2 (LCM).

Pooled embedding: the projected output of the second text encoder, which the UNet itself reads too.
"""

import torch
from torch import Tensor

from pahi.errors import UserError
from pahi.generators.base import Conditioning
from pahi.generators.closed_form import from_scheduler
from pahi.generators.pipeline import OneStepPipeline, truncated
from pahi.generators.stable_diffusion import guidance_embedding, rows, unet_latents


class StableDiffusionXL(OneStepPipeline):
    """A StableDiffusionXLPipeline as one differentiable step."""

    pipelines = ("StableDiffusionXLPipeline",)

    def _describe(self) -> None:
        self.require("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet")
        self.step = from_scheduler(self.pipe.scheduler, self.settings.timestep)
        self.latent_shape = unet_latents(self)
        self.pooled_width = self.pipe.text_encoder_2.config.projection_dim
        self._timestep_cond = guidance_embedding(self)
        side = self.latent_shape[1] * self.factor
        # Original size, crop and target size: a picture of this size, whole. The pipeline's own defaults.
        self._time_ids = torch.tensor([[side, side, 0, 0, side, side]], dtype=torch.float32)
        expected = self.denoiser.add_embedding.linear_1.in_features
        given = self.denoiser.config.addition_time_embed_dim * 6 + self.pooled_width
        if expected != given:
            raise UserError(f"the UNet's added embedding is {expected} wide, its parts make {given}")

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Conditioning:
        """prompt_embeds (batch, tokens, both encoders' widths)."""
        embeds, _, pooled, _ = self.pipe.encode_prompt(
            prompts, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        cut = [
            truncated(tokenizer, prompts, tokenizer.model_max_length)
            for tokenizer in (self.pipe.tokenizer, self.pipe.tokenizer_2)
        ]
        return Conditioning(
            {"prompt_embeds": embeds.to(self.arithmetic)},
            pooled.to(self.arithmetic),
            [any(either) for either in zip(*cut, strict=True)],
        )

    def predict(self, x: Tensor, conditioning: Conditioning) -> Tensor:
        added = {"text_embeds": conditioning.pooled.to(self.dtype), "time_ids": rows(self._time_ids, x)}
        return self.denoiser(
            x,
            self.timestep(),
            encoder_hidden_states=conditioning.embeds["prompt_embeds"].to(self.dtype),
            timestep_cond=rows(self._timestep_cond, x),
            added_cond_kwargs=added,
            return_dict=False,
        )[0]

    def unscale(self, latents: Tensor, vae: object) -> Tensor:
        config = vae.config  # type: ignore[attr-defined]
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is None or std is None:
            return latents / config.scaling_factor
        shape = (1, -1, 1, 1)
        mean, std = (latents.new_tensor(values).view(shape) for values in (mean, std))
        return latents * std / config.scaling_factor + mean
