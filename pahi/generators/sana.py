"""SANA-Sprint: a linear-attention transformer over 32-channel latents, one step of sCM's trigonometric flow.

Pooled embedding: the mean of Gemma's last hidden states over the tokens that the transformer reads (padding left out).
The prompt is wrapped in the pipeline's own "complex human instruction", as diffusers does unless told otherwise.
"""

import inspect

import torch
from torch import Tensor

from pahi.generators.base import Conditioning
from pahi.generators.closed_form import scm
from pahi.generators.pipeline import OneStepPipeline, masked_mean, truncated

TOKENS = 300  # the pipeline's max_sequence_length


class SanaSprint(OneStepPipeline):
    """A SanaSprintPipeline as one differentiable step."""

    pipelines = ("SanaSprintPipeline",)
    denoiser_name = "transformer"
    default_guidance = 4.5

    def _describe(self) -> None:
        self.require("text_encoder", "tokenizer", "transformer")
        self.step = scm(self.pipe.scheduler)
        config = self.denoiser.config
        side = self.side(config.sample_size)
        self.latent_shape = (config.in_channels, side, side)
        self.pooled_width = self.pipe.text_encoder.config.hidden_size
        parameters = inspect.signature(type(self.pipe).__call__).parameters
        self._instruction = parameters["complex_human_instruction"].default

    def _vae_blocks(self) -> list[int]:
        return self.vae.config.encoder_block_out_channels

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Conditioning:
        """prompt_embeds (batch, 300, width), and their mask (batch, 300) of zeros and ones."""
        embeds, mask = self.pipe.encode_prompt(
            prompts,
            device=self.device,
            clean_caption=False,
            max_sequence_length=TOKENS,
            complex_human_instruction=self._instruction,
        )
        embeds, mask = embeds.to(self.arithmetic), mask.to(self.arithmetic)
        tokenizer, instruction = self.pipe.tokenizer, "\n".join(self._instruction)
        texts = [instruction + text for text in self.pipe._text_preprocessing(prompts, clean_caption=False)]
        limit = len(tokenizer.encode(instruction)) + TOKENS - 2
        return Conditioning(
            {"prompt_embeds": embeds, "prompt_attention_mask": mask},
            masked_mean(embeds, mask),
            truncated(tokenizer, texts, limit),
        )

    def predict(self, x: Tensor, conditioning: Conditioning) -> Tensor:
        guidance = torch.full((len(x),), self.guidance(), device=x.device, dtype=self.dtype)
        return self.denoiser(
            x,
            encoder_hidden_states=conditioning.embeds["prompt_embeds"].to(self.dtype),
            encoder_attention_mask=conditioning.embeds["prompt_attention_mask"],
            guidance=guidance * self.denoiser.config.guidance_embeds_scale,
            timestep=self.timestep(len(x)),
            return_dict=False,
        )[0]
