"""FLUX.1-schnell: a transformer over latents packed into 2x2 patches, one step of rectified flow from sigma 1.

Pooled embedding: CLIP's pooled output, which the transformer itself reads too. Latents are (16, h, w) here, as noise is
drawn; `latents_for_pipeline` packs them, which moves numbers and changes none.
"""

import torch
from torch import Tensor

from pahi.errors import UserError
from pahi.generators.base import Conditioning
from pahi.generators.closed_form import flow_match
from pahi.generators.pipeline import OneStepPipeline, truncated

TOKENS = 256  # the most that schnell was trained with
NATIVE = 1024  # pixels; the transformer's configuration names no size


class Flux(OneStepPipeline):
    """A FluxPipeline as one differentiable step."""

    pipelines = ("FluxPipeline",)
    denoiser_name = "transformer"
    sized = False

    def _describe(self) -> None:
        self.require("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer")
        if self.denoiser.config.guidance_embeds:
            raise UserError("this FLUX takes guidance (FLUX.1-dev): it does not draw in one step")
        self.refuse_guidance()
        side = self.side(NATIVE // self.factor)
        if side % 2:
            raise UserError(f"size {side * self.factor} is not a multiple of {2 * self.factor}")
        self.latent_shape = (self.denoiser.config.in_channels // 4, side, side)
        self.step = flow_match(self.pipe.scheduler, (side // 2) ** 2)
        self.pooled_width = self.pipe.text_encoder.config.hidden_size
        # Each patch's place, as (0, row, column): what the rotary embedding reads.
        places = torch.cartesian_prod(torch.arange(side // 2), torch.arange(side // 2))
        self._places = torch.nn.functional.pad(places, (1, 0)).float()

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Conditioning:
        """prompt_embeds (batch, 256, width) of T5."""
        embeds, pooled, _ = self.pipe.encode_prompt(prompts, None, device=self.device, max_sequence_length=TOKENS)
        clip = self.pipe.tokenizer
        cut = [truncated(clip, prompts, clip.model_max_length), truncated(self.pipe.tokenizer_2, prompts, TOKENS)]
        return Conditioning(
            {"prompt_embeds": embeds.to(self.arithmetic)},
            pooled.to(self.arithmetic),
            [any(either) for either in zip(*cut, strict=True)],
        )

    def predict(self, x: Tensor, conditioning: Conditioning) -> Tensor:
        embeds = conditioning.embeds["prompt_embeds"].to(self.dtype)
        out = self.denoiser(
            hidden_states=self.latents_for_pipeline(x),
            timestep=self.timestep(len(x)).to(self.dtype),
            pooled_projections=conditioning.pooled.to(self.dtype),
            encoder_hidden_states=embeds,
            txt_ids=x.new_zeros(embeds.shape[1], 3),
            img_ids=self._places.to(x.device, x.dtype),
            return_dict=False,
        )[0]
        n, (c, h, w) = len(x), self.latent_shape
        return out.view(n, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(n, c, h, w)

    def unscale(self, latents: Tensor, vae: object) -> Tensor:
        config = vae.config  # type: ignore[attr-defined]
        return latents / config.scaling_factor + (config.get("shift_factor") or 0.0)

    def latents_for_pipeline(self, z: Tensor) -> Tensor:
        """(batch, c, h, w) -> (batch, h/2 * w/2, 4 c): patches of 2x2."""
        n, c, h, w = z.shape
        patches = z.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
        return patches.reshape(n, (h // 2) * (w // 2), 4 * c)
