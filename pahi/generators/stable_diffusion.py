"""Stable Diffusion UNets that draw in one step: SD-Turbo, and what has its layout.

The last timestep of the scheduler's trailing spacing, no guidance, and the scheduler's own formula in float32:

    x_T = sigma z,   c_in = 1 / sqrt(sigma^2 + 1),   sigma = sigma(t), t = 999
    epsilon:       x_0 = x_T - sigma F
    v_prediction:  x_0 = x_T / (sigma^2 + 1) - F sigma / sqrt(sigma^2 + 1)
    sample:        x_0 = F

where F = UNet(c_in x_T, t, c). Source: diffusers' EulerDiscreteScheduler.
"""

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from pahi import models
from pahi.errors import UserError
from pahi.generators.base import Conditioning


class StableDiffusion:
    """A StableDiffusionPipeline as one differentiable step."""

    def __init__(self, pipe: StableDiffusionPipeline, model_id: str, weights_hash: str) -> None:
        """Freezes the pipeline's networks. Raises UserError when its scheduler is not one-step trailing Euler."""
        scheduler = pipe.scheduler
        if type(scheduler).__name__ not in ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"):
            raise UserError(f"{model_id}: one step of {type(scheduler).__name__} is not supported; trailing Euler is")
        if scheduler.config.timestep_spacing != "trailing":
            raise UserError(
                f"{model_id}: timestep_spacing is {scheduler.config.timestep_spacing!r}, expected 'trailing'"
            )
        # One step that stops short of sigma = 0 is not the formula above.
        if getattr(scheduler.config, "final_sigmas_type", "zero") != "zero":
            raise UserError(f"{model_id}: final_sigmas_type is {scheduler.config.final_sigmas_type!r}, expected 'zero'")
        if scheduler.config.prediction_type not in ("epsilon", "v_prediction", "sample"):
            raise UserError(f"{model_id}: prediction_type {scheduler.config.prediction_type!r} is not supported")
        self.id, self.hash = model_id, weights_hash
        self.tokenizer, self.text_encoder, self.unet, self.vae = pipe.tokenizer, pipe.text_encoder, pipe.unet, pipe.vae
        for network in (self.text_encoder, self.unet, self.vae):
            network.requires_grad_(False).eval()
        own = type(scheduler).from_config(scheduler.config)
        own.set_timesteps(1)
        self.timestep = float(own.timesteps[0])
        self.sigma = float(own.sigmas[0])
        self.prediction = scheduler.config.prediction_type
        size = self.unet.config.sample_size
        self.latent_shape = (self.unet.config.in_channels, size, size)
        self.pooled_width = self.text_encoder.config.hidden_size

    @classmethod
    def load(cls, model_id: str, folder: Path, dtype: torch.dtype, device: torch.device) -> "StableDiffusion":
        """From a folder in the published layout."""
        try:
            pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=dtype, safety_checker=None)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{model_id}: cannot be loaded: {str(error).splitlines()[0]}") from None
        pipe.to(device)
        return cls(pipe, model_id, models.model_hash(folder))

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Conditioning:
        """prompt_embeds (batch, tokens, width), and CLIP's pooled output: the last hidden state at the end token."""
        length = self.tokenizer.model_max_length
        batch = self.tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        whole = self.tokenizer(prompts, truncation=False)["input_ids"]
        # As the pipeline does: a mask only where the encoder's configuration asks for one.
        uses_mask = getattr(self.text_encoder.config, "use_attention_mask", False)
        mask = batch.attention_mask.to(self.device) if uses_mask else None
        out = self.text_encoder(batch.input_ids.to(self.device), attention_mask=mask)
        return Conditioning(
            {"prompt_embeds": out.last_hidden_state.float()},
            out.pooler_output.float(),
            [len(ids) > length for ids in whole],
        )

    def denoise(self, z: Tensor, conditioning: Conditioning) -> Tensor:
        sigma = self.sigma
        x = z.float() * sigma  # (batch, c, h, w)
        scaled = x / (sigma**2 + 1) ** 0.5
        out = self.unet(
            scaled.to(self.dtype),
            self.timestep,
            encoder_hidden_states=conditioning.embeds["prompt_embeds"].to(self.dtype),
        ).sample.float()
        if self.prediction == "epsilon":
            return x - sigma * out
        if self.prediction == "v_prediction":
            return x / (sigma**2 + 1) - out * sigma / (sigma**2 + 1) ** 0.5
        return out

    def decode(self, latents: Tensor) -> Tensor:
        out = self.vae.decode((latents / self.vae.config.scaling_factor).to(self.dtype)).sample
        return out.float() / 2 + 0.5
