"""PixArt-alpha-DMD: a transformer distilled to one step, DDPM's x_0 at timestep 400.

Pooled embedding: the mean of T5's last hidden states over the prompt's tokens (padding left out, the end token in).
Captions are lowercased and stripped; diffusers' further cleaning (URLs, HTML), which depends on what else is installed
(beautifulsoup4, ftfy), is left out: `clean_caption=False`.
"""

import torch
from torch import Tensor

from pahi.errors import UserError
from pahi.generators.base import Conditioning
from pahi.generators.closed_form import from_scheduler
from pahi.generators.pipeline import OneStepPipeline, masked_mean, truncated

TOKENS = 120  # the pipeline's max_sequence_length
DISTILLED_AT = 400  # PixArt-Alpha-DMD's timestep; no configuration names it


class PixArt(OneStepPipeline):
    """A PixArtAlphaPipeline as one differentiable step."""

    pipelines = ("PixArtAlphaPipeline",)
    denoiser_name = "transformer"

    def _describe(self) -> None:
        self.require("text_encoder", "tokenizer", "transformer")
        self.refuse_guidance()
        scheduler = self.pipe.scheduler
        if type(scheduler).__name__ != "DDPMScheduler":
            raise UserError(f"one step of {type(scheduler).__name__} is not supported here; DMD's DDPMScheduler is")
        timestep = DISTILLED_AT if self.settings.timestep is None else self.settings.timestep
        self.step = from_scheduler(scheduler, timestep)
        config = self.denoiser.config
        if config.out_channels not in (config.in_channels, 2 * config.in_channels):
            raise UserError(f"the transformer reads {config.in_channels} channels and draws {config.out_channels}")
        if self.settings.size is not None and self.settings.size != config.sample_size * self.factor:
            raise UserError(f"it draws {config.sample_size * self.factor} pixels only, not {self.settings.size}")
        self.latent_shape = (config.in_channels, config.sample_size, config.sample_size)
        self.pooled_width = self.pipe.text_encoder.config.d_model

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Conditioning:
        """prompt_embeds (batch, 120, width), and their mask (batch, 120) of zeros and ones."""
        embeds, mask, _, _ = self.pipe.encode_prompt(
            prompts, False, device=self.device, clean_caption=False, max_sequence_length=TOKENS
        )
        embeds, mask = embeds.to(self.arithmetic), mask.to(self.arithmetic)
        texts = self.pipe._text_preprocessing(prompts, clean_caption=False)
        return Conditioning(
            {"prompt_embeds": embeds, "prompt_attention_mask": mask},
            masked_mean(embeds, mask),
            truncated(self.pipe.tokenizer, texts, TOKENS),
        )

    def predict(self, x: Tensor, conditioning: Conditioning) -> Tensor:
        added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if self.denoiser.config.sample_size == 128:  # the 1024-pixel models are told their size
            added = {"resolution": x.new_tensor(self.size).expand(len(x), 2), "aspect_ratio": x.new_ones(len(x), 1)}
        out = self.denoiser(
            x,
            encoder_hidden_states=conditioning.embeds["prompt_embeds"].to(self.dtype),
            encoder_attention_mask=conditioning.embeds["prompt_attention_mask"],
            timestep=self.timestep(len(x)),
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        return out[:, : x.shape[1]]  # the other half is a learned variance, which one step does not need
