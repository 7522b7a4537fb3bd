"""What the families share: frozen networks of a diffusers pipeline around one closed form."""

from copy import copy
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pahi.errors import UserError
from pahi.generators.base import Conditioning
from pahi.generators.closed_form import OneStep
from pahi.settings import Generator as GeneratorSettings


class OneStepPipeline:
    """A diffusers pipeline as one differentiable step.

    A family says how prompts are encoded and how its denoiser is called; scheduler arithmetic is float32 (float64 where
    the networks are), whatever the networks' dtype.
    """

    pipelines: ClassVar[tuple[str, ...]]  # the classes in model_index.json that are this family
    denoiser_name: ClassVar[str] = "unet"
    default_guidance: ClassVar[float | None] = None  # guidance that the network takes as an input; None: it takes none
    sized: ClassVar[bool] = True  # whether the configuration names a native size

    def __init__(self, pipe: Any, settings: GeneratorSettings, weights_hash: str = "") -> None:
        """Freezes the pipeline's networks. Raises UserError for what is not one step of this family."""
        self.pipe, self.settings = pipe, settings
        self.id, self.hash, self.license = settings.id, weights_hash, settings.license
        self.revision = settings.revision
        for part in pipe.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
        self.denoiser, self.vae = getattr(pipe, self.denoiser_name), pipe.vae
        self.training_vae: Any = None
        self.factor = 2 ** (len(self._vae_blocks()) - 1)  # pixels a latent
        if settings.size is not None and settings.size % self.factor:
            raise UserError(f"{self.id}: size {settings.size} is not a multiple of {self.factor}")
        try:
            self._describe()
        except UserError as error:
            prefix = "" if str(error).startswith(self.id) else f"{self.id}: "
            raise UserError(f"{prefix}{error}") from None
        self.size = (self.latent_shape[1] * self.factor, self.latent_shape[2] * self.factor)
        self._tune()

    # What _describe sets, from the loaded configuration.
    step: OneStep
    latent_shape: tuple[int, int, int]
    pooled_width: int

    def _describe(self) -> None:
        """Sets `step`, `latent_shape` and `pooled_width`."""
        raise NotImplementedError

    def encode(self, prompts: list[str]) -> Conditioning:
        """Prompts -> conditioning, as the pipeline's own encode_prompt."""
        raise NotImplementedError

    def predict(self, x: Tensor, conditioning: Conditioning) -> Tensor:
        """The denoiser's output for its scaled input x (batch, *latent_shape), of the same shape and dtype."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------------- the one step

    def denoise(self, z: Tensor, conditioning: Conditioning) -> Tensor:
        """x_0 = c_skip z + c_out F(c_in z, t)."""
        z = z.to(self.arithmetic)
        x = (self.step.c_in * z).to(self.dtype)
        if self.settings.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        return self.step.x0(z, self.predict(x, conditioning).to(self.arithmetic))

    def decode(self, latents: Tensor) -> Tensor:
        # Where gradients flow, and only there, a smaller decoder may stand in.
        vae = self.training_vae if self.training_vae is not None and latents.requires_grad else self.vae
        dtype = next(vae.decoder.parameters()).dtype
        out = vae.decode(self.unscale(latents, vae).to(dtype), return_dict=False)[0]
        return out.to(self.arithmetic) / 2 + 0.5

    def unscale(self, latents: Tensor, vae: Any) -> Tensor:
        """Latents of the denoiser's scale -> of the autoencoder's."""
        return latents / vae.config.scaling_factor

    def latents_for_pipeline(self, z: Tensor) -> Tensor:
        """Noise (batch, *latent_shape) in the form that the pipeline takes as `latents=`."""
        return z

    # ------------------------------------------------------------------------------------------------------- devices

    # diffusers' own `dtype` and `device` walk through every module for hooks: milliseconds, several times a picture.

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.denoiser.parameters()).dtype

    @property
    def arithmetic(self) -> torch.dtype:
        return torch.promote_types(self.dtype, torch.float32)

    def timestep(self, *shape: int) -> Tensor:
        """The step's timestep on the device, made there: nothing waits for a copy."""
        return torch.full(shape, self.step.timestep, device=self.device)

    # ------------------------------------------------------------------------------------------------------- helpers

    def guidance(self) -> float:
        """The guidance that the network is told."""
        if self.settings.guidance is not None:
            return self.settings.guidance
        if self.default_guidance is None:
            raise UserError("the network takes its guidance as an input; set generator.guidance")
        return self.default_guidance

    def refuse_guidance(self) -> None:
        """For networks that take none: above 1 it would need a second pass, which is no longer one step."""
        if self.settings.guidance is not None and self.settings.guidance > 1:
            raise UserError(
                f"guidance {self.settings.guidance} needs a second pass; only models without it are one step"
            )

    def side(self, native: int) -> int:
        """Width and height of the latents; `native` where the settings name no size."""
        return native if self.settings.size is None else self.settings.size // self.factor

    def require(self, *names: str) -> None:
        """Raises UserError where the pipeline lacks a part."""
        for name in names:
            if getattr(self.pipe, name, None) is None:
                raise UserError(f"the pipeline has no {name}")

    def _vae_blocks(self) -> Any:
        config = self.vae.config
        return config.get("block_out_channels") or config["decoder_block_out_channels"]

    def add_training_vae(self, vae: nn.Module) -> None:
        """A decoder of the same latents for the pictures that gradients flow through."""
        self.training_vae = vae.requires_grad_(False).eval()
        self._tune_vae(self.training_vae)

    def with_vae(self, vae: Any) -> Self:
        """This generator, of the same networks, with another decoder of the same latents. Raises UserError."""
        blocks = vae.config.get("block_out_channels") or vae.config["decoder_block_out_channels"]
        theirs, factor = vae.config["latent_channels"], 2 ** (len(blocks) - 1)
        if (theirs, factor) != (self.latent_shape[0], self.factor):
            raise UserError(
                f"it decodes {theirs} channels {factor} times as large, and {self.id} needs {self.latent_shape[0]} "
                f"channels {self.factor} times as large"
            )
        other = copy(self)
        other.vae = vae.requires_grad_(False).eval()
        other._tune_vae(other.vae)
        return other

    def _tune(self) -> None:
        s = self.settings
        if s.channels_last and self.denoiser_name == "unet":
            self.denoiser.to(memory_format=torch.channels_last)
        if s.checkpointing:
            self.denoiser.enable_gradient_checkpointing()
        self._tune_vae(self.vae)
        if s.compile:
            self.denoiser.compile()

    def _tune_vae(self, vae: Any) -> None:
        s = self.settings
        if s.channels_last:
            vae.to(memory_format=torch.channels_last)
        if s.vae_slicing:
            vae.enable_slicing()
        if s.checkpointing:
            if vae._supports_gradient_checkpointing:
                vae.enable_gradient_checkpointing()
            else:
                checkpoint_blocks(vae.decoder.up_blocks)
        if s.compile:
            vae.decoder.compile()


def checkpoint_blocks(blocks: nn.ModuleList) -> None:
    """Checkpointing for autoencoders that offer none (AutoencoderDC): block by block, where there is a gradient."""

    def recompute(forward: Any, *args: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False) if torch.is_grad_enabled() else forward(*args)

    for block in blocks:
        block.forward = partial(recompute, block.forward)


def truncated(tokenizer: Any, prompts: list[str], limit: int, batch: Any = None) -> list[bool]:
    """Whether a prompt has more tokens than the limit, the special ones included.

    `batch` is what the tokenizer made of them when it cut them there: a fast one remembers what it cut off, and need
    not be asked again.
    """
    if batch is not None and batch.encodings is not None:
        return [bool(encoding.overflowing) for encoding in batch.encodings]
    return [len(ids) > limit for ids in tokenizer(prompts, truncation=False)["input_ids"]]


def masked_mean(embeds: Tensor, mask: Tensor) -> Tensor:
    """(batch, tokens, width) and (batch, tokens) -> (batch, width): the mean over real tokens."""
    weight = mask.to(embeds.dtype).unsqueeze(-1)
    return (embeds * weight).sum(1) / weight.sum(1).clamp_min(1)


def autoencoder_dtype(settings: GeneratorSettings, vae: Any, dtype: torch.dtype) -> torch.dtype:
    """The decoder's precision: SDXL's own overflows in float16 and says so, as force_upcast."""
    if settings.vae_dtype != "auto":
        return getattr(torch, settings.vae_dtype)
    return torch.float32 if dtype == torch.float16 and vae.config.get("force_upcast", False) else dtype
