"""Latent consistency models (LCM_Dreamshaper_v7): a UNet that is told its guidance by `timestep_cond`.

Pooled embedding: as Stable Diffusion's.
"""

from pahi.generators.stable_diffusion import StableDiffusion


class LatentConsistency(StableDiffusion):
    """A LatentConsistencyModelPipeline as one differentiable step, at LCMScheduler's first timestep."""

    pipelines = ("LatentConsistencyModelPipeline",)
    default_guidance = 8.5  # diffusers' own; the checkpoint's card draws with 8
